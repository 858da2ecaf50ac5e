"""Transposable n:m blocks: dual ascent on order statistics, proven block by block, 16 blocks side
by side.

The program of one block with scores S is

    maximise Σ S_ij X_ij,   X ∈ {0, 1}^(m × m),   every row and column of X sums to n (at most: ≤ n)

and any duals (≥ 0 for at most) bound it by n Σ u_i + n Σ v_j + Σ max(0, S_ij − u_i − v_j). For
fixed v the bound is least when u_i lies between the n-th and the (n+1)-th largest of S_i· − v, so
the ascent moves every u_i, then every v_j, to the midpoint and, over-relaxed, beyond. Once X = (S −
u − v > 0) keeps n in every line, X is optimal and u, v prove it.

1. A few rounds for every group of 16 blocks; what is proven is written.
2. The others queue with their duals, and 16 of a queue are a full group again, for more rounds
   (three times).
3. What is left is finished alone by shortest augmenting paths (`augment`), which never fails.

Ties are separated by a small offset while a block ascends (`ties`), and scores far larger than the
others are clipped (`apart`). Whatever path a block took, its certificate is evaluated in float64,
and holds for the scores as given.
"""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from nmsolve.pattern import Pattern
from nmsolve.solvers import FINE as EXACT
from nmsolve.solvers import Run, TaskResult
from nmsolve.solvers.apart import bound_above, closes, codes, finish
from nmsolve.solvers.ascent_lanes import (
    certify_row,
    copy_mask_row,
    half_step,
    judge_line,
    sign_row,
    stage_line,
    start_line,
    write_mask_row,
)
from nmsolve.solvers.compiled import BUILD, STORAGE, array, kernel, part, specialise
from nmsolve.solvers.ties import FINE, HINT, LANES, SHRINK, flag_ties, offsets, shift, unshift

LEVELS = 4
#: What `ascend` counts: blocks proven at each level, finished by augmenting paths, the paths,
#: blocks left unproven.
COUNTS = LEVELS + 3
#: Float64's unit, doubled for what summing adds.
ROUNDING = 2.0**-51

# One group in the lanes: scores, shifted scores, mask bits and counts, and per lane the block's
# place, scale and certificate.
Group = namedtuple(
    "Group",
    "S A bits row_count column_count equal zero low rows columns places bound scale lost objective "
    "size gap slack good everywhere power top relaxed",
)
# Blocks that wait for a level, two groups' worth, in lane layout.
Queue = namedtuple("Queue", "rows columns u v amount bound waiting")


@part
def _stage(X, row_stride, adjacent, absolute, g, m):
    """Scores of the 16 blocks at g.rows, g.columns into the lanes, clipped to g.bound, extreme
    magnitudes scaled by a power of two.

    g.lost: what scaling may have taken from a mask's value and from the bound on it, where scores
    are too far apart for it. Returns False if a score is not finite.
    """
    item = X.itemsize
    for lane in range(LANES):
        g.places[lane] = g.rows[lane] * row_stride + g.columns[lane]
    base = g.places[0] if adjacent else 0
    top = g.top
    top[:] = 0
    for i in range(m):
        stage_line(
            X, base + i * row_stride, g.places, adjacent, absolute, g.S, i * m * LANES, top, m
        )
    exponent = 0x7FF0000000000000 if item == 8 else 0x7F800000
    limit = 2.0**500 if item == 8 else 2.0**60
    smallest = 2.0**-1022 if item == 8 else 2.0**-126
    extreme = False
    for lane in range(LANES):
        if top[lane] >= exponent:
            return False
        if float(g.power[lane]) > g.bound[lane]:
            g.power[lane] = g.bound[lane]
            for k in range(m * m):
                g.S[k * LANES + lane] = min(
                    max(float(g.S[k * LANES + lane]), -g.bound[lane]), g.bound[lane]
                )
        largest = float(g.power[lane])
        top[lane] &= exponent
        power = 1.0 if largest == 0.0 else max(float(g.power[lane]), smallest)
        out = power > limit or power < 1.0 / limit
        g.scale[lane] = power if out else 1.0
        g.power[lane] = power
        if out:  # a subnormal maximum is scaled too little to reach 1
            g.power[lane] = math.ldexp(1.0, math.frexp(largest / power)[1] - 1)
        g.lost[lane] = 0.0
        extreme |= out
    if extreme:
        quantum = 2.0**-1074 if item == 8 else 2.0**-149
        for k in range(m * m):
            for lane in range(LANES):
                score = float(g.S[k * LANES + lane])
                g.S[k * LANES + lane] *= 1.0 / g.scale[lane]
                if float(g.S[k * LANES + lane]) * g.scale[lane] != score:
                    g.lost[lane] = 2.0 * m * m * quantum
    return True


