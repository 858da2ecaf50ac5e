"""What reaches a planned weight when its model runs: each use, with its inputs as matrices.

Hooks see what modules are called with, `Products` the weights that F.linear is given without a call
of their module. Attention uses its output projection past the module's forward; what reaches that
is the attention's own output with the identity in its place.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nmsolve.errors import InputError
from nmsolve.torch.calibration.inputs import Calibration, Item, run, run_all
from nmsolve.torch.calibration.products import Products
from nmsolve.torch.weights.planning import LayerPlan, parameters_of

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
#: Elements of an input that are laid out at once.
_PIECE = 2**24


@dataclass(frozen=True, slots=True)
class Use:
    """A call of the module of a planned weight. inputs : what each part multiplies, or one tensor
    for all parts.
    """

    module: nn.Module
    inputs: tuple[Tensor, ...]

    @property
    def positions(self) -> float:
        """How often an entry of the weight is multiplied: tokens, or output positions; the mean
        over parts.
        """
        if isinstance(self.module, _CONVOLUTIONS):
            x = _batched(self.module, self.inputs[0])
            return x.shape[0] * math.prod(_outputs(self.module, x))
        counts = [x.shape[:-1].numel() for x in self.inputs]
        return sum(counts) / len(counts)

    def positions_of_sample(self, part: int) -> int:
        """Rows of a part's matrix for each entry of the input's first axis."""
        if isinstance(self.module, _CONVOLUTIONS):
            return math.prod(_outputs(self.module, _batched(self.module, self.inputs[0])))
        return self.inputs[part].shape[1:-1].numel()

    def matrices(self) -> Iterator[tuple[int, Tensor]]:
        """(part, (samples, cols)) pieces of the inputs, laid out as `Layout.matrices` lays out the
        weight; none where there are no samples.
        """
        if not isinstance(self.module, _CONVOLUTIONS):
            yield from (
                (part, x.reshape(-1, x.shape[-1]))
                for part, x in enumerate(self.inputs)
                if x.numel()
            )
            return
        if not self.inputs[0].numel():
            return
        x = _batched(self.module, self.inputs[0])
        size = math.prod(_outputs(self.module, x)) * math.prod(self.module.kernel_size) * x.shape[1]
        for piece in torch.split(x, max(1, _PIECE // max(1, size))):
            yield from enumerate(_patches(self.module, piece))


Seen = Callable[[str, Use], None]


@contextlib.contextmanager
def watched(model: nn.Module, entries: Sequence[LayerPlan], seen: Seen) -> Iterator[None]:
    """While it lasts, every use of the weights of these entries calls seen(path, use), before the
    product.
    """
    modules = dict(model.named_modules())
    handles = []
    paths: dict[int, str] = {}
    owners: dict[str, nn.Module] = {}
    within: set[int] = set()

    def past(path: str, x: Tensor) -> None:
        seen(path, Use(owners[path], (_plain(path, x),)))

    try:
        for entry in entries:
            module, parent = modules[entry.name], modules.get(entry.name.rpartition(".")[0])
            weight = id(parameters_of(module)[entry.parameter])
            owners.setdefault(paths.setdefault(weight, entry.path), module)
            inside = isinstance(parent, nn.MultiheadAttention) and parent.out_proj is module
            called = parent if inside else module
            assert called is not None
            handles.append(
                called.register_forward_pre_hook(lambda *_, weight=weight: within.add(weight))
            )
            handles.append(
                called.register_forward_pre_hook(
                    _hook(entry, module, inside, seen), with_kwargs=True
                )
            )
            base = _base_of(module)
            if not inside and (
                type(module).forward is not base.forward or "forward" in vars(module)
            ):
                handles.append(
                    module.register_forward_hook(_check_of(entry.path, base), with_kwargs=True)
                )
            handles.append(
                called.register_forward_hook(
                    lambda *_, weight=weight: within.discard(weight), always_call=True
                )
            )
        with _in_the_open(), Products(paths, within, past):
            yield
    finally:
        for handle in handles:
            handle.remove()


def run_watched(
    model: nn.Module,
    entries: Sequence[LayerPlan],
    calibration: Calibration,
    seen: Callable[[str, Use, int], None],
    about: str,
    progress: bool | None,
) -> None:
    """Run the calibration through the model as it is; every use calls seen(path, use, index of the
    item).
    """
    at = 0

    def each(item: Item, index: int) -> None:
        nonlocal at
        at = index
        run(model, item, index)

    with watched(model, entries, lambda path, use: seen(path, use, at)):
        run_all(calibration, each, about, progress)


@contextlib.contextmanager
def _in_the_open() -> Iterator[None]:
    """Without what would go past hooks: encoder layers that are fused into one operator, and code
    that is compiled already.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    eager = (
        torch.compiler.set_stance("force_eager")
        if "torch._dynamo" in sys.modules
        else contextlib.nullcontext()
    )
    try:
        torch.backends.mha.set_fastpath_enabled(
            False
        )  # it would pack padded inputs into nested tensors, too
        with eager:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _base_of(module: nn.Module) -> type[nn.Module]:
    """The class that says what is computed with a module's weight: torch's own, or Hugging Face's
    Conv1D.
    """
    known = (nn.Linear, *_CONVOLUTIONS, nn.MultiheadAttention)
    return next(kind for kind in type(module).__mro__ if kind in known or kind.__name__ == "Conv1D")


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


