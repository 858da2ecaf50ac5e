"""The engine of Triton kernels, on GPUs; in Triton's interpreter on CPUs too."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple, Self

import numpy as np
import torch
import triton.language as tl
from torch import Tensor

from nmsolve.solvers import APART
from nmsolve.solvers import FINE as TIGHT
from nmsolve.solvers.ascent_group import ROUNDING
from nmsolve.solvers.block_masks import classes, pair_code, row_patterns
from nmsolve.solvers.network import selection_network
from nmsolve.solvers.ties import COARSE, FINE, HINT, LATTICE, SHRINK, ZEROS, offsets
from nmsolve.torch.device import ascent_kernels, kernels
from nmsolve.torch.device.problem import MARGIN, Blocks, Problem, Sums, extreme_limit
from nmsolve.torch.device.torch_engine import rounding_shift

#: Weights that one call may solve: duals of 2 / m of their number are its workspace, 256 MiB of
#: float32 at most.
PIECE = 2**26
#: Lanes of a program, four warps of them.
LANES = 128
#: Groups of lanes that a program of the enumeration solves one after the other, before it adds up.
TILES = 4
#: Triton's interpreter runs program after program in NumPy, so fewer and wider ones are faster
#: there.
INTERPRETED_LANES = 4096


def _lanes(X: Tensor, most: int = LANES) -> int:
    return INTERPRETED_LANES if X.device.type == "cpu" else most


def _programs(total: int, lanes: int) -> tuple[int]:
    return ((total + lanes - 1) // lanes,)


def _compute(dtype: torch.dtype) -> Any:
    return tl.float64 if dtype == torch.float64 else tl.float32


def _readable(X: Tensor, dtype: torch.dtype) -> Tensor:
    """Integers, and what is to be computed in another width, are converted; 16-bit floats are
    widened as they are loaded.
    """
    return X if X.dtype in (torch.float16, torch.bfloat16, dtype) else X.to(dtype)


def _network(m: int, ranks: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple((i, j) for i, j, _ in selection_network(m, ranks))


def _middle(n: int, m: int) -> dict[str, Any]:
    ranks = (n - 1, min(n, m - 1))
    return {"UPPER": ranks[0], "LOWER": ranks[1], "NETWORK": _network(m, ranks)}


#: The bits of infinity, and of the magnitude from which sums of eight could overflow.
INFINITE = {torch.float32: 0x7F800000, torch.float64: 0x7FF << 52}
HUGE = {torch.float32: (127 + 120) << 23, torch.float64: (1023 + 1000) << 52}
HALF = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
ELEMENTS = {**HALF, torch.float32: tl.float32, torch.float64: tl.float64}


def _in_words(X: Tensor) -> Tensor:
    """Floats as 64-bit words of four or two where memory allows, else as they are."""
    pack = 8 // X.element_size()
    aligned = (
        X.stride(2) == 1
        and X.shape[2] % pack == 0
        and X.data_ptr() % 8 == 0
        and X.storage_offset() % pack == 0
    )
    if pack > 1 and aligned and all(stride % pack == 0 for stride in X.stride()[:2]):
        return X.view(torch.int64)
    return X


def keep_groups(
    X: Tensor,
    mask: Tensor,
    n: int,
    m: int,
    at_most: bool,
    absolute: bool,
    dtype: torch.dtype,
    collect: bool,
) -> Sums:
    """Row-wise n:m of X (batch, rows, cols) into mask (batch, rows, cols rounded up to m)."""
    X = _readable(X, dtype)
    batch, rows, cols = X.shape
    blocks_per_row = mask.shape[2] // m
    total = batch * rows * blocks_per_row
    flat = X.is_contiguous() and cols == mask.shape[2]
    element = HALF.get(X.dtype)
    source = _in_words(X) if flat and m % 4 == 0 and X.dtype in HALF else X
    lanes = _lanes(
        X, max(LANES, 1 << (32 * LANES // m).bit_length() - 1)
    )  # 4096 weights a program, and a power of two
    programs = _programs(total, lanes)
    sums = torch.empty((*programs, 4), dtype=torch.float64, device=X.device)
    thresholds = torch.empty(
        (batch, rows, blocks_per_row) if collect else (1, 1, 1), dtype=dtype, device=X.device
    )
    words = m % 4 == 0
    with _on(X):
        kernels.keep_groups[programs](
            source, mask.view(torch.int32) if words else mask.view(torch.int8), thresholds, sums,
            total, blocks_per_row, rows, cols,
            *X.stride(), N=n, M=m, AT_MOST=at_most, ABSOLUTE=absolute,
            NETWORK=_network(m, (n - 1,)), FLAT=flat,
            ELEMENT=element, WORDS=words, COLLECT=collect, INFINITE=INFINITE[dtype],
            COMPUTE=_compute(dtype), BLOCK=lanes,
        )  # fmt: skip
    return Sums(sums.sum(0), thresholds if collect else None, None)


@cache
def _pairs(n: int) -> tuple[tuple[tuple[int, int, int], ...], tuple[int, ...]]:
    """The row-pattern pairs of every class, upper and lower half in turn, and where each such part
    begins.
    """
    parts = [half for split in classes(n) for half in split]
    first = (0, *accumulate(len(part) for part in parts))
    return tuple(
        (*pair, pair_code(n, pair) << 8 * (k % 2)) for k, part in enumerate(parts) for pair in part
    ), first


def enumerate_blocks(
    X: Tensor, mask: Tensor, n: int, absolute: bool, dtype: torch.dtype, again: bool
) -> Sums:
    """Transposable n:4, exactly, as a two-stage maximum over all masks (see
    nmsolve.solvers.enumeration).
    """
    X = _readable(X, dtype)
    blocks_per_row, block_rows = mask.shape[2] // 4, mask.shape[1] // 4
    total = mask.shape[0] * block_rows * blocks_per_row
    edges = X.shape[1:] != mask.shape[1:]
    source = X if edges or X.dtype not in HALF else _in_words(X)
    lanes = _lanes(X)
    programs = _programs(total, lanes * TILES)
    sums = torch.empty((*programs, 4), dtype=torch.float64, device=X.device)
    opened = torch.empty(total if again else 1, dtype=torch.int8, device=X.device)
    pairs, first = _pairs(n)
    with _on(X):
        kernels.enumerate_blocks[programs](
            source, mask.view(torch.int32), opened, sums, total, blocks_per_row, block_rows,
            *X.shape[1:],
            *source.stride(),
            PATTERNS=row_patterns(n), PAIRS=pairs, FIRST=first, EDGES=edges,
            NARROW=blocks_per_row < lanes,
            AGAIN=again,
            INFINITE=INFINITE[dtype], HUGE=HUGE[dtype], APART=APART, ABSOLUTE=absolute,
            ELEMENT=HALF.get(X.dtype),
            COMPUTE=_compute(dtype), TILES=TILES, BLOCK=lanes,
        )  # fmt: skip
    return Sums(sums.sum(0), None, opened if again else None)


def _split(m: int, dtype: torch.dtype, first: bool) -> int:
    """Return how many lanes share a block, so that its scores stay in registers: as rows, and where
    lanes share it as columns too.

    Sharing costs no more than shuffles of duals: a round of 8:16T takes 188 cycles a block with
    four lanes, 190 with eight. With 32 registers for either copy three warps fit a scheduler, where
    64 let two. Only for blocks that one lane holds whole the first level has fewer instructions;
    the other levels have few blocks, which more lanes bring to an end sooner.
    """
    width = 2 if dtype == torch.float64 else 1
    if first and m * m * width <= 64:
        return 1
    return next(
        lanes for lanes in (1, 2, 4, 8, 16, 32) if -(-m // lanes) * m * width <= 32 or lanes == 32
    )


@cache
def _offsets(m: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The offset of every entry of a block, on the device once and for all: a copy from the host
    would be a wait per solve.
    """
    return torch.as_tensor(offsets(m), device=device).to(dtype)


