"""The steps of the device solvers as Triton kernels: the same functions as `plain`, with masks as words, one a row of a block."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from itertools import accumulate
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from nmsolve.solvers.enumeration import classes, row_patterns
from nmsolve.solvers.network import selection_network
from nmsolve.torch.device import ascent_kernels, kernels
from nmsolve.torch.device.plain import Certificate, Sums, pair_code, rounding_shift

#: Weights that one call may stage; a float32 takes 256 MiB of workspace then, and the duals of small blocks half as much.
PIECE = 2**26
#: Up to so many blocks `climb` is faster than its steps one by one: they fill a few multiprocessors, however many rounds it takes.
FEW = 2**16
#: Lanes of a program, four warps of them.
LANES = 128
#: Groups of lanes that a program of the enumeration solves one after the other, before it adds up.
TILES = 4
#: Triton's interpreter runs program after program in NumPy, so fewer and wider ones are faster there.
INTERPRETED_LANES = 4096


def _lanes(X: Tensor, most: int = LANES) -> int:
    return most if X.is_cuda else INTERPRETED_LANES


def _programs(total: int, lanes: int) -> tuple[int]:
    return ((total + lanes - 1) // lanes,)


def _compute(dtype: torch.dtype) -> Any:
    return tl.float64 if dtype == torch.float64 else tl.float32


def _readable(X: Tensor, dtype: torch.dtype) -> Tensor:
    """Integers, and what is to be computed in another width, are converted; 16-bit floats are widened as they are loaded."""
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


def _in_words(X: Tensor) -> Tensor:
    """16-bit floats as 64-bit words of four where memory allows, else as they are."""
    aligned = X.stride(2) == 1 and X.shape[2] % 4 == 0 and X.data_ptr() % 8 == 0
    if X.dtype in HALF and aligned and all(stride % 4 == 0 for stride in X.stride()[:2]):
        return X.view(torch.int64)
    return X


def keep_groups(X: Tensor, mask: Tensor, n: int, m: int, at_most: bool, absolute: bool, dtype: torch.dtype, collect: bool) -> Sums:
    """Row-wise n:m of X (batch, rows, cols) into mask (batch, rows, cols rounded up to m)."""
    X = _readable(X, dtype)
    batch, rows, cols = X.shape
    a_row = mask.shape[2] // m
    total = batch * rows * a_row
    flat = X.is_contiguous() and cols == mask.shape[2]
    element = HALF.get(X.dtype)
    source = _in_words(X) if flat and m % 4 == 0 else X
    lanes = _lanes(X, max(LANES, 1 << (32 * LANES // m).bit_length() - 1))  # 4096 weights a program, and a power of two
    programs = _programs(total, lanes)
    sums = torch.empty((*programs, 4), dtype=torch.float64, device=X.device)
    thresholds = torch.empty((batch, rows, a_row) if collect else (1, 1, 1), dtype=dtype, device=X.device)
    words = m % 4 == 0
    with _on(X):
        kernels.keep_groups[programs](
            source, mask.view(torch.int32) if words else mask.view(torch.int8), thresholds, sums, total, a_row, rows, cols,
            *X.stride(), N=n, M=m, AT_MOST=at_most, ABSOLUTE=absolute, NETWORK=_network(m, (n - 1,)), FLAT=flat,
            ELEMENT=element, WORDS=words, COLLECT=collect, INFINITE=INFINITE[dtype], COMPUTE=_compute(dtype), BLOCK=lanes,
        )  # fmt: skip
    return Sums(sums.sum(0), thresholds if collect else None)


@cache
def _pairs(n: int) -> tuple[tuple[tuple[int, int, int], ...], tuple[int, ...]]:
    """The row-pattern pairs of every class, upper and lower half in turn, and where each such part begins."""
    parts = [half for split in classes(n) for half in split]
    first = (0, *accumulate(len(part) for part in parts))
    return tuple((*pair, pair_code(n, pair) << 8 * (k % 2)) for k, part in enumerate(parts) for pair in part), first


def enumerate_blocks(X: Tensor, mask: Tensor, n: int, absolute: bool, dtype: torch.dtype, scaled: bool) -> Sums:
    """Transposable n:4, exactly, as a two-stage maximum over all masks (see nmsolve.solvers.enumeration)."""
    X = _readable(X, dtype)
    a_row, block_rows = mask.shape[2] // 4, mask.shape[1] // 4
    total = mask.shape[0] * block_rows * a_row
    edges = X.shape[1:] != mask.shape[1:]
    source = X if edges else _in_words(X)
    lanes = _lanes(X)
    programs = _programs(total, lanes * TILES)
    sums = torch.empty((*programs, 4), dtype=torch.float64, device=X.device)
    pairs, first = _pairs(n)
    with _on(X):
        kernels.enumerate_blocks[programs](
            source, mask.view(torch.int32), sums, total, a_row, block_rows, *X.shape[1:], *source.stride(),
            PATTERNS=row_patterns(n), PAIRS=pairs, FIRST=first, EDGES=edges, SCALED=scaled, INFINITE=INFINITE[dtype],
            HUGE=HUGE[dtype], ABSOLUTE=absolute, ELEMENT=HALF.get(X.dtype), COMPUTE=_compute(dtype), TILES=TILES, BLOCK=lanes,
        )  # fmt: skip
    return Sums(sums.sum(0), None)


def stage(X: Tensor, mask: Tensor, m: int, absolute: bool, dtype: torch.dtype) -> Tensor:
    """Blocks side by side: (m m, N), 16-bit floats as they are, with zeros up to the shape of the mask."""
    X = _readable(X, dtype)
    a_row, block_rows = mask.shape[2] // m, mask.shape[1] // m
    total = mask.shape[0] * block_rows * a_row
    S = torch.empty((m * m, total), dtype=X.dtype, device=X.device)
    lanes = _lanes(X)
    with _on(X):
        ascent_kernels.stage[_programs(total, lanes)](
            X, S, total, a_row, block_rows, *X.shape[1:], *X.stride(), M=m, ABSOLUTE=absolute, COMPUTE=_compute(X.dtype),
            BLOCK=lanes,
        )  # fmt: skip
    return S


def write_masks(words: Tensor, mask: Tensor, m: int) -> None:
    """Masks as words (m, N) to their places in mask (batch, rows, cols)."""
    width = 4 if m % 4 == 0 else 1
    units = mask.numel() // width
    lanes = _lanes(words, 2 * LANES)
    with _on(words):
        ascent_kernels.write_masks[_programs(units, lanes)](
            words, mask.view(torch.int32 if width == 4 else torch.int8), words.shape[1], mask.shape[2] // m, units,
            M=m, WIDTH=width, BLOCK=lanes,
        )  # fmt: skip


def start(S: Tensor, n: int, m: int, at_most: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """First column duals v (m, N), and how many of the 2 m lines have equal medians: not zero, and (columns only) zero."""
    total = S.shape[1]
    v = torch.empty((m, total), dtype=dtype, device=S.device)
    equal, zero = (torch.empty(total, dtype=torch.int32, device=S.device) for _ in range(2))
    lanes = _lanes(S)
    with _on(S):
        ascent_kernels.start[_programs(total, lanes)](
            S, v, equal, zero, total, M=m, **_middle(n, m), AT_MOST=at_most, COMPUTE=_compute(dtype), BLOCK=lanes
        )
    return v, equal, zero


def ascend(
    A: Tensor, u: Tensor, v: Tensor, rounds: int, fresh: bool, omega: float, n: int, m: int, at_most: bool
) -> tuple[Tensor, Tensor]:
    """Rounds of the dual ascent on A, moving u and v in place; then the masks A − u − v > 0 and which are feasible."""
    total = A.shape[1]
    word = (tl.int64, torch.int64) if m > 31 else (tl.int32, torch.int32)
    words = torch.empty((m, total), dtype=word[1], device=A.device)
    good = torch.empty(total, dtype=torch.int8, device=A.device)
    lanes = _lanes(A)
    with _on(A):
        ascent_kernels.ascend[_programs(total, lanes)](
            A, u, v, words, good, total, rounds, 1.0 if fresh else omega, omega, N=n, M=m, **_middle(n, m), AT_MOST=at_most,
            COMPUTE=_compute(u.dtype), WORD=word[0], BLOCK=lanes,
        )  # fmt: skip
    return words, good.bool()


def relax(
    S: Tensor, words: Tensor, u: Tensor, v: Tensor, chosen: Tensor, power: Tensor, n: int, m: int, at_most: bool, sweeps: int
) -> None:
    """Bellman–Ford: where chosen, replace u, v by duals that prove the masks for S, if there are any (nmsolve.solvers.ties)."""
    total = S.shape[1]
    few = torch.empty((2 * m if at_most else 1, total), dtype=torch.int8, device=S.device)
    lanes = _lanes(S)
    with _on(S):
        ascent_kernels.relax[_programs(total, lanes)](
            S, words, u, v, torch.empty_like(u), torch.empty_like(v), few, chosen.view(torch.int8), power, total, sweeps,
            rounding_shift(u.dtype), N=n, M=m, AT_MOST=at_most, COMPUTE=_compute(u.dtype), BLOCK=lanes,
        )  # fmt: skip


def certify(S: Tensor, words: Tensor, u: Tensor, v: Tensor, n: int, m: int, at_most: bool, rounding: float) -> Certificate:
    """Objective and gap of every block in float64, from the scores, masks and duals as they stand."""
    total = S.shape[1]
    proof = Certificate(*(torch.empty(total, dtype=torch.float64, device=S.device) for _ in range(4)))
    lanes = _lanes(S)
    with _on(S):
        ascent_kernels.certify[_programs(total, lanes)](
            S, words, u, v, *proof, total, rounding, N=n, M=m, AT_MOST=at_most, BLOCK=lanes
        )
    return proof


def climb(
    S: Tensor, u: Tensor, v: Tensor, amount: Tensor, power: Tensor, delta: Tensor, rounds: tuple[int, ...], sweeps: int,
    omega: float, n: int, m: int, at_most: bool, rounding: float, tolerance: float, shrink: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Levels of the ascent in one launch: words, the level that proved each block (0: none), objective and gap of those proven."""
    total = S.shape[1]
    word = (tl.int64, torch.int64) if m > 31 else (tl.int32, torch.int32)
    words = torch.empty((m, total), dtype=word[1], device=S.device)
    level_of = torch.empty(total, dtype=torch.int32, device=S.device)
    objective, gap = (torch.zeros(total, dtype=torch.float64, device=S.device) for _ in range(2))
    A = torch.empty(S.shape, dtype=u.dtype, device=S.device)
    few = torch.empty((2 * m if at_most else 1, total), dtype=torch.int8, device=S.device)
    lanes = _lanes(S, LANES // 4)  # one warp, so that few blocks spread over many multiprocessors
    with _on(S):
        ascent_kernels.climb[_programs(total, lanes)](
            S, A, delta, u, v, torch.empty_like(u), torch.empty_like(v), few, words, amount, power, level_of, objective, gap,
            total, torch.tensor(rounds, dtype=torch.int32, device=S.device), sweeps, omega, rounding_shift(u.dtype), rounding,
            tolerance, N=n, M=m, **_middle(n, m), AT_MOST=at_most, COMPUTE=_compute(u.dtype), WORD=word[0], LEVELS=len(rounds),
            SHRINK=shrink, BLOCK=lanes, num_warps=max(1, min(4, lanes // 32)),
        )  # fmt: skip
    return words, level_of, objective, gap


def _on(X: Tensor) -> AbstractContextManager[None]:
    """Launch on the device that holds X, whichever is current."""
    return torch.cuda.device(X.device) if X.is_cuda else nullcontext()
