"""`accelerate_`: 2:4 layers on sparse tensor cores, where measuring shows that it pays."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from nmsolve.errors import InputError
from nmsolve.torch.device.failures import explain
from nmsolve.torch.dispatch.availability import (
    SPARSE_BACKENDS,
    Backends,
    backends,
    warn_once,
    why_not,
)
from nmsolve.torch.dispatch.decisions import Acceleration, LayerDecision, choose
from nmsolve.torch.dispatch.measuring import Product, Searched, measure
from nmsolve.torch.dispatch.packed_linear import PackedLinear
from nmsolve.torch.dispatch.packing import is_2to4
from nmsolve.torch.dispatch.recording import Call, record
from nmsolve.torch.dispatch.sparse_linear import SparseLinear
from nmsolve.torch.running import undisturbed
from nmsolve.torch.weights.masked import masked_parameters

#: In training, a layer with fewer nonzeros was not pruned but initialised so, to zero say; its
#: zeros are not a mask.
LEAST_DENSITY = 0.2


def accelerate_(
    model: nn.Module, example_inputs: Any, only_if_faster: bool = True, training: bool = False
) -> Acceleration:
    """Run a model's 2:4 linear layers on sparse tensor cores, in place, where it is measured to be
    faster.

    Parameters
    ----------
    model : nn.Module
        With masked weights: zeros in place. Moved and cast as it will be used.
    example_inputs : tensor, tuple or list of arguments, or dict of keyword arguments
        As for model(...): of the sizes that matter, since every layer is measured at the shapes
        these give it. Call under the autocast that the model will run under.
    only_if_faster : bool
        False: use the best backend that can serve a layer, even where dense is faster.
    training : bool
        False: chosen layers become `PackedLinear`; others are not touched. True: every layer whose
        weight is transposable 2:4 becomes a `SparseLinear` that keeps its mask, by a backend if
        that pays and masked dense if not, so that numbers never depend on timings. Parameters stay
        the same objects.

    Returns
    -------
    Acceleration
        One row a layer: decision, times, reason. Also printed.

    Raises
    ------
    InputError
        If the model or inputs cannot be worked with. The model is then as it was before.
    SolverError
        If memory runs out, other than in measuring, where that speaks against the backend alone; or
        if a device fails for good, which the process does not survive (`CUDA error: an illegal
        memory access …`). The model's layers are then what they were.

    Notes
    -----
    The inputs are run through the model without gradients, in eval mode unless training; buffers,
    flags and torch's random numbers are restored. A backend's result is compared with the dense one
    at every shape, and it is used only if it is as good. A layer counts as what a loop over it
    takes, which is the larger of the device's and the host's time: a sparse layer is chosen if that
    is smaller than the dense one's. A model that the host cannot keep up with anyway is as slow as
    its host times together; capture it in a CUDA graph (`torch.compile(mode="reduce-overhead")`),
    and the device's alone count. cuSPARSELt multiplies by one of several algorithms, of which the
    fastest right one is searched for every shape that is seen; for shapes that are not seen it uses
    the library's own choice. In training, entries that are zero at this moment are what the mask
    drops; a layer that is nearly all zero is left alone. Without a suitable GPU everything works
    masked dense, and a warning says so once a process.

    Examples
    --------
    >>> import warnings, torch
    >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     table = accelerate_(model, torch.ones(2, 8))  # doctest: +ELLIPSIS
    layer  shape  tokens  backend  dense µs  sparse µs  decision  reason
    0      8×8         2  -               -          -  dense     not 2:4: ...
    """
    args, kwargs = _arguments(example_inputs)
    _check_model(model)
    found = backends()
    try:
        recorded = record(model, args, kwargs, training)
    except Exception as error:
        raise explain(error, "the model's run with example_inputs", _device(model)) or InputError(
            f"the model does not run with these example_inputs: {type(error).__name__}: {error}; "
            "they are passed as "
            f"model({', '.join(['*args'] * bool(args) + ['**kwargs'] * bool(kwargs))})"
        ) from error
    rows: dict[str, LayerDecision] = {}
    news: dict[str, nn.Module] = {}
    tied = _tied(model)
    searched: dict[Product, Searched] = {}
    for name, module in model.named_modules():
        shape = _matrix_shape(module)
        if shape is None:
            continue
        with _explained(f"layer {name} of shape {shape}", module):
            calls = recorded.get(name, Counter())
            rows[name], new = _plan(
                name, module, shape, calls, tied, found, only_if_faster, training, searched
            )
        if new is not None:
            news[name] = new
    with _explained("the model's run with its new layers", model):
        unused = _exchange(model, news, args, kwargs, training)
    for name, reason in unused.items():
        rows[name] = replace(rows[name], backend=None, decision="dense", reason=reason)
    if not any(found[name] for name in SPARSE_BACKENDS):
        warn_once(
            "no sparse GPU",
            f"nmsolve works on the masked dense weights here: {found['cusparselt'].reason}",
        )
    table = Acceleration(rows.values())
    print(table)
    return table


@contextlib.contextmanager
def _explained(what: str, module: nn.Module) -> Iterator[None]:
    """Errors of devices become the library's own, and say what was at work."""
    try:
        yield
    except RuntimeError as error:
        explained = explain(error, what, _device(module))
        if explained is None:
            raise
        raise explained from error