@part
def _ascend_group(T, u, v, rounds, fresh, omega, g, n, m, at_most):
    """Rounds of the ascent on T, then the masks T − u − v > 0 and the lanes where they are
    feasible.
    """
    for k in range(rounds):
        step = 1.0 if fresh and k == 0 else omega
        for i in range(m):
            half_step(T, i * m * LANES, LANES, v, u, i * LANES, step, n, m, at_most)
        for j in range(m):
            half_step(T, j * LANES, m * LANES, u, v, j * LANES, step, n, m, at_most)
    g.column_count[:] = 0
    g.good[0] = 0xFFFF
    for i in range(m):
        sign_row(T, i * m * LANES, u, i * LANES, v, g.bits, g.row_count, g.column_count, m)
        judge_line(g.row_count, i * LANES, u, g.good, n, at_most)
    for j in range(m):
        judge_line(g.column_count, j * LANES, v, g.good, n, at_most)


@part
def _certify(u, v, g, n, m, at_most):
    """Objective, its magnitude and gap of every lane in float64, from the scores, masks and duals
    as they stand.

    S − u − v is rounded twice, by at most 2 ε |r| + ε |v_j|. The slack is what that may hide:
    nothing, but for duals so large that they swallow scores.
    """
    g.objective[:] = 0.0
    g.size[:] = 0.0
    g.gap[:] = 0.0
    g.slack[:] = 0.0
    for i in range(m):
        certify_row(g.S, i * m * LANES, g.bits, u, i * LANES, v, g.objective, g.size, g.gap, m)
    for k in range(m):
        for lane in range(LANES):
            g.slack[lane] += ROUNDING * m * abs(float(v[k * LANES + lane]))
    for lane in range(LANES):
        g.slack[lane] += g.lost[lane]
    if at_most:
        for k in range(m):
            for lane in range(LANES):
                at = k * LANES + lane
                g.gap[lane] += float(u[at]) * (n - g.row_count[at]) + float(v[at]) * (
                    n - g.column_count[at]
                )


@part
def _read(X, row, column, absolute, block):
    """A block's scores as given, in float64."""
    for i in range(block.shape[0]):
        for j in range(block.shape[0]):
            x = float(X[row + i, column + j])
            block[i, j] = abs(x) if absolute else x


@part
def _part_lanes(X, absolute, g, n, m, at_most, block):
    """What lanes whose largest score is far above their medians are to be clipped to (`apart`).
    Returns whether any is.
    """
    found = False
    for lane in range(LANES):
        if float(g.power[lane]) > 2.0 * n * m * max(float(g.low[lane]), float(g.low[LANES + lane])):
            _read(X, g.rows[lane], g.columns[lane], absolute, block)
            g.bound[lane] = bound_above(block, n, at_most == 1, 0.0)
            found |= g.bound[lane] < np.inf
    return found


@part
def _closed(g, lane, tolerance, m, block, kept):
    """Whether a lane's mask is proven: for its scores as they were clipped and, with them, for
    those as given.
    """
    loose, slack = g.gap[lane], g.slack[lane]
    for i in range(m):
        for j in range(m):
            block[i, j] = float(g.S[(i * m + j) * LANES + lane])
            kept[i, j] = (g.bits[i * m + j] >> lane) & 1
    if g.bound[lane] < np.inf or g.lost[lane] > 0.0:
        tolerance = min(
            tolerance, 0.25 * EXACT
        )  # what lies apart is to be seen from scores as they are given
    closed = closes(block, kept, g.size[lane], loose + slack, tolerance, g.lost[lane])
    if (
        closed and g.bound[lane] < np.inf
    ):  # a clipped score is as large as the bound, and no other is
        bound = g.bound[lane] / g.scale[lane]
        for i in range(m):
            for j in range(m):
                closed &= (block[i, j] < bound or kept[i, j] == 1) and (
                    block[i, j] > -bound or kept[i, j] == 0
                )
    return closed


