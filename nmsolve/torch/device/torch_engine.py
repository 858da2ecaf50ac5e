"""The engine of torch operations: for devices without Triton, and what its kernels are checked
against.

Blocks lie in the last axis: scores S (m m, N), duals u and v (m, N), masks (m, m, N) bool; N blocks
side by side.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nmsolve.solvers import APART, FINE
from nmsolve.solvers.ascent_group import ROUNDING
from nmsolve.solvers.block_masks import classes, pair_code, row_patterns
from nmsolve.solvers.network import select_ranks
from nmsolve.solvers.ties import COARSE, HINT, LATTICE, SHRINK, ZEROS, offsets
from nmsolve.solvers.ties import FINE as SLIGHT
from nmsolve.torch.device.blocks import keep_at, scores_at
from nmsolve.torch.device.problem import MARGIN, Blocks, Problem, Sums, extreme_limit

#: Weights that one call may stage: a few times their size is held as temporaries.
PIECE = 2**22


class Certificate(NamedTuple):
    """Float64, one a block: kept score, its magnitude, bound − objective, and what rounding may
    hide of that.
    """

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
    S = _scores(X, mask, absolute, dtype).reshape(*mask.shape[:2], -1, m)
    order = torch.sort(S, dim=3, descending=True, stable=True)
    kept = torch.zeros_like(S, dtype=torch.bool).scatter_(3, order.indices[..., :n], True)
    if at_most:
        kept &= S > 0
    mask.copy_(kept.flatten(2))
    objective = torch.where(kept, S, 0).sum(dtype=torch.float64)
    thresholds = order.values[..., n - 1] if collect else None
    return Sums(
        torch.stack(
            [objective, objective, _count(~torch.isfinite(S)), torch.zeros_like(objective)]
        ),
        thresholds,
        None,
    )


def stage(X: Tensor, mask: Tensor, m: int, absolute: bool, dtype: torch.dtype) -> Tensor:
    """Blocks side by side: (m m, N), of X (batch, rows, cols) with zeros up to the shape of the
    mask.
    """
    S = _scores(X, mask, absolute, dtype)
    batch, rows, cols = S.shape
    blocks = S.reshape(batch, rows // m, m, cols // m, m)
    return blocks.permute(2, 4, 0, 1, 3).reshape(m * m, -1)


def write_masks(kept: Tensor, mask: Tensor, m: int) -> None:
    """Masks (m, m, N) to their places in mask (batch, rows, cols)."""
    batch, rows, cols = mask.shape
    mask.copy_(
        kept.view(m, m, batch, rows // m, cols // m)
        .permute(2, 3, 0, 4, 1)
        .reshape(batch, rows, cols)
    )


def enumerate_blocks(
    X: Tensor, mask: Tensor, n: int, absolute: bool, dtype: torch.dtype, again: bool
) -> Sums:
    """Transposable n:4, exactly, as a two-stage maximum over all masks (see
    nmsolve.solvers.enumeration).

    again : scale blocks of huge scores first, and find those that are apart; otherwise sums may
    overflow.
    """
    S = stage(X, mask, 4, absolute, dtype).view(4, 4, -1)
    patterns = row_patterns(n)
    huge = S.amax((0, 1)) > (2.0**1000 if dtype == torch.float64 else 2.0**120)
    scale = torch.where(huge, 2.0**-8, 1.0).to(dtype) if again else torch.ones_like(S[0, 0])
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
    apart = _apart(S.view(16, -1), kept, _magnitude(S.view(16, -1))[0])
    left = apart if again else torch.zeros_like(apart)
    objective = torch.where(kept & ~left, S, 0).sum(dtype=torch.float64)
    bound = torch.where(left, 0, best.double() / scale).sum()
    totals = torch.stack([objective, bound, _count(~torch.isfinite(S)), _count(huge | apart)])
    return Sums(totals, None, apart.to(torch.int8) if again else None)


def _apart(S: Tensor, kept: Tensor, top: Tensor) -> Tensor:
    """Return which blocks are apart (nmsolve.solvers.APART), of scores (m m, N), masks (m, m, N)
    and their largest magnitudes.
    """
    rows = torch.where(kept, S.abs().view(kept.shape), 0).sum(1)
    return ((rows > 0) & (rows < _power_of_two(top) * APART)).any(0)


def _count(true: Tensor) -> Tensor:
    return true.sum(dtype=torch.float64)


def _middle(S: Tensor, other: Tensor, by_row: bool, n: int, m: int) -> tuple[Tensor, Tensor]:
    """The n-th and (n+1)-th largest of every line of S − other: (m, N) each."""
    grid = S.view(m, m, -1)
    line = [(grid[:, k] if by_row else grid[k]) - other[k] for k in range(m)]
    upper, lower = select_ranks(line, (n - 1, min(n, m - 1)), torch.maximum, torch.minimum)
    return upper, lower


def start(S: Tensor, n: int, m: int, at_most: bool) -> tuple[Tensor, Tensor, Tensor]:
    """First column duals v (m, N), and how many of the 2 m lines have equal medians: not zero, and
    (columns only) zero.
    """
    equal = zero = torch.zeros(S.shape[1], dtype=torch.int32, device=S.device)
    v = S.new_zeros((m, S.shape[1]))
    none = torch.zeros_like(v)
    for by_row in (False, True):
        upper, lower = _middle(S, none, by_row, n, m)
        tied, null = upper == lower, upper == 0
        equal = equal + (tied & ~null).sum(0, dtype=torch.int32)
        if not by_row:
            zero = zero + (tied & null).sum(0, dtype=torch.int32)
            v = (upper + lower) * 0.25
    return (v.clamp_min(0) if at_most else v), equal, zero


def ascend(
    A: Tensor,
    u: Tensor,
    v: Tensor,
    rounds: int,
    fresh: bool,
    omega: float,
    n: int,
    m: int,
    at_most: bool,
) -> tuple[Tensor, Tensor]:
    """Rounds of the dual ascent on A, moving u and v in place; then the masks A − u − v > 0 and
    which are feasible.
    """
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
    S: Tensor,
    kept: Tensor,
    u: Tensor,
    v: Tensor,
    chosen: Tensor,
    power: Tensor,
    n: int,
    m: int,
    at_most: bool,
    sweeps: int,
) -> None:
    """Bellman–Ford: where chosen, replace u, v by duals that prove `kept` for S, if there are any
    (nmsolve.solvers.ties).
    """
    if not bool(chosen.any()):
        return
    grid = S.view(m, m, -1)
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
    new_u, new_v = (
        (ru - z).clamp_min(0) if at_most else ru,
        (z - rw).clamp_min(0) if at_most else -rw,
    )
    u.copy_(torch.where(chosen, new_u, u))
    v.copy_(torch.where(chosen, new_v, v))


def rounding_shift(dtype: torch.dtype) -> float:
    """Adding and subtracting this times a power of two rounds to a 4096th of it
    (nmsolve.solvers.ties.GRID).
    """
    return float(1.5 * 2.0 ** (52 if dtype == torch.float64 else 23) * 2.0**-12)


def certify(
    S: Tensor, kept: Tensor, u: Tensor, v: Tensor, n: int, m: int, at_most: bool, rounding: float
) -> Certificate:
    """Objective and gap of every block in float64, from the scores, masks and duals as they
    stand.
    """
    grid, rows, columns = S.double().view(m, m, -1), u.double(), v.double()
    rest = grid - rows[:, None] - columns[None]
    gap = torch.where(kept, -rest, rest).clamp_min_(0).sum((0, 1))
    if at_most:
        gap += (rows * (n - kept.sum(1))).sum(0) + (columns * (n - kept.sum(0))).sum(0)
    value = torch.where(kept, grid, 0.0)
    return Certificate(
        value.sum((0, 1)), value.abs().sum((0, 1)), gap, rounding * m * columns.abs().sum(0)
    )


def ascend_first(X: Tensor, mask: Tensor, problem: Problem, collect: bool) -> tuple[Blocks, Tensor]:
    """The first level of the ascent on all blocks (see `problem.Engine`)."""
    n, m, at_most = problem.pattern.n, problem.pattern.m, problem.pattern.at_most
    S = stage(X, mask, m, problem.absolute, problem.dtype)
    top, _, scale = _magnitude(S)
    T = S / scale
    lossless = (T * scale == S).all(0)
    v, _, _ = start(T, n, m, at_most)
    u = torch.zeros_like(v)
    kept, good = ascend(T, u, v, problem.rounds[0], True, problem.omega, n, m, at_most)
    rest = (T.view(m, m, -1) - u[:, None]) - v[None]
    closed = (
        good
        & lossless
        & (rest.abs().amin((0, 1)) > v.abs().amax(0) * (MARGIN * torch.finfo(problem.dtype).eps))
    )
    write_masks(kept, mask, m)
    value = torch.where(kept, S.view(m, m, -1), 0).sum((0, 1), dtype=torch.float64)
    objective = torch.where(closed, value, 0).sum()
    sums = [objective, torch.zeros_like(objective), _count(~torch.isfinite(top)), _count(closed)]
    return Blocks(u, v, scale, (~closed).to(torch.int8)), torch.stack(sums)


def ascend_rest(
    X: Tensor, mask: Tensor, problem: Problem, blocks: Blocks, unproven: int, collect: bool
) -> tuple[Tensor, Tensor]:
    """All levels on the blocks that are open, after each of which what is left is squeezed together
    (see `problem.Engine`).
    """
    n, m, at_most = problem.pattern.n, problem.pattern.m, problem.pattern.at_most
    found = place = torch.nonzero(blocks.open).squeeze(1)
    S = scores_at(X, mask, place, problem).permute(1, 2, 0).reshape(m * m, -1)
    _, power, scale = _magnitude(S)
    lossless = (S / scale * scale == S).all(
        0
    )  # else scores are so far apart that nothing is proven of them here
    S = S / scale
    v, equal, zero = start(S, n, m, at_most)
    u = torch.zeros_like(v)
    amount, everywhere = _ties(S, power, equal, zero, m)
    delta = torch.as_tensor(offsets(m), device=S.device).to(S.dtype)[:, None]
    objective = gap = torch.zeros((), dtype=torch.float64, device=S.device)
    levels = []
    for level, rounds in enumerate(problem.rounds):
        A = S + torch.where(everywhere | (S == 0), delta * amount, 0.0)
        kept, good = ascend(A, u, v, rounds, level == 0, problem.omega, n, m, at_most)
        relax(S, kept, u, v, good & (amount > 0), power, n, m, at_most, problem.sweeps)
        proof = certify(S, kept, u, v, n, m, at_most, ROUNDING)
        closed = good & lossless & _within(proof, S, kept, problem.tolerance)
        keep_at(mask, place[closed], kept[..., closed].permute(2, 0, 1))
        if collect:
            blocks.u[:, place], blocks.v[:, place] = u, v
        objective = objective + torch.where(closed, proof.objective * scale, 0).sum()
        gap = gap + torch.where(closed, proof.gap * scale, 0).sum()
        levels.append(_count(closed))
        blocks.open[place[closed]] = 0
        amount = torch.where(good, amount / SHRINK, amount)
        amount = torch.where(
            amount == 0, power * torch.where(equal > 0, HINT, SLIGHT).to(S.dtype), amount
        )
        left = torch.nonzero(~closed).squeeze(1)
        if not left.numel():
            break
        S, u, v = (field.index_select(1, left) for field in (S, u, v))
        amount, power, scale, lossless, equal, place = (
            field.index_select(0, left) for field in (amount, power, scale, lossless, equal, place)
        )
        everywhere = torch.ones_like(left, dtype=torch.bool)
    levels += [torch.zeros_like(gap)] * (len(problem.rounds) - len(levels))
    return found, torch.stack([objective, gap, *levels])


def _magnitude(S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of every block: its largest score, the power of two of that after scaling, and what extreme
    scores are divided by.
    """
    top = S.abs().amax(0)
    power = _power_of_two(top)
    limit = extreme_limit(S.dtype)
    extreme = (power > limit) | (power < 1 / limit)
    scale = torch.where(extreme, power, 1.0)
    # A subnormal maximum is scaled too little to reach 1.
    return top, torch.where(extreme, _power_of_two(top / scale), power), scale


