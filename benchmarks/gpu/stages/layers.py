"""2:4T weights against dense ones: a new mask, models under `accelerate_`, and layers of all shapes
by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nmsolve.torch as nmt
from benchmarks.gpu.models import TransformerBlock, masked, mlp
from benchmarks.gpu.rows import Decision, Figure, Layer, Measurement, Place, Row, Skipped
from benchmarks.gpu.weights import normal, pruned
from benchmarks.timing import WrongResult
from nmsolve.torch.dispatch.algorithms import named
from nmsolve.torch.dispatch.availability import SPARSE_BACKENDS, why_not
from nmsolve.torch.dispatch.decisions import MARGIN
from nmsolve.torch.dispatch.masked_product import masked_linear
from nmsolve.torch.dispatch.measuring import wrong_result
from nmsolve.torch.dispatch.packing import pack, pack_unchecked, packed_linear
from nmsolve.torch.dispatch.timing import call_times, graph_medians_us, medians_us

#: Tokens of a training step; with few, as in decoding, sparse products rarely pay.
TOKENS, FEW = 16_384, 64
#: The most that a new mask and its packing may take of a layer's dense forward and backward, in
#: percent.
REFRESH = 10.0
WIDTHS = (4096, 8192, 2048, 1024)


def measure(place: Place) -> Iterator[Measurement]:
    """What has a target first."""
    device = torch.device(place.device)
    refused = {
        name: why_not(name, (1024, 1024), torch.bfloat16, device) for name in SPARSE_BACKENDS
    }
    serving = [name for name, reason in refused.items() if reason is None]
    tokens, few, width = (TOKENS, FEW, 4096) if place.large else (64, 16, 64)
    if not serving:
        why = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        yield Measurement("2:4 backends", lambda: [Skipped(what="2:4 backends", why=why)])
    yield Measurement("a new mask", lambda: refresh(width, 4 * width, tokens, serving, device))
    for what, build, count, training in (
        ("MLP, inference", partial(mlp, width), tokens, False),
        ("MLP, inference", partial(mlp, width), few, False),
        ("MLP, training", partial(mlp, width), tokens, True),
        (
            "transformer block, training",
            partial(TransformerBlock, width // 2, width // 32),
            tokens,
            True,
        ),
    ):
        name = f"{what}, {count:,} tokens"
        yield Measurement(name, partial(accelerated, name, build, count, training, device))
    for rows, cols in transformer_shapes() if place.large else [(64, 64), (256, 64)]:
        for backend in serving or ["dense"]:
            for training in (False, True):
                name = f"{rows} × {cols}, {backend}, {'training' if training else 'inference'}"
                yield Measurement(
                    name, partial(layer, rows, cols, tokens, backend, training, device)
                )


def transformer_shapes() -> list[tuple[int, int]]:
    """(out, in) of square projections and of MLPs that widen fourfold."""
    return [
        shape
        for width in WIDTHS
        for shape in ((width, width), (4 * width, width), (width, 4 * width))
    ]


def layer(
    rows: int, cols: int, tokens: int, backend: str, training: bool, device: torch.device
) -> Iterator[Row]:
    """One shape by one backend and its own choice of an algorithm: as it is used, and as graphs, in
    which the host has no part.
    """
    weight = pruned(rows, cols, device)
    mask = weight != 0
    x, dy = (
        normal(tokens, cols, weight.dtype, device),
        normal(tokens, rows, weight.dtype, device, seed=1),
    )
    if training:
        multiply = partial(masked_linear, mask=mask, backend=backend)
    elif backend in SPARSE_BACKENDS:
        packed = pack(weight, backend)
        assert packed.packed is not None
        multiply = partial(
            _multiply_packed, values=packed.packed, meta=packed.meta, backend=backend
        )
    else:
        multiply = partial(masked_linear, mask=mask)
    dense, sparse = (
        partial(_step, linear, x, weight, dy, training) for linear in (F.linear, multiply)
    )
    truth = _step(F.linear, x.float(), weight.float(), dy.float(), training)
    wrong = wrong_result(sparse(), dense(), truth, mask if training else None)
    del truth
    if wrong is not None:
        raise WrongResult(f"{rows} × {cols}, {backend}: {wrong}")
    calls: list[Callable[[int], object]] = [lambda _: dense(), lambda _: sparse()]
    before, after = (taken.in_use_us for taken in call_times(calls, device))
    graphs = graph_medians_us(calls, device)
    ratio = (
        _products_ratio(weight, tokens, backend)
        if training and backend in SPARSE_BACKENDS
        else None
    )
    yield Layer(
        rows=rows, cols=cols, tokens=tokens, backend=backend, training=training, dense_us=before,
        sparse_us=after,
        dense_graph_us=graphs[0], sparse_graph_us=graphs[1], products_ratio=ratio,
    )  # fmt: skip


def _step(
    linear: Callable[..., Tensor], x: Tensor, weight: Tensor, dy: Tensor, training: bool
) -> tuple[Tensor, ...]:
    """A forward, or a forward and backward: y, and the gradients of x and of the weight."""
    if not training:
        return (linear(x, weight),)
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = linear(x, weight)
    return (y.detach(), *torch.autograd.grad(y, [x, weight], dy))


def _multiply_packed(
    x: Tensor, weight: Tensor, values: Tensor, meta: Tensor | None, backend: str
) -> Tensor:
    return packed_linear(x, values, meta, None, (weight.shape[0], weight.shape[1]), backend)


def _products_ratio(weight: Tensor, tokens: int, backend: str) -> float:
    """Dense over sparse time of a step's three products alone: two of them packed, the weight's
    gradient dense.
    """
    rows, cols = weight.shape
    x, dy = (normal(tokens, size, weight.dtype, weight.device) for size in (cols, rows))
    there, back = pack_unchecked(weight, backend), pack_unchecked(weight.t().contiguous(), backend)
    assert there.packed is not None
    assert back.packed is not None
    parts, parts_back = (there.packed, there.meta), (back.packed, back.meta)

    def dense(_: int) -> None:
        F.linear(x, weight)
        dy @ weight
        dy.t() @ x

    def sparse(_: int) -> None:
        packed_linear(x, *parts, None, (rows, cols), backend)
        packed_linear(dy, *parts_back, None, (cols, rows), backend)
        dy.t() @ x

    dense_us, sparse_us = medians_us([dense, sparse], weight.device)
    return dense_us / sparse_us


def refresh(
    rows: int, cols: int, tokens: int, backends: list[str], device: torch.device
) -> Iterator[Row]:
    """A new 2:4T mask and both packings of a layer, against its dense forward and backward."""
    weight = (normal(rows, cols, torch.float32, device) * cols**-0.5).bfloat16()
    x, dy = (
        normal(tokens, cols, weight.dtype, device).requires_grad_(),
        normal(tokens, rows, weight.dtype, device, seed=1),
    )
    parameter = weight.clone().requires_grad_()
    mask = nmt.solve(weight, "2:4T").mask

    def pack_both(_: int, backend: str) -> None:
        kept = torch.where(mask, weight, 0)
        pack_unchecked(kept, backend)
        pack_unchecked(kept.t().contiguous(), backend)

    calls: list[Callable[[int], object]] = [
        lambda _: torch.autograd.grad(F.linear(x, parameter), [x, parameter], dy),
        lambda _: nmt.solve(weight, "2:4T"),
    ]
    calls += [partial(pack_both, backend=backend) for backend in backends]
    dense, solve, *packings = (taken.in_use_us for taken in call_times(calls, device))
    what = f"{rows} × {cols}, {tokens:,} tokens"
    yield Figure(what=f"{what}: dense forward + backward", us=dense, value=dense / 1e3, unit="ms")
    yield Figure(
        what=f"{what}: a new 2:4T mask", us=solve, value=100 * solve / dense, unit="% of dense"
    )
    for backend, packing in zip(backends, packings, strict=True):
        yield Figure(
            what=f"{what}: new mask and packing, "
                 f"{backend}", us=solve + packing, value=100 * (solve + packing) / dense,
            unit="% of dense", target=REFRESH, at_least=False,
        )  # fmt: skip


def accelerated(
    what: str, build: Callable[[], nn.Module], tokens: int, training: bool, device: torch.device
) -> Iterator[Row]:
    """What `accelerate_` decides for a model; then, measured anew, the model against what it
    was.
    """
    torch.manual_seed(0)
    dense = masked(build(), device)
    width = next(module.in_features for module in dense.modules() if isinstance(module, nn.Linear))
    batch = max(1, tokens // 4096)
    x = normal(tokens, width, torch.bfloat16, device).view(batch, -1, width)
    sparse = deepcopy(dense)
    for decision in nmt.accelerate_(sparse, x, training=training):
        backend = named(decision.backend, decision.algorithms) if decision.backend else None
        yield Decision(
            model=what, layer=decision.name, shape=" × ".join(map(str, decision.shape)),
            tokens=decision.tokens, backend=backend,
            dense_us=decision.dense_us, sparse_us=decision.sparse_us, decision=decision.decision,
            reason=decision.reason,
        )  # fmt: skip
    dy = normal(tokens, width, torch.bfloat16, device, seed=1).view_as(x)

    def step(_: int, model: nn.Module) -> object:
        with torch.set_grad_enabled(training):
            y = model(x)
        return torch.autograd.grad(y, list(model.parameters()), dy) if training else y

    with torch.no_grad():
        wrong = wrong_result([sparse(x)], [dense(x)], [deepcopy(dense).float()(x.float())])
    if wrong is not None:
        raise WrongResult(f"{what}, accelerated: {wrong}")
    before, after = call_times([partial(step, model=dense), partial(step, model=sparse)], device)
    yield Figure(
        what=f"{what}: dense / accelerated", us=after.in_use_us,
        value=before.in_use_us / after.in_use_us, unit="×",
        target=1 - MARGIN, note=f"measured anew; {100 * MARGIN:.0f} % are what times scatter",
    )  # fmt: skip