@part
def _enqueue(queue, level, g, u, v, amount, lane, feasible, m):
    """Hand a block to a level with its duals and the offset it is to run with there."""
    at = queue.waiting[level]
    half, slot = at // LANES, at % LANES
    queue.rows[level, at], queue.columns[level, at] = g.rows[lane], g.columns[lane]
    for k in range(m):
        queue.u[level, half, k * LANES + slot] = u[k * LANES + lane]
        queue.v[level, half, k * LANES + slot] = v[k * LANES + lane]
    share = amount[lane] / SHRINK if feasible else amount[lane]
    if share == 0.0:
        share = g.power[lane] * (HINT if g.equal[lane] > 0 else FINE)
    queue.amount[level, half, slot] = share
    queue.bound[level, at] = g.bound[lane]
    queue.waiting[level] = at + 1


@part
def _dequeue(queue, level, taken):
    """Drop the group that was solved; what waits behind it moves up."""
    rest = queue.waiting[level] - taken
    for k in range(rest):
        queue.rows[level, k], queue.columns[level, k] = (
            queue.rows[level, LANES + k],
            queue.columns[level, LANES + k],
        )
        queue.bound[level, k] = queue.bound[level, LANES + k]
    if rest > 0:
        queue.u[level, 0] = queue.u[level, 1]
        queue.v[level, 0] = queue.v[level, 1]
        queue.amount[level, 0] = queue.amount[level, 1]
    queue.waiting[level] = rest