def _power_of_two(top: Tensor) -> Tensor:
    """The largest power of two that is no larger, of subnormal numbers the least normal one, of 0
    it is 1.
    """
    wide = top.dtype == torch.float64
    bits, exponent, least = (
        (torch.int64, 0x7FF0 << 48, 2.0**-1022) if wide else (torch.int32, 0x7F800000, 2.0**-126)
    )
    power = (top.view(bits) & exponent).view(top.dtype).clamp_min(least)
    return torch.where(top == 0, 1.0, power)


def _ties(S: Tensor, power: Tensor, equal: Tensor, zero: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """First offsets of every block, and where every entry is shifted by it, not zeros alone
    (nmsolve.solvers.ties.flag_ties).
    """
    steps = S[:m] * (COARSE / power)
    coarse = (steps.round() == steps).all(0)
    everywhere = (equal >= max(3, m // 2)) | ((equal > 0) & coarse)
    return torch.where(
        everywhere, power * LATTICE, torch.where(zero > 0, power * ZEROS, 0.0)
    ), everywhere


def _within(proof: Certificate, S: Tensor, kept: Tensor, tolerance: float) -> Tensor:
    """Where a gap is within tolerance of the magnitude kept, or of the least score that is not zero
    if that is more.
    """
    magnitude = S.double().abs()
    least = torch.where(magnitude > 0, magnitude, torch.inf).amin(0)
    gap, most = proof.gap + proof.slack, torch.maximum(proof.size, least)
    fine = ~_apart(S, kept, S.abs().amax(0)) | (gap <= FINE / 4 * most)
    return (gap <= tolerance * most) & fine
