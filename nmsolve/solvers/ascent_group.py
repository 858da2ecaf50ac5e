"""One level of the dual ascent for a group, 16 blocks in the lanes: from scores to certificates.

Arrays of entries and of lines lie in lane layout (`ascent_lanes`); all others hold one value per
lane. Nothing here depends on which blocks share a group.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from nmsolve.solvers.apart import bound_above
from nmsolve.solvers.ascent_lanes import certify_row, half_step, judge_line, sign_row, stage_line
from nmsolve.solvers.ascent_lanes import start_line as start_line
from nmsolve.solvers.compiled import part, structure
from nmsolve.solvers.lanes import LANES
from nmsolve.solvers.ties import flag_ties, shift, unshift

ALL_LANES = 0xFFFF
#: Float64's unit, doubled for what summing adds.
ROUNDING = 2.0**-51


@cache
def group_layout(kind: str, m: int) -> np.dtype[np.void]:
    """Return the record of a group: 16 blocks of scores of a kind, and what is known of them."""
    real, integer = ("f8", "i8") if kind == "f8" else ("f4", "i4")
    lanes, line, entries = (LANES,), (m * LANES,), (m * m * LANES,)
    return structure(
        {
            # Where the blocks are in X: their first entry, and which element it is.
            "rows": ("i8", lanes),
            "columns": ("i8", lanes),
            "starts": ("i8", lanes),
            # Scores, clipped to ±clip (infinity: not) and divided by scale (a power of two, 1 but
            # for extreme magnitudes); the same with the offsets that separate ties.
            "S": (real, entries),
            "shifted": (real, entries),
            "clip": ("f8", lanes),
            "scale": ("f8", lanes),
            # What scaling may have taken from a mask's value and from the bound on it, where scores
            # are too far apart for it.
            "lost": ("f8", lanes),
            # The bits of the largest magnitude; its power of two after scaling, as a float: power.
            "top": (integer, lanes),
            # Of the 2 m lines: how many have equal n-th and (n+1)-th scores that are not zero, and
            # (columns only) zero; counts that nobody reads; duals that are 0.
            "equal": ("i4", lanes),
            "zero": ("i4", lanes),
            "ignored": ("i4", lanes),
            "nothing": (real, line),
            # What is ordinary in a block is as large (`start_line`).
            "ordinary": (real, (2 * LANES,)),
            # The lanes that offsets shift at every entry, not at zeros alone.
            "everywhere": ("u2", (1,)),
            # The masks S − u − v > 0, what their lines keep, and the lanes where all keep n.
            "bits": ("u2", (m * m,)),
            "row_count": ("i4", line),
            "column_count": ("i4", line),
            "feasible": ("u2", (1,)),
            # Kept score, its magnitude, bound − objective, and what rounding may hide of that.
            "objective": ("f8", lanes),
            "size": ("f8", lanes),
            "gap": ("f8", lanes),
            "slack": ("f8", lanes),
            # Masks of blocks that do not lie side by side: (m, LANES m), flat.
            "tile": ("u1", entries),
            # Scratch: of `ties.unshift`, and for one block's scores.
            "relaxation": (real, (4 * m + 2, LANES)),
            "block": ("f8", (m, m)),
        },
        same={"power": ("top", real)},
    )


@part
def solve_group(X, absolute, g, u, v, amount, level, adjacent, schedule, offsets, n, m, at_most):
    """One level for the blocks at g.rows, g.columns: their masks, duals and certificates.

    u, v : their duals, and amount : the size of offsets, where the level begins and then where it
    ends. adjacent : whether they lie side by side. Returns False if a
    score is not finite.
    """
    g.everywhere[0] = ALL_LANES
    clipped = False
    while True:
        if not _stage(X, absolute, g, adjacent, m):
            return False
        if level > 0:
            break
        _start(g, u, v, n, m, at_most)
        if clipped or not _clip(X, absolute, g, n, m, at_most):
            break
        clipped = True
    if level == 0:
        flag_ties(g.S, g.equal, g.zero, g.power, amount, g.everywhere, m)
    shifted = shift(g.S, amount, g.everywhere, offsets, g.shifted, m)
    T = g.shifted if shifted else g.S
    _ascend(T, u, v, schedule, level, n, m, at_most)
    _sign(T, u, v, g, n, m, at_most)
    if shifted and g.feasible[0] != 0:
        unshift(
            g.S, g.bits, g.row_count, g.column_count, u, v,
            amount, g.power, g.feasible, g.relaxation, n, m, at_most,
            schedule.sweeps,
        )  # fmt: skip
    _certify(g, u, v, n, m, at_most)
    return True


@part
def _stage(X, absolute, g, adjacent, m):
    """Scores of the 16 blocks into the lanes, clipped, extreme magnitudes scaled by a power of two.

    Returns False if a score is not finite.
    """
    wide = X.itemsize == 8
    row_stride = X.strides[0] // X.itemsize
    for lane in range(LANES):
        g.starts[lane] = g.rows[lane] * row_stride + g.columns[lane]
    base = g.starts[0] if adjacent else 0
    g.top[:] = 0
    for i in range(m):
        stage_line(
            X, base + i * row_stride, g.starts, adjacent, absolute, g.S, i * m * LANES, g.top, m
        )
    exponent = 0x7FF0000000000000 if wide else 0x7F800000
    limit = 2.0**500 if wide else 2.0**60
    smallest = 2.0**-1022 if wide else 2.0**-126
    extreme = False
    for lane in range(LANES):
        if g.top[lane] >= exponent:
            return False
        clip = g.clip[lane]
        if float(g.power[lane]) > clip:
            g.power[lane] = clip
            for k in range(m * m):
                g.S[k * LANES + lane] = min(max(float(g.S[k * LANES + lane]), -clip), clip)
        largest = float(g.power[lane])
        g.top[lane] &= exponent
        unit = 1.0 if largest == 0.0 else max(float(g.power[lane]), smallest)
        out = unit > limit or unit < 1.0 / limit
        g.scale[lane] = unit if out else 1.0
        g.power[lane] = unit
        if out:  # a subnormal maximum is scaled too little to reach 1
            g.power[lane] = math.ldexp(1.0, math.frexp(largest / unit)[1] - 1)
        g.lost[lane] = 0.0
        extreme |= out
    if extreme:
        quantum = 2.0**-1074 if wide else 2.0**-149
        for k in range(m * m):
            for lane in range(LANES):
                at, scale = k * LANES + lane, g.scale[lane]
                score = float(g.S[at])
                g.S[at] *= 1.0 / scale
                if float(g.S[at]) * scale != score:
                    g.lost[lane] = 2.0 * m * m * quantum
    return True


@part
def _start(g, u, v, n, m, at_most):
    """First duals, half the medians of every line; and what the medians tell."""
    g.equal[:] = 0
    g.zero[:] = 0
    g.ordinary[:LANES] = 0
    g.ordinary[LANES:] = np.inf
    for j in range(m):
        start_line(
            g.S, j * LANES, m * LANES, g.nothing, v, j * LANES, 0.5,
            g.equal, g.zero, g.ordinary, n, m, at_most,
        )  # fmt: skip
    for i in range(m):
        start_line(
            g.S, i * m * LANES, LANES, g.nothing, u, i * LANES, 0.5,
            g.equal, g.ignored, g.ordinary, n, m, at_most,
        )  # fmt: skip


@part
def _clip(X, absolute, g, n, m, at_most):
    """Find what lanes whose largest score is far above their medians are to be clipped to
    (`apart`). Returns whether any is.
    """
    large = False
    for lane in range(LANES):
        large |= _is_large(g, lane, n, m)
    return large and _clip_large(X, absolute, g, n, m, at_most)


@part
def _is_large(g, lane, n, m):
    """Return whether a lane's largest score is so far above its medians that scores may lie
    apart.
    """
    return float(g.power[lane]) > 2.0 * n * m * max(
        float(g.ordinary[lane]), float(g.ordinary[LANES + lane])
    )


@part
def _clip_large(X, absolute, g, n, m, at_most):
    found = False
    for lane in range(LANES):
        if _is_large(g, lane, n, m):
            read_block(X, g.rows[lane], g.columns[lane], absolute, g.block)
            g.clip[lane] = bound_above(g.block, n, at_most == 1, 0.0)
            found |= g.clip[lane] < np.inf
    return found


@part
def read_block(X, row, column, absolute, block):
    """A block's scores as given, in float64."""
    for i in range(block.shape[0]):
        for j in range(block.shape[0]):
            x = float(X[row + i, column + j])
            block[i, j] = abs(x) if absolute else x


@part
def _ascend(T, u, v, schedule, level, n, m, at_most):
    """The level's rounds on T; the very first is not over-relaxed."""
    for k in range(schedule.rounds[level]):
        step = 1.0 if level == 0 and k == 0 else schedule.omega
        for i in range(m):
            half_step(T, i * m * LANES, LANES, v, u, i * LANES, step, n, m, at_most)
        for j in range(m):
            half_step(T, j * LANES, m * LANES, u, v, j * LANES, step, n, m, at_most)


@part
def _sign(T, u, v, g, n, m, at_most):
    """The masks T − u − v > 0, and the lanes where they are feasible."""
    g.column_count[:] = 0
    g.feasible[0] = ALL_LANES
    for i in range(m):
        sign_row(T, i * m * LANES, u, i * LANES, v, g.bits, g.row_count, g.column_count, m)
        judge_line(g.row_count, i * LANES, u, g.feasible, n, at_most)
    for j in range(m):
        judge_line(g.column_count, j * LANES, v, g.feasible, n, at_most)


@part
def _certify(g, u, v, n, m, at_most):
    """The proofs of every lane, from the scores, masks and duals as they stand.

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