def _device(module: nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def _arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs), {}
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    raise InputError(
        "example_inputs must be a tensor, a tuple or list of arguments or a dict of keyword "
        f"arguments, got {type(example_inputs).__name__}; layers are measured at the shapes that "
        "they give"
    )


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be an nn.Module, got {type(model).__name__}")
    if isinstance(model, nn.Linear):
        raise InputError(
            "the model is itself an nn.Linear, which cannot be replaced in place: pass "
            "nn.Sequential(model)"
        )
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise InputError(f"{name} is not initialised yet: run the model once first")


def _matrix_shape(module: nn.Module) -> tuple[int, ...] | None:
    """The shape of a module's own weight matrix, if it has one."""
    if isinstance(module, torch.jit.ScriptModule):
        return next(
            (tuple(p.shape) for p in module.parameters(recurse=False) if p.dim() >= 2), None
        )
    if isinstance(module, nn.Linear | PackedLinear):
        return module.out_features, module.in_features
    if isinstance(module, parametrize.ParametrizationList):  # its owner is listed
        return None
    return next(
        (tuple(p.shape) for p in module._parameters.values() if p is not None and p.dim() >= 2),
        None,
    )


def _tied(model: nn.Module) -> dict[str, str]:
    """By module name, why it cannot be exchanged alone: its weight, or itself, is used
    elsewhere.
    """
    reasons = {}
    paths: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(id(module), []).append(name)
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for name, module in model.named_modules():
        if len(paths[id(module)]) > 1:
            reasons[name] = f"the module is also {paths[id(module)][1]}"
        elif isinstance(module, torch.jit.ScriptModule):
            continue
        elif isinstance(weight := module._parameters.get("weight"), Tensor):
            others = [
                owner for owner in owners[id(weight)] if owner != f"{name}.weight".lstrip(".")
            ]
            if others:
                reasons[name] = f"its weight is tied to {others[0]}"
    return reasons


def _refusal(module: nn.Module, shape: tuple[int, ...], training: bool) -> str | None:
    """Why a layer is left alone whatever the machine."""
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return "scripted: what its forward does is fixed"
    if isinstance(module, PackedLinear):
        return "packed before"
    if masked_parameters(module):
        return "masks are on it: finalize_ first, or sparsify_(…, accelerate=True)"
    if parametrize.is_parametrized(module):
        return (
            "parametrized: torch.nn.utils.parametrize.remove_parametrizations makes its weight "
            "a parameter"
        )
    if not isinstance(module, nn.Linear):
        return f"no sparse kernel for {kind.__name__}"
    if kind not in (nn.Linear, SparseLinear):
        return f"{kind.__name__} is a subclass of nn.Linear: what its forward does is not known"
    if "forward" in module.__dict__:
        return "its forward was replaced: what it does is not known"
    if "weight" not in module._parameters:
        return (
            "its weight is computed by a hook: make it permanent (torch.nn.utils.prune.remove, "
            "remove_weight_norm)"
        )
    if 0 in shape or shape[1] % 4 or (training and shape[0] % 4):
        return f"not 2:4: {'×'.join(map(str, shape))} does not consist of groups of 4"
    if module.weight.is_meta:
        return "its weight has no values (meta)"
    report = is_2to4(_weight(module), transposable=training)
    if not report:
        return f"not {report.pattern}: {report}"
    if training and report.density < LEAST_DENSITY and not isinstance(module, SparseLinear):
        return (
            f"only {100 * report.density:.1f} % of it is nonzero, and what is zero now would "
            "never be trained"
        )
    return None


def _weight(module: nn.Linear) -> Tensor:
    return module.masked_weight if isinstance(module, SparseLinear) else module.weight.detach()


