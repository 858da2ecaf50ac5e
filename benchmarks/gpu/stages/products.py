"""x Wᵀ by every backend and algorithm that this machine has: whether it is right, how fast, and
what it leaves behind.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.rows import Figure, Measurement, Place, Product, Row, Skipped
from benchmarks.gpu.weights import normal, pruned
from benchmarks.timing import WrongResult
from nmsolve.torch.dispatch.algorithms import offered, sorted_out
from nmsolve.torch.dispatch.availability import SPARSE_BACKENDS, why_not
from nmsolve.torch.dispatch.masked_product import masked_linear
from nmsolve.torch.dispatch.measuring import wrong_result
from nmsolve.torch.dispatch.packing import pack, pack_unchecked, packed_linear
from nmsolve.torch.dispatch.timing import medians_us

LARGE = ((4096, 4096), (16384, 4096), (4096, 16384), (8192, 8192), (28672, 8192))
SMALL = ((64, 64), (256, 64), (64, 256))
#: What is served on any machine: the product with the masked dense weight.
DENSE = "masked dense"


def measure(place: Place) -> Iterator[Measurement]:
    """By value and time, shape by shape; then memory."""
    device = torch.device(place.device)
    refused = {
        name: why_not(name, (4096, 4096), torch.bfloat16, device) for name in SPARSE_BACKENDS
    }
    serving = [name for name, reason in refused.items() if reason is None]
    if not serving:
        why = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        yield Measurement("2:4 backends", lambda: [Skipped(what="2:4 backends", why=why)])
    for rows, cols in LARGE if place.large else SMALL:
        for backend in [*serving, DENSE]:
            what = f"{rows} × {cols}, {backend}"
            yield Measurement(
                what, partial(product, rows, cols, 8192 if place.large else 32, backend, device)
            )
    for backend in [*serving, DENSE]:
        yield Measurement(
            f"memory, {backend}", partial(memory, backend, device, 10_000 if place.large else 500)
        )


def product(rows: int, cols: int, tokens: int, backend: str, device: torch.device) -> Iterator[Row]:
    """One shape by one backend. Right is what is as near to float32 as the dense product is."""
    weight, x = pruned(rows, cols, device), normal(tokens, cols, torch.bfloat16, device)
    dense, truth = F.linear(x, weight), F.linear(x.float(), weight.float())
    multiply, count = by_backend(weight, x, backend)
    right, wrong = sorted_out(
        count, lambda k: wrong_result([multiply(k)], [dense], [truth]), device
    )
    if 0 in wrong:  # which is what layers use that were not measured
        raise WrongResult(f"{backend} with a {rows} × {cols} weight: {wrong[0]}")
    calls: list[Callable[[int], object]] = [lambda _: F.linear(x, weight)]
    calls += [lambda _, k=k: multiply(k) for k in right]  # type: ignore[misc]
    if backend in SPARSE_BACKENDS:
        calls.append(lambda _: pack_unchecked(weight, backend))
    dense_us, *times = medians_us(calls, device)
    yield Product(
        rows=rows, cols=cols, tokens=tokens, backend=backend, dense_us=dense_us,
        algorithm_us=dict(zip(right, times, strict=False)), wrong=wrong,
        pack_us=times[-1] if backend in SPARSE_BACKENDS else None,
    )  # fmt: skip


def by_backend(weight: Tensor, x: Tensor, backend: str) -> tuple[Callable[[int], Tensor], int]:
    """x Wᵀ as a function of the algorithm, and how many of these there are."""
    if backend == DENSE:
        mask = weight != 0
        return lambda _: masked_linear(x, weight, mask, backend="dense"), 1
    packed = pack(weight, backend)
    values, meta, shape = packed.packed, packed.meta, (weight.shape[0], weight.shape[1])
    assert values is not None
    count = offered(values, x) if backend == "cusparselt" else 1
    return lambda k: packed_linear(x, values, meta, None, shape, backend, algorithm=k), count


def memory(backend: str, device: torch.device, calls: int) -> Iterator[Row]:
    """Host memory that a product leaves behind: handles and plans that nobody destroys are there
    for the life of a process.
    """
    side, tokens = (1024, 64) if device.type == "cuda" else (64, 32)
    multiply, _ = by_backend(
        pruned(side, side, device), normal(tokens, side, torch.bfloat16, device), backend
    )

    def repeat(times: int) -> int:
        for _ in range(times):
            multiply(0)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return resident_bytes()

    before = repeat(calls // 10)  # what is allocated once
    after = repeat(calls)
    yield Figure(
        what=f"host memory a product, {backend}", value=(after - before) / calls, unit="bytes",
        note=f"{calls:,} products of {side} × {side}, {tokens} tokens: "
             f"{(after - before) / 1e6:+.1f} MB resident",
    )  # fmt: skip


def resident_bytes() -> int:
    """Bytes of this process in memory, as Linux counts them."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
