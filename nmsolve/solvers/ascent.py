"""Transposable n:m blocks: dual ascent on order statistics, proven block by block, 16 blocks side
by side.

The program of one block with scores S is

    maximise Σ S_ij X_ij,   X ∈ {0, 1}^(m × m),   every row and column of X sums to n (at most: ≤ n)

and any duals (≥ 0 for at most) bound it by n Σ u_i + n Σ v_j + Σ max(0, S_ij − u_i − v_j). For
fixed v the bound is least when u_i lies between the n-th and the (n+1)-th largest of S_i· − v, so
the ascent moves every u_i, then every v_j, to the midpoint and, over-relaxed, beyond. Once X = (S −
u − v > 0) keeps n in every line, X is optimal and u, v prove it.

1. A few rounds for every group of 16 blocks (`ascent_group`); what is proven is written
   (`ascent_commit`).
2. The others wait with their duals (`ascent_queue`), and 16 of a queue are a full group again, for
   more rounds (three times).
3. What is left is finished alone by shortest augmenting paths (`augment`), which never fails.

Ties are separated by a small offset while a block ascends (`ties`), and scores far larger than the
others are clipped (`apart`). Whatever path a block took, its certificate is evaluated in float64,
and holds for the scores as given.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import from_dtype, types
from numpy.typing import NDArray

from nmsolve.pattern import Pattern
from nmsolve.solvers import Run, TaskResult
from nmsolve.solvers.ascent_commit import (
    account_layout,
    block_layout,
    copy_mask,
    finish_alone,
    is_proven,
    kept_score,
    take_duals,
    write_masks,
)
from nmsolve.solvers.ascent_group import group_layout, solve_group
from nmsolve.solvers.ascent_queue import (
    drop,
    enqueue,
    next_level,
    queue_layout,
    start_queue,
    take,
)
from nmsolve.solvers.ascent_schedule import LEVELS, Schedule, schedule
from nmsolve.solvers.block_masks import codes
from nmsolve.solvers.compiled import BUILD, STORAGE, array, kernel, specialise
from nmsolve.solvers.ties import offsets


class Task(NamedTuple):
    """Block rows first … last − 1 of X (rows, cols), to be solved into mask (rows, cols) uint8.

    X is float32 or float64, elements of a row adjacent. absolute : 1 if |X| is scored, 0 if X is.
    tolerance : the gap up to which a block counts as proven, as a share of the magnitude it keeps.
    u, v : (blocks, m) float64, to be filled with duals, or empty. offsets : (m m,) of X's dtype
    (`ties.offsets`). codes : as `block_masks.codes` lists them.
    """

    X: Any
    mask: Any
    first: int
    last: int
    absolute: int
    tolerance: float
    u: Any
    v: Any
    offsets: Any
    codes: Any


@cache
def _layout(kind: str, m: int) -> np.dtype[np.void]:
    """Return the record of all that a task works with."""
    return np.dtype(
        [
            ("group", group_layout(kind, m)),
            ("queue", queue_layout(kind, LEVELS, m)),
            ("alone", block_layout(m)),
            ("account", account_layout(LEVELS)),
        ],
        align=True,
    )


@kernel
def ascend(task, schedule, memory, n, m, at_most, build):
    """Solve a task; n, m and at_most (0 or 1) are literals.

    memory (1,) is a `_layout` of zeros, to whose account is added. Returns False, with part of the
    mask written, if a score is not finite.
    """
    X, mask, absolute, tolerance = task.X, task.mask, task.absolute, task.tolerance
    offsets, codes, dual_u, dual_v = task.offsets, task.codes, task.u, task.v
    g, queue, alone = memory[0].group, memory[0].queue, memory[0].alone
    account = memory[0].account
    width, collect = X.shape[1], dual_u.shape[0] > 0
    start_queue(queue, task.first * m)
    while True:
        level, adjacent = next_level(queue, task.last * m, width, m)
        if level < 0:
            return True
        filled = take(queue, level, adjacent, g, m)
        u, v, amount = queue.u[level, 0], queue.v[level, 0], queue.amount[level, 0]
        if not solve_group(
            X, absolute, g, u, v, amount, level, adjacent, schedule, offsets, n, m, at_most
        ):
            return False
        if g.feasible[0] != 0:
            write_masks(g, adjacent, mask, m)
        for lane in range(filled):
            feasible = (g.feasible[0] >> lane) & 1 == 1
            if feasible and is_proven(g, lane, tolerance, alone, m):
                account.proven[level] += 1
                if not adjacent:
                    copy_mask(g, lane, mask, m)
                value, loose = g.objective[lane] * g.scale[lane], g.gap[lane] * g.scale[lane]
                if g.lost[lane] > 0.0 or g.clip[lane] < np.inf:
                    value = kept_score(X, absolute, mask, g.rows[lane], g.columns[lane], m)
                if collect:
                    take_duals(u, v, g.scale[lane], lane, alone, m)
            elif level + 1 < LEVELS and (not feasible or amount[lane] > 0.0):
                enqueue(queue, level + 1, g, u, v, amount, lane, feasible, m)
                continue
            else:
                take_duals(u, v, g.scale[lane], lane, alone, m)
                value, loose = finish_alone(
                    X, absolute, mask, g, lane, tolerance, codes, alone, account, n, m, at_most
                )
            if collect:
                block = ((g.rows[lane] // m - task.first) * width + g.columns[lane]) // m
                for k in range(m):
                    dual_u[block, k], dual_v[block, k] = alone.u[k], alone.v[k]
            account.objective += value
            account.gap += loose
        if not adjacent:
            drop(queue, level, filled, m)


@cache
def _compiled(kind: str, n: int, m: int, at_most: int) -> Callable[..., bool]:
    real, _ = STORAGE[kind]
    integer, number = types.int64, types.float64
    task = Task(
        X=array(real, 2, "A"), mask=array(types.uint8, 2, "A"), first=integer, last=integer,
        absolute=integer, tolerance=number, u=array(number, 2), v=array(number, 2),
        offsets=array(real, 1), codes=array(types.uint16, 1),
    )  # fmt: skip
    timing = Schedule(rounds=types.UniTuple(integer, LEVELS), sweeps=integer, omega=number)
    return specialise(
        ascend, types.NamedTuple(task, Task), types.NamedTuple(timing, Schedule),
        array(from_dtype(_layout(kind, m)), 1), n, m, at_most,
    )  # fmt: skip


class Outcome(NamedTuple):
    """The result of a range of block rows.

    Attributes
    ----------
    objective, gap : float
        The kept score, and how far the dual bound is from it.
    proven : list of int
        Blocks proven at each level.
    augmented, paths : int
        Blocks finished alone, and their augmenting paths.
    open : int
        Blocks that stay unproven.
    """

    objective: float
    gap: float
    proven: list[int]
    augmented: int
    paths: int
    open: int


def solve_range(
    X: NDArray[Any],
    mask: NDArray[np.uint8],
    first: int,
    last: int,
    pattern: Pattern,
    absolute: bool,
    tolerance: float,
    duals: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
) -> Outcome | None:
    """Solve block rows first … last − 1 of X (rows, cols) float32 or float64 into mask.

    tolerance : the relative gap up to which a block counts as proven. duals : two arrays (blocks of
    the range, m) to be filled with u and v. Returns None if a score is not finite.
    """
    n, m, at_most = pattern.n, pattern.m, int(pattern.at_most)
    kind = "f8" if X.itemsize == 8 else "f4"
    solve = _compiled(kind, n, m, at_most)
    u, v = duals if duals is not None else (np.empty((0, 0)), np.empty((0, 0)))
    task = Task(
        X, mask, first, last, int(absolute), tolerance, u, v, offsets(m).astype(X.dtype),
        codes(n, m),
    )  # fmt: skip
    layout = _layout(kind, m)
    # NumPy takes five times as long to make an array of records.
    memory = np.zeros(layout.itemsize, np.uint8).view(layout)
    if not solve(task, schedule(m), memory, n, m, at_most, BUILD):
        return None
    objective, gap, proven, *counts = memory["account"][0].item()
    return Outcome(objective, gap, proven.tolist(), *counts)


def make(pattern: Pattern, kind: str, absolute: bool, tolerance: float) -> Run:
    """Return the exact solver of a transposable pattern with n < m.

    Blocks are held to a quarter of the result's tolerance.
    """
    gap = tolerance / 4
    _compiled(kind, pattern.n, pattern.m, int(pattern.at_most))

    def run(X: NDArray[Any], mask: NDArray[Any], first: int, last: int) -> TaskResult | None:
        outcome = solve_range(X, mask, first, last, pattern, absolute, gap)
        if outcome is None:
            return None
        stats: dict[str, float] = {
            f"proven_at_level_{level}": number for level, number in enumerate(outcome.proven)
        }
        stats |= {"augmented": outcome.augmented, "paths": outcome.paths}
        return TaskResult(outcome.objective, outcome.objective + outcome.gap, outcome.open, stats)

    return run