def _plan(
    name: str,
    module: nn.Module,
    shape: tuple[int, ...],
    calls: Counter[Call],
    tied: Mapping[str, str],
    found: Backends,
    only_if_faster: bool,
    training: bool,
    searched: dict[Product, Searched],
) -> tuple[LayerDecision, nn.Module | None]:
    """The decision for a layer, and the module to take its place."""
    row = LayerDecision(
        name=name,
        shape=shape,
        tokens=sum(call.tokens * times for call, times in calls.items()),
        backend=None,
        dense_us=None,
        sparse_us=None,
        decision="dense",
        reason=tied.get(name) or _refusal(module, shape, training) or "",
    )
    if row.reason:
        return row, None
    assert isinstance(module, nn.Linear)
    weight = _weight(module)
    reason = _unserved(weight, calls, found, training)
    backend = None
    if training and not calls:  # nothing is known of what the model does with it
        return replace(row, reason=reason or ""), None
    if reason is None:
        serving = [
            b
            for b in SPARSE_BACKENDS
            if all(why_not(b, shape, call.dtype, weight.device) is None for call in calls)
        ]
        timings = {b: measure(weight, module.bias, calls, b, training, searched) for b in serving}
        backend, shown, reason = choose(timings, only_if_faster)
        timing = timings[shown] if shown is not None else None
        if timing is not None:
            row = replace(
                row,
                backend=shown,
                dense_us=timing.dense_us,
                sparse_us=timing.sparse_us,
                algorithms=timing.algorithms,
            )
    row = replace(
        row,
        reason=reason,
        decision="sparse" if backend else "masked dense" if training else "dense",
    )
    algorithms = row.algorithms if backend else ()
    if training:
        mask = module.mask if isinstance(module, SparseLinear) else weight != 0
        return row, SparseLinear.from_linear(module, mask, backend or "dense", algorithms)
    return row, PackedLinear.from_linear(module, backend, algorithms) if backend else None


def _unserved(weight: Tensor, calls: Counter[Call], found: Backends, training: bool) -> str | None:
    """Why no backend can serve a 2:4 layer; None if one can."""
    if not calls:
        return "not called by example_inputs"
    usable = [b for b in SPARSE_BACKENDS if found[b]]
    if not usable:
        return found[SPARSE_BACKENDS[0]].reason
    for call in calls:
        reasons = [why_not(b, tuple(weight.shape), call.dtype, weight.device) for b in usable]
        if None not in reasons:
            return reasons[0]
        if not training and call.dtype != weight.dtype:
            return (
                f"its weight is {weight.dtype}, multiplied in {call.dtype} by autocast: cast "
                f"the model to {call.dtype} first"
            )
    return None


def _replace(model: nn.Module, news: Mapping[str, nn.Module]) -> None:
    for name, new in news.items():
        parent, _, child = name.rpartition(".")
        model.get_submodule(parent)._modules[child] = new


def _exchange(
    model: nn.Module,
    news: Mapping[str, nn.Module],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    training: bool,
) -> dict[str, str]:
    """Exchange layers, and back where a run of the model goes past the new ones: which, and how."""
    if not news:
        return {}
    olds = {name: model.get_submodule(name) for name in news}
    _replace(model, news)
    try:
        unused = _unused(model, news, args, kwargs, training)
    except BaseException:
        _replace(model, olds)
        raise
    _replace(model, {name: olds[name] for name in unused})
    return unused


class _Watched:
    """Mixed into a new layer's class: notes whether the layer is called, and whether its weight is
    read past it.
    """

    called = False
    read = False
    inside = False

    def forward(self, input: Tensor) -> Tensor:
        self.called = self.inside = True
        try:
            return super().forward(input)  # type: ignore[misc, no-any-return]
        finally:
            self.inside = False

    def __getattribute__(self, name: str) -> Any:
        if name == "weight" and not self.inside:
            self.read = True
        return super().__getattribute__(name)

    def __getattr__(self, name: str) -> Any:
        return nn.Module.__getattr__(cast(nn.Module, self), name)


class _WatchedPacked(_Watched, PackedLinear):
    pass


class _WatchedSparse(_Watched, SparseLinear):
    pass


def _unused(
    model: nn.Module,
    names: Iterable[str],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    training: bool,
) -> dict[str, str]:
    """New layers that a run of the model goes past, and how: the old ones serve these better."""
    layers = {name: model.get_submodule(name) for name in names}
    for module in layers.values():
        module.__class__ = _WatchedSparse if training else _WatchedPacked
    try:
        with undisturbed(model, training):
            model(*args, **kwargs)
        reasons = {}
        for name, module in layers.items():
            assert isinstance(module, _Watched)
            if module.read:
                reasons[name] = (
                    "the model reads its weight past it, as nn.TransformerEncoderLayer's fast path "
                    "does (torch.backends.mha.set_fastpath_enabled(False) turns that off)"
                )
            elif not module.called:
                reasons[name] = "the model calls it by a reference of its own"
        return reasons
    finally:
        for module in layers.values():
            module.__class__ = SparseLinear if training else PackedLinear
            for note in ("called", "read", "inside"):
                module.__dict__.pop(note, None)