def ascend_first(X: Tensor, mask: Tensor, problem: Problem, collect: bool) -> tuple[Blocks, Tensor]:
    """The first level of the ascent on all blocks (see `problem.Engine`)."""
    m, dtype, device = problem.pattern.m, problem.dtype, X.device
    total = mask.numel() // m**2
    duals = (m, total if collect else 1)
    blocks = Blocks(
        u=torch.empty(duals, dtype=dtype, device=device),
        v=torch.empty(duals, dtype=dtype, device=device),
        scale=torch.empty(duals[1], dtype=dtype, device=device),
        open=torch.empty(total, dtype=torch.int8, device=device),
    )
    launch = _Launch.of(X, mask, problem, total, True)
    sums = torch.empty((*launch.programs, 4), dtype=torch.float64, device=device)
    margin = MARGIN * torch.finfo(dtype).eps
    with _on(X):
        ascent_kernels.ascend_first[launch.programs](
            *launch.matrices, *blocks, sums, total, *launch.shape, 1, problem.rounds[0], margin,
            COLLECT=collect, **launch.constants,
        )  # fmt: skip
    return blocks, sums.sum(0)


def ascend_rest(
    X: Tensor, mask: Tensor, problem: Problem, blocks: Blocks, unproven: int, collect: bool
) -> tuple[Tensor, Tensor]:
    """All levels on the blocks that are open (see `problem.Engine`)."""
    # The number is known, so that finding the places is no wait; not every device can.
    known = X.device.type in ("cuda", "cpu")
    place = (
        torch.nonzero_static(blocks.open, size=unproven) if known else torch.nonzero(blocks.open)
    ).squeeze(1)
    m, dtype, rounds = problem.pattern.m, problem.dtype, problem.rounds
    launch = _Launch.of(X, mask, problem, unproven, False)
    sums = torch.empty((*launch.programs, 2 + len(rounds)), dtype=torch.float64, device=X.device)
    with _on(X):
        ascent_kernels.ascend_rest[launch.programs](
            *launch.matrices, place.int(), *blocks, sums, _offsets(m, dtype, X.device),
            blocks.open.numel(), unproven,
            *launch.shape, 1, problem.sweeps, rounding_shift(dtype), ROUNDING, problem.tolerance,
            APART=APART, TIGHT=min(TIGHT / 4, problem.tolerance), ROUNDS=rounds, COLLECT=collect,
            LATTICE=LATTICE, ZEROS=ZEROS,
            HINT=HINT, FINE=FINE, SHRINK=SHRINK, COARSE=COARSE,
            **launch.constants,
        )  # fmt: skip
    return place, sums.sum(0)


