"""Inputs of planned weights while their model runs: each use of a weight, with its inputs as
matrices.

Hooks see what modules are called with, `Products` the weights that F.linear is given without a call
of their module. Attention uses its output projection past the module's forward; its input is
the attention's own output with the identity in its place.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nmsolve.errors import InputError
from nmsolve.torch.calibration.convolutions import Convolution, matrices, output_positions
from nmsolve.torch.calibration.inputs import Calibration, Item, run, run_all
from nmsolve.torch.calibration.padding import Counted, Padding
from nmsolve.torch.calibration.products import WITHIN, Products
from nmsolve.torch.weights.layer_kinds import base_of, layer_kind
from nmsolve.torch.weights.layer_plan import PlannedWeight
from nmsolve.torch.weights.parameters import parameters_of


@dataclass(frozen=True, slots=True)
class Use:
    """A call of the module of a planned weight.

    Attributes
    ----------
    module : nn.Module
    inputs : tuple of Tensor
        Of each part of the weight, or one tensor for all parts.
    past_module : bool
        Whether the weight is multiplied without a call of the module.
    biased : bool
        Whether the module's bias is added, if it has one.
    rows : tuple of (Tensor or None)
        Of each of the inputs the rows that count, None where all do; empty where all of all do.
    attention : nn.Module or None
        The module whose call multiplies by the weight, where that is not its own.
    """

    module: nn.Module
    inputs: tuple[Tensor, ...]
    past_module: bool = False
    biased: bool = True
    rows: tuple[Tensor | None, ...] = ()
    attention: nn.Module | None = None

    @property
    def call(self) -> nn.Module:
        """The module whose call multiplies by the weight."""
        return self.module if self.attention is None else self.attention

    @property
    def taken(self) -> tuple[object, ...]:
        """Attributes of the module that the matrices depend on, beside the inputs."""
        if not isinstance(self.module, Convolution):
            return ()
        names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
        return (type(self.module), *(getattr(self.module, name) for name in names))

    def without_padding(self, path: str, counted: Counted) -> Use:
        """Return the same use, of which the rows count that are no padding."""
        if isinstance(self.module, Convolution):
            counted.all_count(path, self.inputs[0].shape[:-1])
            return self
        return replace(self, rows=tuple(counted.rows(path, x) for x in self.inputs))

    @property
    def positions(self) -> float:
        """Products per entry of the weight: tokens, or output positions; the mean over parts."""
        if isinstance(self.module, Convolution):
            samples, positions = output_positions(self.module, self.inputs[0])
            return samples * positions
        counts = [x.shape[:-1].numel() for x in self.inputs]
        return sum(counts) / len(counts)

    def positions_of_sample(self, part: int) -> int:
        """Rows of a part's matrix for each entry of the input's first axis."""
        if isinstance(self.module, Convolution):
            return output_positions(self.module, self.inputs[0])[1]
        return self.inputs[part].shape[1:-1].numel()

    def matrices(self) -> Iterator[tuple[int, Tensor]]:
        """Yield (part, (samples, cols)) pieces of the inputs, laid out as `Geometry.matrices` lays
        out the weight, of the rows that count; none where there are no samples.
        """
        if not isinstance(self.module, Convolution):
            for part, x in enumerate(self.inputs):
                matrix = x.reshape(-1, x.shape[-1]) if x.numel() else x
                rows = self.rows[part] if self.rows else None
                matrix = matrix if rows is None else matrix[rows]
                if matrix.numel():
                    yield part, matrix
        elif self.inputs[0].numel():
            yield from matrices(self.module, self.inputs[0])


#: Called with a weight's path and a use of it.
Seen = Callable[[str, Use], None]


@contextlib.contextmanager
def watched(model: nn.Module, entries: Sequence[PlannedWeight], seen: Seen) -> Iterator[None]:
    """Have every use of the weights of these entries call seen(path, use), before the product."""
    modules = dict(model.named_modules())
    handles = []
    paths: dict[int, str] = {}
    owners: dict[str, nn.Module] = {}

    def past(path: str, x: Tensor, bias: Tensor | None) -> None:
        own = parameters_of(owners[path]).get("bias")
        use = Use(owners[path], (_plain(path, x),), past_module=True, biased=bias is own)
        seen(path, use)

    before = WITHIN.set(())
    try:
        for entry in entries:
            module, parent = modules[entry.name], modules.get(entry.name.rpartition(".")[0])
            weight = id(parameters_of(module)[entry.parameter])
            owners.setdefault(paths.setdefault(weight, entry.path), module)
            attention = (
                parent
                if isinstance(parent, nn.MultiheadAttention) and parent.out_proj is module
                else None
            )
            called = module if attention is None else attention
            handles.append(
                called.register_forward_pre_hook(lambda *_, weight=weight: _enter(weight))
            )
            hook = (
                _hook(entry, module, seen)
                if attention is None
                else _projection_hook(entry, attention, seen)
            )
            handles.append(called.register_forward_pre_hook(hook, with_kwargs=True))
            base = base_of(module)
            if attention is None and (
                type(module).forward is not base.forward or "forward" in vars(module)
            ):
                handles.append(
                    module.register_forward_hook(_check_of(entry.path, base), with_kwargs=True)
                )
            handles.append(
                called.register_forward_hook(
                    lambda *_, weight=weight: _leave(weight), always_call=True
                )
            )
        with _in_the_open(), Products(paths, past):
            yield
    finally:
        WITHIN.reset(before)
        for handle in handles:
            handle.remove()


def _enter(weight: int) -> None:
    WITHIN.set((*WITHIN.get(), weight))


def _leave(weight: int) -> None:
    within = list(WITHIN.get())
    if weight in within:  # not where another hook failed before the call
        within.remove(weight)
    WITHIN.set(tuple(within))


def run_watched(
    model: nn.Module,
    entries: Sequence[PlannedWeight],
    calibration: Calibration,
    seen: Callable[[str, Use, int], None],
    about: str,
    progress: bool | None,
    padding: Padding,
) -> None:
    """Run the calibration through the model as it is; every use calls seen(path, use, index of the
    item), with the rows that count.
    """
    at = 0
    counted: Counted

    def each(item: Item, index: int) -> None:
        nonlocal at, counted
        at, counted = index, padding.of(item, index)
        run(model, item, index)

    def counting(path: str, use: Use) -> None:
        seen(path, use.without_padding(path, counted), at)

    with watched(model, entries, counting):
        run_all(calibration, each, about, progress)


@contextlib.contextmanager
def _in_the_open() -> Iterator[None]:
    """Switch off code that goes past hooks: encoder layers that are fused into one operator, and
    code that is compiled already.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    eager = (
        torch.compiler.set_stance("force_eager")
        if "torch._dynamo" in sys.modules
        else contextlib.nullcontext()
    )
    try:
        # It would pack padded inputs into nested tensors, too.
        torch.backends.mha.set_fastpath_enabled(False)
        with eager:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _check_of(path: str, base: type[nn.Module]) -> Callable[..., None]:
    """A hook for classes with a forward of their own, which has to compute what the class does that
    they are made from.
    """
    checked = False

    def check(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        nonlocal checked
        if checked:
            return
        checked = True
        try:
            expected = base.forward(module, *args, **kwargs)
            found, wanted = (y[0] if isinstance(y, tuple) else y for y in (output, expected))
            same = (
                float((found.double() - wanted.double()).norm())
                <= 0.01 * float(wanted.double().norm()) + 1e-12
            )
        except Exception:
            same = False
        if not same:
            raise InputError(
                f"layer {path} is a {type(module).__name__} whose forward is not that of "
                f"{base.__name__}: what its weight multiplies is not known; leave it out of the "
                "plan (exclude=…)"
            )

    return check


def _hook(entry: PlannedWeight, module: nn.Module, seen: Seen) -> Callable[..., None]:
    """A hook for calls of a weight's own module."""
    kind = layer_kind(module)
    names = () if kind is None else kind.inputs.get(entry.parameter, ())
    arguments = list(inspect.signature(base_of(module).forward).parameters)[1:]

    def note(called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if names:
            given = dict(zip(arguments, args, strict=False)) | kwargs
            inputs = tuple(given[name] for name in names)
        else:
            inputs = (args[0] if args else next(iter(kwargs.values())),)
        seen(entry.path, Use(called, tuple(_plain(entry.path, x) for x in inputs)))

    return note


def _projection_hook(
    entry: PlannedWeight, attention: nn.MultiheadAttention, seen: Seen
) -> Callable[..., None]:
    """A hook for attention whose output projection has the weight."""

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = _plain(entry.path, _attended(attention, args, kwargs))
        seen(entry.path, Use(attention.out_proj, (inputs,), attention=attention))

    return note


def _plain(path: str, x: Any) -> Tensor:
    if not isinstance(x, Tensor) or x.is_nested:
        what = "a nested tensor" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise InputError(
            f"layer {path} is given {what}, of which nothing is known: pad the inputs, or exclude "
            "the layer"
        )
    return x


def _attended(
    attention: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    """The input of attention's output projection."""
    width, weight = attention.embed_dim, attention.out_proj.weight
    through = nn.Linear(width, width, bias=False, device="meta")
    through.weight = nn.Parameter(torch.eye(width, dtype=weight.dtype, device=weight.device))
    probe = nn.Module.__new__(type(attention))
    probe.__dict__.update(attention.__dict__)
    probe._modules = {**attention._modules, "out_proj": through}
    with torch.no_grad():
        attended: Tensor = type(attention).forward(probe, *args, **kwargs)[0]
    return attended


def check_reached(entries: Iterable[PlannedWeight], reached: Container[str], by: str) -> None:
    """Raise InputError, naming the layers, if inputs do not reach every weight.

    Parameters
    ----------
    entries : iterable of PlannedWeight
    reached : container of str
        Owners of the weights that were reached, by whichever layer that shares them.
    by : str
        The inputs that were to reach them, for the message: "the calibration".
    """
    paths = [entry.path for entry in entries if entry.owner not in reached]
    if not paths:
        return
    names = ", ".join(paths[:5]) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")
    are = f"layer {names} is" if len(paths) == 1 else f"layers {names} are"
    raise InputError(
        f"{are} never reached by {by}: no call of the model goes through the module's forward, and "
        "no F.linear takes its weight; give inputs that do, or leave the weight out (nmt.plan(…, "
        "exclude=[…]))"
    )
