"""`accelerate_`: 2:4 layers on sparse tensor cores, where measuring shows that it pays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from nmsolve.errors import InputError
from nmsolve.torch.device.failures import explain, explained
from nmsolve.torch.dispatch.availability import (
    SPARSE_BACKENDS,
    Backends,
    backends,
    warn_once,
    why_not,
)
from nmsolve.torch.dispatch.decisions import Acceleration, LayerDecision, choose
from nmsolve.torch.dispatch.exchanging import exchange_layers
from nmsolve.torch.dispatch.measuring import Product, Searched, measure
from nmsolve.torch.dispatch.packed_linear import PackedLinear
from nmsolve.torch.dispatch.recording import Call, record
from nmsolve.torch.dispatch.refusals import matrix_shape, suitable, tied_layers, unserved, weight_of
from nmsolve.torch.dispatch.sparse_linear import SparseLinear
from nmsolve.torch.offload.lent_parameter import check_not_lent
from nmsolve.torch.weights.parameters import check_module


def accelerate_(
    model: nn.Module,
    example_inputs: Any,
    *,
    only_if_faster: bool = True,
    training: bool = False,
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
        One row for each layer: decision, times, reason. Also printed.

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
    masked dense, and a warning says so once per process.

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
    asked = _Asked(backends(), only_if_faster, training)
    try:
        recorded = record(model, args, kwargs, training=training)
    except Exception as error:
        raise explain(error, "the model's run with example_inputs", _device(model)) or InputError(
            f"the model does not run with these example_inputs: {type(error).__name__}: {error}; "
            "they are passed as "
            f"model({', '.join(['*args'] * bool(args) + ['**kwargs'] * bool(kwargs))})"
        ) from error
    rows: dict[str, LayerDecision] = {}
    news: dict[str, SparseLinear | PackedLinear] = {}
    tied = tied_layers(model)
    for path, module in model.named_modules():
        shape = matrix_shape(module)
        if shape is None:
            continue
        calls = recorded.get(path, Counter())
        open_row = LayerDecision(
            path=path,
            shape=shape,
            tokens=sum(call.tokens * times for call, times in calls.items()),
            backend=None,
            dense_us=None,
            sparse_us=None,
            decision="dense",
            reason=tied.get(path, ""),
        )
        with explained(f"layer {path} of shape {shape}", _device(module)):
            rows[path], new = _decide(open_row, module, calls, asked)
        if new is not None:
            news[path] = new
    with explained("the model's run with its new layers", _device(model)):
        unused = exchange_layers(model, news, args, kwargs, training=training)
    for path, reason in unused.items():
        rows[path] = replace(rows[path], backend=None, decision="dense", reason=reason)
    if not any(asked.found[name] for name in SPARSE_BACKENDS):
        warn_once(
            "no sparse GPU",
            f"nmsolve works on the masked dense weights here: {asked.found['cusparselt'].reason}",
        )
    table = Acceleration(rows.values())
    print(table)
    return table


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
    check_module(model)
    if isinstance(model, nn.Linear):
        raise InputError(
            "the model is itself an nn.Linear, which cannot be replaced in place: pass "
            "nn.Sequential(model)"
        )
    check_not_lent(model, "what accelerate_ makes of its layers")
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise InputError(f"{name} is not initialised yet: run the model once first")


@dataclass(frozen=True, slots=True)
class _Asked:
    """The question that is the same for every layer of a model."""

    found: Backends
    only_if_faster: bool
    training: bool
    #: Products whose algorithms were searched for earlier layers.
    searched: dict[Product, Searched] = field(default_factory=dict)


def _decide(
    row: LayerDecision, module: nn.Module, calls: Counter[Call], asked: _Asked
) -> tuple[LayerDecision, SparseLinear | PackedLinear | None]:
    """Return the decision for a layer, and the module to take its place."""
    layer = row.reason or suitable(module, row.shape, training=asked.training)
    if isinstance(layer, str):
        return replace(row, reason=layer), None
    weight = weight_of(layer)
    reason = unserved(weight, calls, asked.found, training=asked.training)
    backend = None
    if asked.training and not calls:  # nothing is known of what the model does with it
        return replace(row, reason=reason or ""), None
    if reason is None:
        timings = {
            b: measure(
                weight, layer.bias, calls, b, training=asked.training, searched=asked.searched
            )
            for b in SPARSE_BACKENDS
            if all(why_not(b, row.shape, call.dtype, weight.device) is None for call in calls)
        }
        backend, shown, reason = choose(timings, only_if_faster=asked.only_if_faster)
        if shown is not None:
            timing = timings[shown]
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
        decision="sparse" if backend else "masked dense" if asked.training else "dense",
    )
    algorithms = row.algorithms if backend else ()
    if asked.training:
        mask = layer.mask if isinstance(layer, SparseLinear) else weight != 0
        return row, SparseLinear.from_linear(
            layer, mask, backend=backend or "dense", algorithms=algorithms
        )
    if backend is None:
        return row, None
    return row, PackedLinear.from_linear(layer, backend, algorithms=algorithms)
