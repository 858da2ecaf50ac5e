"""The blocks that the dual ascent solves next: 16 side by side, or 16 that wait for the same level.

A block that a level does not prove waits for the next one with its duals, until 16 wait there, so
that lanes stay full. Blocks that do not lie side by side (the end of a row, a narrow matrix) wait
for the first level.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from nmsolve.solvers.compiled import part, structure
from nmsolve.solvers.lanes import LANES
from nmsolve.solvers.ties import FINE, HINT, SHRINK


@cache
def queue_layout(kind: str, levels: int, m: int) -> np.dtype[np.void]:
    """Return the record of the blocks that wait at every level, at most two groups of them."""
    real = "f8" if kind == "f8" else "f4"
    return structure(
        {
            # Row and column of the first block that was not yet taken; how many wait.
            "ahead": ("i8", (2,)),
            "waiting": ("i8", (levels,)),
            # Where they are, and what their scores are clipped to.
            "rows": ("i8", (levels, 2 * LANES)),
            "columns": ("i8", (levels, 2 * LANES)),
            "clip": ("f8", (levels, 2 * LANES)),
            # Duals and offsets in lane layout: the halves are groups, the first the one that is
            # solved next. At the first level, whose blocks bring none, it has room for any group's.
            "u": (real, (levels, 2, m * LANES)),
            "v": (real, (levels, 2, m * LANES)),
            "amount": (real, (levels, 2, LANES)),
        },
    )


@part
def start_queue(queue, row):
    """Let nothing wait, with all blocks from a row on ahead."""
    queue.ahead[0], queue.ahead[1] = row, 0
    queue.waiting[:] = 0
    queue.clip[:] = np.inf


@part
def next_level(queue, end, width, m):
    """Choose the level to be run, and whether it is for blocks ahead that lie side by side.

    The deepest queue that fills a group goes first, one that does not only when nothing else is
    left. Returns −1 if no block is left above row `end` of a matrix so wide.
    """
    levels = queue.waiting.shape[0]
    while True:
        for level in range(levels - 1, -1, -1):
            if queue.waiting[level] >= LANES:
                return level, False
        if queue.ahead[1] == width:
            queue.ahead[0] += m
            queue.ahead[1] = 0
        if queue.ahead[0] >= end:
            break
        if queue.ahead[1] + m * LANES <= width:
            return 0, True
        at = queue.waiting[0]
        queue.rows[0, at], queue.columns[0, at] = queue.ahead[0], queue.ahead[1]
        queue.waiting[0] = at + 1
        queue.ahead[1] += m
    for level in range(levels):
        if queue.waiting[level] > 0:
            return level, False
    return -1, False


@part
def take(queue, level, adjacent, g, m):
    """Places of the next group into the lanes. Returns how many are filled; the others repeat the
    last.
    """
    filled = LANES if adjacent else min(queue.waiting[level], LANES)
    for lane in range(LANES):
        at = min(lane, filled - 1)
        g.rows[lane] = queue.ahead[0] if adjacent else queue.rows[level, at]
        g.columns[lane] = queue.ahead[1] + lane * m if adjacent else queue.columns[level, at]
        g.clip[lane] = queue.clip[level, at]
    if adjacent:
        queue.ahead[1] += m * LANES
    return filled


@part
def drop(queue, level, taken, m):
    """Forget the group that was solved; what waits behind it moves up."""
    rest = queue.waiting[level] - taken
    for k in range(rest):
        queue.rows[level, k] = queue.rows[level, LANES + k]
        queue.columns[level, k] = queue.columns[level, LANES + k]
        queue.clip[level, k] = queue.clip[level, LANES + k]
    if rest > 0:
        for k in range(m * LANES):
            queue.u[level, 0, k] = queue.u[level, 1, k]
            queue.v[level, 0, k] = queue.v[level, 1, k]
        for lane in range(LANES):
            queue.amount[level, 0, lane] = queue.amount[level, 1, lane]
    queue.waiting[level] = rest


@part
def enqueue(queue, level, g, u, v, amount, lane, feasible, m):
    """Let a lane's block wait for a level, with its duals and the offset it is to run with there.

    feasible : whether its mask was; then a smaller offset is tried.
    """
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
    queue.clip[level, at] = g.clip[lane]
    queue.waiting[level] = at + 1