def _hook(entry: LayerPlan, module: nn.Module, inside: bool, seen: Seen) -> Callable[..., None]:
    def note(called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if inside:
            inputs: tuple[Tensor, ...] = (_attended(called, args, kwargs),)
        elif isinstance(called, nn.MultiheadAttention):
            given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
            inputs = tuple(given[name] for name in _OF[entry.parameter])
        else:
            inputs = (args[0] if args else next(iter(kwargs.values())),)
        seen(entry.path, Use(module, tuple(_plain(entry.path, x) for x in inputs)))

    return note


def _plain(path: str, x: Any) -> Tensor:
    if not isinstance(x, Tensor) or x.is_nested:
        what = "a nested tensor" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise InputError(
            f"layer {path} is given {what}, of which nothing is known: pad the inputs, or exclude "
            "the layer"
        )
    return x


#: What attention's packed and separate projections multiply.
_OF = {
    "in_proj_weight": ("query", "key", "value"),
    "q_proj_weight": ("query",),
    "k_proj_weight": ("key",),
    "v_proj_weight": ("value",),
}


def _attended(attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What attention gives to its output projection."""
    assert isinstance(attention, nn.MultiheadAttention)
    width, weight = attention.embed_dim, attention.out_proj.weight
    through = nn.Linear(width, width, bias=False, device="meta")
    through.weight = nn.Parameter(torch.eye(width, dtype=weight.dtype, device=weight.device))
    probe = nn.Module.__new__(type(attention))
    probe.__dict__.update(attention.__dict__)
    probe._modules = {**attention._modules, "out_proj": through}
    with torch.no_grad():
        attended: Tensor = type(attention).forward(probe, *args, **kwargs)[0]
    return attended


def _batched(module: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(module, _CONVOLUTIONS)
    return x.unsqueeze(0) if x.dim() == len(module.kernel_size) + 1 else x


def _padding(module: nn.Module) -> list[int]:
    """As F.pad takes it: before and after, the last axis first. Attributes may have been changed
    since the module was made.
    """
    assert isinstance(module, _CONVOLUTIONS)
    if module.padding_mode != "zeros":
        return list(module._reversed_padding_repeated_twice)  # what its own forward pads by
    if isinstance(module.padding, str):
        wide = [
            d * (k - 1) if module.padding == "same" else 0
            for d, k in zip(module.dilation, module.kernel_size, strict=True)
        ]
        return [side for total in reversed(wide) for side in (total // 2, total - total // 2)]
    return [size for size in reversed(module.padding) for _ in range(2)]


def _outputs(module: nn.Module, x: Tensor) -> list[int]:
    """Output positions along each axis of a batch of inputs."""
    assert isinstance(module, _CONVOLUTIONS)
    padding = _padding(module)
    found = []
    for axis, (kernel, stride, dilation) in enumerate(
        zip(module.kernel_size, module.stride, module.dilation, strict=True)
    ):
        before, after = padding[-2 * axis - 2], padding[-2 * axis - 1]
        found.append(
            (x.shape[2 + axis] + before + after - dilation * (kernel - 1) - 1) // stride + 1
        )
    return found


def _patches(module: nn.Module, x: Tensor) -> Tensor:
    """(filter groups, batch · output positions, kernel positions · input channels of a group)."""
    assert isinstance(module, _CONVOLUTIONS)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x, _padding(module), mode=mode)
    axes = len(module.kernel_size)
    for axis, (size, stride, dilation) in enumerate(
        zip(module.kernel_size, module.stride, module.dilation, strict=True)
    ):
        x = x.unfold(2 + axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
    x = x.reshape(
        x.shape[0], module.groups, -1, *x.shape[2:]
    )  # batch, group, channel, positions …, kernel …
    positions, kernel = range(3, 3 + axes), range(3 + axes, 3 + 2 * axes)
    return x.permute(1, 0, *positions, *kernel, 2).flatten(1, 1 + axes).flatten(2)


def unreached(paths: Sequence[str], by: str) -> str:
    """The message for layers that inputs do not reach."""
    names = ", ".join(paths[:5]) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")
    are = f"layer {names} is" if len(paths) == 1 else f"layers {names} are"
    return (
        f"{are} never reached by {by}: no call of the model goes through the module's forward, and "
        "no F.linear takes its weight; give inputs that do, or leave the weight out (nmt.plan(…, "
        "exclude=[…]))"
    )
