"""The steps of the device solvers as plain torch operations: for devices without Triton, and what its kernels are checked against.

Blocks lie in the last axis: scores S (m m, N), duals u and v (m, N), masks (m, m, N) bool; b = N blocks side by side.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nmsolve.solvers.enumeration import classes, row_patterns
from nmsolve.solvers.network import select_ranks

#: Weights that one call may stage: a few times their size is held as temporaries.
PIECE = 2**22
#: Up to how many blocks the last levels are taken in one launch: torch operations cannot.
FEW = 0


class Sums(NamedTuple):
    """What a call that writes masks itself came to.

    totals : (4,) float64 on the device: objective, bound, 0 if every score is finite, 0 if none is so large that sums overflow.
    thresholds : (batch, rows, groups), the n-th largest score of each group, or None.
    """

    totals: Tensor
    thresholds: Tensor | None


class Certificate(NamedTuple):
    """Float64, one a block: kept score, its magnitude, bound − objective, and what rounding may hide of that."""

    objective: Tensor
    size: Tensor
    gap: Tensor
    slack: Tensor


def _scores(X: Tensor, mask: Tensor, absolute: bool, dtype: torch.dtype) -> Tensor:
    """X (batch, rows, cols) widened, with zeros up to the shape of its mask."""
    S = X.to(dtype)
    S = S.abs() if absolute else S
    rows, cols = mask.shape[1] - X.shape[1], mask.shape[2] - X.shape[2]
    return torch.nn.functional.pad(S, (0, cols, 0, rows)) if rows or cols else S


def keep_groups(X: Tensor, mask: Tensor, n: int, m: int, at_most: bool, absolute: bool, dtype: torch.dtype, collect: bool) -> Sums:
    """Row-wise n:m of X (batch, rows, cols) into mask (batch, rows, cols rounded up to m)."""
    S = _scores(X, mask, absolute, dtype).reshape(*mask.shape[:2], -1, m)
    order = torch.sort(S, dim=3, descending=True, stable=True)
    kept = torch.zeros_like(S, dtype=torch.bool).scatter_(3, order.indices[..., :n], True)
    if at_most:
        kept &= S > 0
    mask.copy_(kept.flatten(2))
    objective = torch.where(kept, S, 0).sum(dtype=torch.float64)
    thresholds = order.values[..., n - 1] if collect else None
    return Sums(torch.stack([objective, objective, _count(~torch.isfinite(S)), torch.zeros_like(objective)]), thresholds)


def stage(X: Tensor, mask: Tensor, m: int, absolute: bool, dtype: torch.dtype) -> Tensor:
    """Blocks side by side: (m m, N), of X (batch, rows, cols) with zeros up to the shape of the mask."""
    S = _scores(X, mask, absolute, dtype)
    batch, rows, cols = S.shape
    blocks = S.reshape(batch, rows // m, m, cols // m, m)
    return blocks.permute(2, 4, 0, 1, 3).reshape(m * m, -1)


def write_masks(kept: Tensor, mask: Tensor, m: int) -> None:
    """Masks (m, m, N) to their places in mask (batch, rows, cols)."""
    batch, rows, cols = mask.shape
    mask.copy_(kept.view(m, m, batch, rows // m, cols // m).permute(2, 3, 0, 4, 1).reshape(batch, rows, cols))


def enumerate_blocks(X: Tensor, mask: Tensor, n: int, absolute: bool, dtype: torch.dtype, scaled: bool) -> Sums:
    """Transposable n:4, exactly, as a two-stage maximum over all masks (see nmsolve.solvers.enumeration).

    scaled : whether blocks of huge scores are scaled first, which takes longer; without, their sums may overflow.
    """
    S = stage(X, mask, 4, absolute, dtype).view(4, 4, -1)
    patterns = row_patterns(n)
    huge = S.amax((0, 1)) > (2.0**1000 if dtype == torch.float64 else 2.0**120)
    scale = torch.where(huge, 2.0**-8, 1.0).to(dtype) if scaled else torch.ones_like(S[0, 0])
    T = S * scale
    rows = [[sum((T[i, j] for j in p[1:]), T[i, p[0]]) for p in patterns] for i in range(4)]

    def best_pair(upper: int, pairs: tuple[tuple[int, int], ...]) -> tuple[Tensor, Tensor]:
        value = rows[upper][pairs[0][0]] + rows[upper + 1][pairs[0][1]]
        code = torch.full(value.shape, pair_code(n, pairs[0]), dtype=torch.int32, device=X.device)
        for pair in pairs[1:]:
            rival = rows[upper][pair[0]] + rows[upper + 1][pair[1]]
            code = torch.where(rival > value, pair_code(n, pair), code)
            value = torch.maximum(rival, value)
        return value, code

    best = code = None
    for above, below in classes(n):
        high, high_code = best_pair(0, above)
        low, low_code = best_pair(2, below)
        value, both = high + low, high_code | (low_code << 8)
        if best is None or code is None:
            best, code = value, both
        else:
            code = torch.where(value > best, both, code)
            best = torch.maximum(value, best)
    assert best is not None
    assert code is not None
    kept = torch.stack([(code >> bit) & 1 for bit in range(16)]).bool().view(4, 4, -1)
    write_masks(kept, mask, 4)
    objective = torch.where(kept, S, 0).sum(dtype=torch.float64)
    bound = (best.double() / scale).sum()
    return Sums(torch.stack([objective, bound, _count(~torch.isfinite(S)), _count(huge)]), None)


def _count(true: Tensor) -> Tensor:
    return true.sum(dtype=torch.float64)


def pair_code(n: int, pair: tuple[int, int]) -> int:
    """Two rows of a mask as eight bits, bit 4 * row + column."""
    return sum(1 << (4 * row + j) for row, pattern in enumerate(pair) for j in row_patterns(n)[pattern])


def _middle(S: Tensor, other: Tensor, by_row: bool, n: int, m: int) -> tuple[Tensor, Tensor]:
    """The n-th and (n+1)-th largest of every line of S − other: (m, N) each."""
    grid = S.view(m, m, -1)
    line = [(grid[:, k] if by_row else grid[k]) - other[k] for k in range(m)]
    upper, lower = select_ranks(line, (n - 1, min(n, m - 1)), torch.maximum, torch.minimum)
    return upper, lower


def start(S: Tensor, n: int, m: int, at_most: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """First column duals v (m, N), and how many of the 2 m lines have equal medians: not zero, and (columns only) zero."""
    equal = zero = torch.zeros(S.shape[1], dtype=torch.int32, device=S.device)
    v = torch.zeros((m, S.shape[1]), dtype=dtype, device=S.device)
    none = torch.zeros_like(v)
    for by_row in (False, True):
        upper, lower = _middle(S.to(dtype), none, by_row, n, m)
        tied, null = upper == lower, upper == 0
        equal = equal + (tied & ~null).sum(0, dtype=torch.int32)
        if not by_row:
            zero = zero + (tied & null).sum(0, dtype=torch.int32)
            v = (upper + lower) * 0.25
    return (v.clamp_min(0) if at_most else v), equal, zero


def ascend(
    A: Tensor, u: Tensor, v: Tensor, rounds: int, fresh: bool, omega: float, n: int, m: int, at_most: bool
) -> tuple[Tensor, Tensor]:
    """Rounds of the dual ascent on A, moving u and v in place; then the masks A − u − v > 0 and which are feasible."""
    A = A.to(u.dtype)
    for k in range(rounds):
        step = 1.0 if fresh and k == 0 else omega
        for mine, other, by_row in ((u, v, True), (v, u, False)):
            upper, lower = _middle(A, other, by_row, n, m)
            mine += ((upper + lower) * 0.5 - mine) * step
            if at_most:
                mine.clamp_min_(0)
    kept = (A.view(m, m, -1) - u[:, None]) - v[None] > 0
    good = torch.ones(A.shape[1], dtype=torch.bool, device=A.device)
    for axis, dual in ((1, u), (0, v)):
        count = kept.sum(axis)
        fine = count == n
        if at_most:
            fine |= (count < n) & (dual == 0)
        good &= fine.all(0)
    return kept, good


def relax(
    S: Tensor, kept: Tensor, u: Tensor, v: Tensor, chosen: Tensor, power: Tensor, n: int, m: int, at_most: bool, sweeps: int
) -> None:
    """Bellman–Ford: where chosen, replace u, v by duals that prove `kept` for S, if there are any (nmsolve.solvers.ties)."""
    if not bool(chosen.any()):
        return
    grid = S.to(u.dtype).view(m, m, -1)
    grain = power * rounding_shift(u.dtype)
    ru, rw = u + grain - grain, grain - (v + grain)
    z = torch.zeros_like(power)
    few_row, few_column = kept.sum(1) < n, kept.sum(0) < n
    never = torch.full_like(grid, torch.inf)
    for _ in range(sweeps):
        if at_most:
            z = torch.minimum(z, torch.minimum(ru, torch.where(few_column, rw, torch.inf)).amin(0))
            rw = torch.minimum(rw, z)
            ru = torch.where(few_row, torch.minimum(ru, z), ru)
        ru = torch.minimum(ru, torch.where(kept, rw[None] + grid, never).amin(1))
        rw = torch.minimum(rw, torch.where(kept, never, ru[:, None] - grid).amin(0))
    new_u, new_v = (ru - z).clamp_min(0) if at_most else ru, (z - rw).clamp_min(0) if at_most else -rw
    u.copy_(torch.where(chosen, new_u, u))
    v.copy_(torch.where(chosen, new_v, v))


def rounding_shift(dtype: torch.dtype) -> float:
    """Adding and subtracting this times a power of two rounds to a 4096th of it (nmsolve.solvers.ties.GRID)."""
    return float(1.5 * 2.0 ** (52 if dtype == torch.float64 else 23) * 2.0**-12)


def certify(S: Tensor, kept: Tensor, u: Tensor, v: Tensor, n: int, m: int, at_most: bool, rounding: float) -> Certificate:
    """Objective and gap of every block in float64, from the scores, masks and duals as they stand."""
    grid, rows, columns = S.double().view(m, m, -1), u.double(), v.double()
    rest = grid - rows[:, None] - columns[None]
    gap = torch.where(kept, -rest, rest).clamp_min_(0).sum((0, 1))
    if at_most:
        gap += (rows * (n - kept.sum(1))).sum(0) + (columns * (n - kept.sum(0))).sum(0)
    value = torch.where(kept, grid, 0.0)
    return Certificate(value.sum((0, 1)), value.abs().sum((0, 1)), gap, rounding * m * columns.abs().sum(0))