class _Launch(NamedTuple):
    """The launch of a kernel of the ascent: how many programs, and what both are given."""

    programs: tuple[int]
    matrices: tuple[Tensor, Tensor, Tensor]
    shape: tuple[int, ...]
    constants: dict[str, Any]

    @classmethod
    def of(cls, X: Tensor, mask: Tensor, problem: Problem, count: int, first: bool) -> Self:
        """For `count` blocks of X (batch, rows, cols), into mask (batch, rows, cols rounded up to
        m), at the first level or not.
        """
        pattern, dtype = problem.pattern, problem.dtype
        n, m = pattern.n, pattern.m
        edges = X.shape[1:] != mask.shape[1:]
        words = X if edges or m % (8 // X.element_size()) else _in_words(X)
        split = _split(m, dtype, first)
        # One warp, so that few blocks spread over many multiprocessors and a branch is taken for
        # few.
        blocks = _lanes(X, 32) // split
        width = next(width for width in (8, 4, 1) if m % width == 0)
        units = {8: torch.int64, 4: torch.int32, 1: torch.int8}
        constants = {
            "N": n, "M": m, **_middle(n, m), "AT_MOST": pattern.at_most,
            "ABSOLUTE": problem.absolute, "EDGES": edges,
            "PACK": 1 if words is X else 8 // X.element_size(), "ELEMENT": ELEMENTS[X.dtype],
            "WIDTH": width,
            "COMPUTE": _compute(dtype), "INFINITE": INFINITE[dtype], "OMEGA": problem.omega,
            "LIMIT": extreme_limit(dtype), "K": -(-m // split), "SPLIT": split, "BLOCKS": blocks,
            "num_warps": 1,
        }  # fmt: skip
        shape = (mask.shape[2] // m, mask.shape[1] // m, *X.shape[1:], *X.stride())
        return cls(_programs(count, blocks), (X, words, mask.view(units[width])), shape, constants)


def _on(X: Tensor) -> AbstractContextManager[object]:
    """Launch on the device that holds X, whichever is current.

    The interpreter computes by NumPy, which would warn of ∞ − ∞ where a solve is about to end,
    because scores are not finite, or to begin again, because sums overflow.
    """
    if X.is_cuda:
        return torch.cuda.device(X.device)
    return np.errstate(invalid="ignore", over="ignore") if X.device.type == "cpu" else nullcontext()