@kernel
def ascend(
    X,
    top,
    absolute,
    mask,
    first,
    last,
    n,
    m,
    at_most,
    delta,
    tolerance,
    rounds,
    sweeps,
    omega,
    masks,
    duals_u,
    duals_v,
    sums,
    counts,
    build,
):
    """Solve block rows first … last − 1 of X (rows, cols) into mask (rows, cols) uint8.

    X float32 or float64, elements of a row adjacent; n, m and at_most (0 or 1) are literals; top
    (16,) is integer scratch of X's width. `rounds` a level; `tolerance` the gap up to which a block
    counts as proven, as a share of the magnitude it keeps; `masks` as `apart.codes` lists them.
    Writes duals (blocks, m) unless the arrays are empty; adds objective and gap to sums, and to
    counts (COUNTS,). Returns False, with part of the mask written, if a score is not finite.
    """
    dtype = X.dtype
    row_stride, mask_stride = X.strides[0] // X.itemsize, mask.strides[0]
    width = X.shape[1]
    line = m * LANES
    g = Group(
        np.empty(m * line, dtype), np.empty(m * line, dtype), np.empty(m * m, np.uint16),
        np.empty(line, np.int32), np.empty(line, np.int32), np.empty(LANES, np.int32),
        np.empty(LANES, np.int32),
        np.empty(2 * LANES, dtype), np.zeros(LANES, np.int64), np.zeros(LANES, np.int64),
        np.zeros(LANES, np.int64),
        np.empty(LANES), np.ones(LANES), np.zeros(LANES), np.empty(LANES), np.empty(LANES),
        np.empty(LANES), np.empty(LANES),
        np.empty(1, np.uint16), np.empty(1, np.uint16),
        top.view(dtype), top, np.empty((4 * m + 2, LANES), dtype),
    )  # fmt: skip
    queue = Queue(
        np.zeros((LEVELS, 2 * LANES), np.int64), np.zeros((LEVELS, 2 * LANES), np.int64),
        np.zeros((LEVELS, 2, line), dtype), np.zeros((LEVELS, 2, line), dtype),
        np.zeros((LEVELS, 2, LANES), dtype), np.full((LEVELS, 2 * LANES), np.inf),
        np.zeros(LEVELS, np.int64),
    )  # fmt: skip
    ignored, zeros = np.empty(LANES, np.int32), np.zeros(line, dtype)
    block, kept, tile = (
        np.empty((m, m), np.float64),
        np.empty((m, m), np.uint8),
        np.empty(m * line, np.uint8),
    )
    clipped, other = np.empty((m, m), np.float64), np.empty((m, m), np.uint8)
    cu, cv, floats = (
        np.empty(m, np.float64),
        np.empty(m, np.float64),
        np.empty(2 * m + 1, np.float64),
    )
    integers = np.empty((4, 2 * m + 1), np.int64)

    row, column = first * m, 0
    while True:
        # The deepest queue that fills a group goes first, one that does not only when nothing else
        # is left.
        level = -1
        for q in range(LEVELS - 1, -1, -1):
            if queue.waiting[q] >= LANES:
                level = q
                break
        adjacent = False
        if column == width:
            row, column = row + m, 0
        if level < 0 and row < last * m:
            if (
                column + line > width
            ):  # the end of a row, or a narrow matrix: blocks that are no neighbours
                queue.rows[0, queue.waiting[0]], queue.columns[0, queue.waiting[0]] = row, column
                queue.waiting[0] += 1
                column += m
                continue
            level, adjacent = 0, True
        if level < 0:
            for q in range(LEVELS):
                if queue.waiting[q] > 0:
                    level = q
                    break
            if level < 0:
                return True
        filled = LANES if adjacent else min(queue.waiting[level], LANES)
        for lane in range(LANES):
            from_queue = min(lane, filled - 1)
            g.rows[lane] = row if adjacent else queue.rows[level, from_queue]
            g.columns[lane] = column + lane * m if adjacent else queue.columns[level, from_queue]
            g.bound[lane] = np.inf if level == 0 else queue.bound[level, from_queue]
        if adjacent:
            column += line
        u, v, amount = queue.u[level, 0], queue.v[level, 0], queue.amount[level, 0]
        g.everywhere[0] = 0xFFFF
        clipping = False
        while True:
            if not _stage(X, row_stride, adjacent, absolute, g, m):
                return False
            if level > 0:
                break
            g.equal[:] = 0
            g.zero[:] = 0
            g.low[:LANES] = 0
            g.low[LANES:] = np.inf
            for j in range(m):
                start_line(
                    g.S,
                    j * LANES,
                    line,
                    zeros,
                    v,
                    j * LANES,
                    0.5,
                    g.equal,
                    g.zero,
                    g.low,
                    n,
                    m,
                    at_most,
                )
            for i in range(m):
                start_line(
                    g.S,
                    i * line,
                    LANES,
                    zeros,
                    u,
                    i * LANES,
                    0.5,
                    g.equal,
                    ignored,
                    g.low,
                    n,
                    m,
                    at_most,
                )
            large = False
            for lane in range(LANES):
                large |= float(g.power[lane]) > 2.0 * n * m * max(
                    float(g.low[lane]), float(g.low[LANES + lane])
                )
            if clipping or not large or not _part_lanes(X, absolute, g, n, m, at_most, block):
                break
            clipping = True
        if level == 0:
            flag_ties(g.S, g.equal, g.zero, g.power, amount, g.everywhere, m)
        shifted = shift(g.S, amount, g.everywhere, delta, g.A, m)
        _ascend_group(
            g.A if shifted else g.S, u, v, rounds[level], level == 0, omega, g, n, m, at_most
        )
        if shifted and g.good[0] != 0:
            unshift(
                g.S,
                g.bits,
                g.row_count,
                g.column_count,
                u,
                v,
                amount,
                g.power,
                g.good,
                g.relaxed,
                n,
                m,
                at_most,
                sweeps,
            )
        _certify(u, v, g, n, m, at_most)

        if g.good[0] != 0:
            for i in range(m):
                if adjacent:
                    write_mask_row(g.bits, i, mask, (g.rows[0] + i) * mask_stride + g.columns[0], m)
                else:
                    write_mask_row(g.bits, i, tile, i * line, m)
        for lane in range(filled):
            r, c = g.rows[lane], g.columns[lane]
            feasible = (g.good[0] >> lane) & 1 == 1
            loose, scale = g.gap[lane] * g.scale[lane], g.scale[lane]
            # What nothing contradicts needs no closer look, unless scores were clipped; calls hand
            # on many arrays, and cost.
            plain = (
                g.gap[lane] == 0.0
                and g.slack[lane] <= 0.25 * EXACT * g.size[lane]
                and g.bound[lane] == np.inf
            )
            if feasible and (plain or _closed(g, lane, tolerance, m, block, kept)):
                counts[level] += 1
                if not adjacent:
                    for i in range(m):
                        copy_mask_row(tile, i * line + lane * m, mask, (r + i) * mask_stride + c, m)
                if duals_u.shape[0] > 0:
                    b = ((r // m - first) * width + c) // m
                    for k in range(m):
                        duals_u[b, k] = float(u[k * LANES + lane]) * scale
                        duals_v[b, k] = float(v[k * LANES + lane]) * scale
                value = g.objective[lane] * scale
                if (
                    g.lost[lane] > 0.0 or g.bound[lane] < np.inf
                ):  # what is reported is the worth of the scores as given
                    value = 0.0
                    for i in range(m):
                        for j in range(m):
                            score = float(X[r + i, c + j]) if mask[r + i, c + j] else 0.0
                            value += abs(score) if absolute else score
            elif level + 1 < LEVELS and (not feasible or amount[lane] > 0.0):
                _enqueue(queue, level + 1, g, u, v, amount, lane, feasible, m)
                continue
            else:
                for k in range(m):
                    cu[k], cv[k] = (
                        float(u[k * LANES + lane]) * scale,
                        float(v[k * LANES + lane]) * scale,
                    )
                _read(X, r, c, absolute, block)
                value, loose, paths, proven = finish(
                    block,
                    g.bound[lane],
                    cu,
                    cv,
                    n,
                    at_most == 1,
                    tolerance,
                    masks,
                    kept,
                    clipped,
                    other,
                    integers,
                    floats,
                )
                counts[LEVELS] += 1
                counts[LEVELS + 1] += max(paths, 0)
                counts[LEVELS + 2] += not proven
                for i in range(m):
                    for j in range(m):
                        mask[r + i, c + j] = kept[i, j]
                if duals_u.shape[0] > 0:
                    b = ((r // m - first) * width + c) // m
                    for k in range(m):
                        duals_u[b, k], duals_v[b, k] = cu[k], cv[k]
            sums[0] += value
            sums[1] += loose
        if not adjacent:
            _dequeue(queue, level, filled)


def schedule(m: int) -> tuple[tuple[int, ...], int, float]:
    """Rounds a level, Bellman–Ford sweeps, and over-relaxation: measured on N(0, 1), integers and
    pruned matrices.
    """
    if m <= 8:
        return (8, 6, 10, 12), 6, 1.25
    if m <= 16:
        return (9, 8, 12, 12), 8, 1.4
    if m <= 32:
        return (14, 10, 14, 20), 10, 1.45
    return (20, 14, 20, 30), 14, 1.5


@cache
def _compiled(kind: str, n: int, m: int, at_most: int) -> Callable[..., bool]:
    real, integer = STORAGE[kind]
    return specialise(
        ascend, array(real, 2, "A"), array(integer, 1), types.int64, array(types.uint8, 2, "A"),
        types.int64, types.int64,
        n, m, at_most, array(real, 1), types.float64, array(types.int64, 1), types.int64,
        types.float64, array(types.uint16, 1),
        array(types.float64, 2), array(types.float64, 2), array(types.float64, 1),
        array(types.int64, 1),
    )  # fmt: skip


def solve_range(
    X: NDArray[Any], mask: NDArray[np.uint8], first: int, last: int, pattern: Pattern,
    absolute: bool, gap: float,
    duals: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
) -> tuple[float, float, NDArray[np.int64]] | None:  # fmt: skip
    """Objective, its gap to the dual bound, and counts (COUNTS,) of block rows first … last − 1;
    None if not finite.

    X (rows, cols) float32 or float64; duals, if given, two arrays (blocks of the range, m) to be
    filled with u and v.
    """
    n, m, at_most = pattern.n, pattern.m, int(pattern.at_most)
    kind = "f8" if X.itemsize == 8 else "f4"
    rounds, sweeps, omega = schedule(m)
    sums, counts = np.zeros(2), np.zeros(COUNTS, np.int64)
    u, v = duals if duals is not None else (np.empty((0, 0)), np.empty((0, 0)))
    finite = _compiled(kind, n, m, at_most)(
        X, np.zeros(LANES, np.int64 if kind == "f8" else np.int32), int(absolute), mask, first,
        last, n, m, at_most,
        offsets(m).astype(X.dtype), gap, np.array(rounds, np.int64), sweeps, omega, codes(n, m), u,
        v, sums, counts, BUILD,
    )  # fmt: skip
    return (float(sums[0]), float(sums[1]), counts) if finite else None


def make(pattern: Pattern, kind: str, absolute: bool, tolerance: float) -> Run:
    """The exact solver of a transposable pattern with n < m. Blocks are held to a quarter of the
    result's tolerance.
    """
    gap = tolerance / 4
    _compiled(kind, pattern.n, pattern.m, int(pattern.at_most))

    def run(X: NDArray[Any], mask: NDArray[Any], first: int, last: int) -> TaskResult | None:
        outcome = solve_range(X, mask, first, last, pattern, absolute, gap)
        if outcome is None:
            return None
        objective, loose, counts = outcome
        stats: dict[str, float] = {
            f"proven_at_level_{level}": int(counts[level]) for level in range(LEVELS)
        }
        stats |= {"augmented": int(counts[LEVELS]), "paths": int(counts[LEVELS + 1])}
        return TaskResult(objective, objective + loose, int(counts[LEVELS + 2]), stats)

    return run
