"""Other ways to a transposable mask, in the same run on the same weights: how fast, and how far
below the optimum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import nmsolve.torch as nmt
from benchmarks.gpu import rivals
from benchmarks.gpu.rows import Figure, Measurement, Place, Row, Skipped
from benchmarks.gpu.weights import BF16, normal, scores
from nmsolve.torch.dispatch.measuring import wrong_result
from nmsolve.torch.dispatch.packing import is_2to4
from nmsolve.torch.dispatch.timing import medians_us

ROTATION = 3


def measure(place: Place) -> Iterator[Measurement]:
    """Torch's tile kernel last: where it is not valid it may take the process with it."""
    device, side = torch.device(place.device), 8192 if place.large else 64
    draw = partial(_drawn, side, device)
    argmax = partial(
        in_torch, "2:4T, argmax over 90 in torch", "2:4T", rivals.argmax_of_90, draw, 3
    )
    yield Measurement("argmax over 90", argmax)
    for n, m in ((4, 8), (8, 16)):
        find = partial(rivals.entropic, n=n, m=m)
        what = f"{n}:{m}T, entropic transport in torch"
        yield Measurement(what, partial(in_torch, what, f"{n}:{m}T", find, draw, 1))
    yield Measurement("torch's tile kernel", partial(tile_kernel, draw, place))


def _drawn(side: int, device: torch.device) -> list[Tensor]:
    return [scores(BF16, side, device, seed) for seed in range(ROTATION)]


def in_torch(
    what: str,
    pattern: str,
    find: Callable[[Tensor], Tensor],
    draw: Callable[[], list[Tensor]],
    repeats: int,
) -> Iterator[Row]:
    """A rival that gives boolean blocks."""
    matrices = draw()
    blocks = find(matrices[0])
    kept = torch.where(blocks, rivals.as_blocks(matrices[0], blocks.shape[1]), 0).sum(
        dtype=torch.float64
    )
    yield row(what, matrices, pattern, float(kept), find, repeats, "")


def row(
    what: str,
    matrices: list[Tensor],
    pattern: str,
    kept: float,
    call: Callable[[Tensor], object],
    repeats: int,
    note: str,
) -> Figure:
    """Its rate, and what its mask lacks of the optimum."""
    weights = matrices[0]
    (us,) = medians_us(
        [lambda i: call(matrices[i])], weights.device, len(matrices), repeats=repeats, warm_up=1
    )
    loss = 1 - kept / nmt.solve(weights, pattern).objective
    return Figure(
        what=what, us=us, value=weights.numel() / us / 1e3, unit="Gw/s", loss=loss, note=note
    )


def tile_kernel(draw: Callable[[], list[Tensor]], place: Place) -> Iterator[Row]:
    """Torch's run-time pruning of 4 × 4 tiles, timed where it is right. Torch's own tests leave it
    out beyond SM 8.x.
    """
    what = "2:4T, torch's tile kernel"
    if not place.large or not torch.backends.cusparselt.is_available():
        yield Skipped(what=what, why="there is no cuSPARSELt here")
        return
    matrices = draw()
    try:
        wrong = wrong_tiles(matrices[0])
    except Exception as error:  # as torch refuses, in one of its many ways
        torch.cuda.synchronize()  # raises, if more is lost than this call
        wrong = str(error).strip().splitlines()[0]
    if wrong is not None:
        yield Skipped(what=what, why=f"not timed, because it is wrong on this GPU: {wrong}")
        return
    kept = float(rivals.tile_kernel(matrices[0]).abs().sum(dtype=torch.float64))
    yield row(what, matrices, "2:4T", kept, rivals.tile_pack, 10, "greedy; packs both ways as well")


def wrong_tiles(weights: Tensor) -> str | None:
    """What is wrong with what the tile kernel keeps and packs; None if it is 2:4T, of the weight's
    own values, and multiplies.
    """
    packed = rivals.tile_pack(weights)
    dense = packed.to_dense()  # type: ignore[no-untyped-call]
    report = is_2to4(dense, transposable=True)
    if not report:
        return f"what it keeps is not 2:4T: {report}"
    if not torch.equal(dense, torch.where(dense != 0, weights, 0)):
        return "what it keeps are not the weight's values"
    share = float((dense != 0).sum()) / dense.numel()
    if share < 0.4:
        return f"it keeps {100 * share:.1f} %"
    x = normal(1024, weights.shape[1], weights.dtype, weights.device, seed=7)
    dy = normal(1024, weights.shape[0], weights.dtype, weights.device, seed=8)
    sparse = (F.linear(x, packed), F.linear(dy, packed.t()))
    usual = (F.linear(x, dense), dy @ dense)
    return wrong_result(
        sparse, usual, (F.linear(x.float(), dense.float()), dy.float() @ dense.float())
    )
