"""Linear layers with 2:4T weights on a GPU: dense against packed, forward and backward, and the cost of a new mask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import nmsolve.torch as nmt
from benchmarks.gpu.masks import Row
from nmsolve.torch.dispatch.backends import SPARSE_BACKENDS, why_not
from nmsolve.torch.dispatch.masked_linear import masked_linear
from nmsolve.torch.dispatch.measuring import measure as measure_layer
from nmsolve.torch.dispatch.packing import pack_unchecked, packed_linear
from nmsolve.torch.dispatch.recording import Call
from nmsolve.torch.dispatch.timing import medians_us


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One shape: a dense and a sparse forward (or forward and backward), in microseconds; `failure` in place of times."""

    rows: int
    cols: int
    tokens: int
    backend: str
    training: bool
    dense_us: float | None
    sparse_us: float | None
    raw_ratio: float | None
    failure: str | None


def transformer_shapes(largest: int) -> list[tuple[int, int]]:
    """(out, in) of square projections and of MLPs that widen fourfold, for widths 1024 … largest."""
    widths = [width for width in (1024, 2048, 4096, 8192) if width <= largest]
    return [shape for width in widths for shape in ((width, width), (4 * width, width), (width, 4 * width)) if max(shape) <= 32768]


def pruned(rows: int, cols: int, device: torch.device) -> Tensor:
    """A bfloat16 2:4T weight."""
    generator = torch.Generator(device).manual_seed(0)
    weight = torch.randn(rows, cols, generator=generator, device=device).mul_(cols**-0.5).bfloat16()
    return torch.where(nmt.solve(weight, "2:4T").mask, weight, 0)


def measure(device: torch.device, largest: int, tokens: int) -> Iterator[LayerRow]:
    """Every shape by every backend that this machine has."""
    backends = [name for name in SPARSE_BACKENDS if why_not(name, (1024, 1024), torch.bfloat16, device) is None]
    for rows, cols in transformer_shapes(largest):
        weight = pruned(rows, cols, device)
        for backend in backends:
            for training in (False, True):
                call = Call(tokens=tokens, dtype=torch.bfloat16, device=device)
                timing = measure_layer(weight, None, {call: 1}, backend, training)
                raw = _raw_ratio(weight, tokens, backend) if training else None
                yield LayerRow(
                    rows=rows, cols=cols, tokens=tokens, backend=backend, training=training, dense_us=timing.dense_us,
                    sparse_us=timing.sparse_us, raw_ratio=raw, failure=timing.failure,
                )  # fmt: skip


def _raw_ratio(weight: Tensor, tokens: int, backend: str) -> float:
    """Dense over sparse time of a step's three products alone: two of them packed, the weight's gradient dense."""
    rows, cols = weight.shape
    x, dy = normal_matrix(tokens, cols, weight), normal_matrix(tokens, rows, weight)
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

    with torch.no_grad():
        dense_us, sparse_us = medians_us([dense, sparse], weight.device)
    return dense_us / sparse_us


def normal_matrix(rows: int, cols: int, like: Tensor) -> Tensor:
    """N(0, 1) of a shape, with another tensor's dtype and device."""
    return torch.randn(rows, cols, device=like.device).to(like.dtype)


def refresh(device: torch.device, rows: int, cols: int, tokens: int) -> Iterator[Row]:
    """A new 2:4T mask and both packings of a layer, against its dense forward and backward."""
    weight = torch.randn(rows, cols, device=device).mul_(cols**-0.5).bfloat16()
    x = normal_matrix(tokens, cols, weight).requires_grad_()
    parameter = weight.clone().requires_grad_()
    dy = normal_matrix(tokens, rows, weight)

    def dense(_: int) -> None:
        torch.autograd.grad(F.linear(x, parameter), [x, parameter], dy)

    def solve(_: int) -> None:
        nmt.solve(weight, "2:4T")

    calls = [dense, solve]
    backends = [name for name in SPARSE_BACKENDS if why_not(name, (rows, cols), torch.bfloat16, device) is None]
    mask = nmt.solve(weight, "2:4T").mask
    for backend in backends:

        def pack(_: int, backend: str = backend) -> None:
            kept = torch.where(mask, weight, 0)
            pack_unchecked(kept, backend)
            pack_unchecked(kept.t().contiguous(), backend)

        def step(_: int, backend: str = backend) -> None:
            y = masked_linear(x, parameter, mask, backend=backend)
            torch.autograd.grad(y, [x, parameter], dy)

        calls += [pack, step]
    dense_us, solve_us, *others = medians_us(calls, device)
    what = f"{rows} × {cols}, {tokens} tokens"
    yield Row(what=f"{what}: dense forward + backward", us=dense_us, value=dense_us / 1e3, unit="ms")
    yield Row(what=f"{what}: a new 2:4T mask", us=solve_us, value=100 * solve_us / dense_us, unit="% of dense")
    for backend, pack_us, step_us in zip(backends, others[::2], others[1::2], strict=True):
        yield Row(
            what=f"{what}: new mask and packing, {backend}", us=solve_us + pack_us, value=100 * (solve_us + pack_us) / dense_us,
            unit="% of dense", target=10.0, at_least=False,
        )  # fmt: skip
        yield Row(
            what=f"{what}: dense / sparse step, {backend}", us=step_us, value=dense_us / step_us, unit="×", note="packing included"
        )
