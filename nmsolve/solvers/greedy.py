"""Keep-greedy: the heaviest entries first, each kept if its row and its column have room.

Guarantee, for scores ≥ 0: the kept score is at least 1/2 of the at-most optimum's, and so of the
exactly-n optimum's. (Every entry of an optimal mask that greedy passes over was blocked by a full
row or column whose n entries are all at least as heavy; each kept entry is charged once by its row
and once by its column.) At most n is what the rule itself yields, which leaves some rows and
columns below n; for exactly n they are completed (`complete`).

The 2021 code of the transposable-masks paper calls this rule its 2-approximation; the algorithm
that the paper describes is `cover`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from nmsolve.pattern import Pattern
from nmsolve.solvers import Run, TaskResult
from nmsolve.solvers.compiled import BUILD, array, kernel, part, specialise
from nmsolve.solvers.complete import complete, kept_score, read_block, relaxed_optimum, solve_alone


@part
def keep_heaviest(S, n, at_most, kept):
    """Apply the rule, ties by lowest index. At most n keeps positive scores only. Returns the kept
    score.
    """
    m = S.shape[0]
    order = np.argsort(-S.reshape(-1), kind="mergesort")
    rows, columns = np.zeros(m, np.int64), np.zeros(m, np.int64)
    kept[:] = 0
    total = 0.0
    for flat in order:
        i, j = flat // m, flat % m
        if at_most and S[i, j] <= 0.0:
            break
        if rows[i] < n and columns[j] < n:
            rows[i] += 1
            columns[j] += 1
            kept[i, j] = 1
            total += S[i, j]
    return total


@kernel
def greedy_blocks(X, absolute, mask, first, last, n, m, at_most, sums, counts, build):
    """Solve block rows first … last − 1 of X (rows, cols) float64 into mask.

    sums (3,) gains objective and bound, counts (2,) the blocks that were completed, and of them
    those solved exactly. sums[2] becomes 1 if a score is negative, which voids the bound. Returns
    False if a score is not finite.
    """
    S, kept = np.empty((m, m)), np.empty((m, m), np.uint8)
    for r in range(first * m, last * m, m):
        for c in range(0, X.shape[1], m):
            _, least, finite = read_block(X, r, c, absolute, S)
            if not finite:
                return False
            sums[2] = 1.0 if least < 0.0 else sums[2]
            raw = keep_heaviest(S, n, at_most, kept)
            bound = min(2.0 * raw, relaxed_optimum(S, n))
            value = raw
            if not at_most and complete(S, kept, n) > 0:
                counts[0] += 1
                value = kept_score(S, kept)
                if value < raw and least >= 0.0 and value < 0.5 * bound:
                    counts[1] += 1
                    solve_alone(S, n, kept)
                    value = kept_score(S, kept)
            sums[0] += value
            sums[1] += max(value, bound)
            mask[r : r + m, c : c + m] = kept
    return True


@cache
def compiled(blocks: Any) -> Callable[..., bool]:
    """Return a kernel of this file's signature, compiled."""
    return specialise(
        blocks, array(types.float64, 2, "A"), types.boolean, array(types.uint8, 2, "A"),
        types.int64, types.int64,
        types.int64, types.int64, types.boolean, array(types.float64, 1), array(types.int64, 1),
    )  # fmt: skip


def make(pattern: Pattern, kind: str, absolute: bool, tolerance: float) -> Run:
    """Return keep-greedy for a transposable pattern."""
    return approximation(compiled(greedy_blocks), pattern, absolute)


def approximation(solve: Callable[..., bool], pattern: Pattern, absolute: bool) -> Run:
    """Return a Run around a kernel of this file's signature."""

    def run(X: NDArray[Any], mask: NDArray[Any], first: int, last: int) -> TaskResult | None:
        sums, counts = np.zeros(3), np.zeros(2, np.int64)
        if not solve(
            X, absolute, mask, first, last, pattern.n, pattern.m, pattern.at_most, sums, counts,
            BUILD,
        ):  # fmt: skip
            return None
        blocks = (last - first) * (X.shape[1] // pattern.m)
        stats = {"blocks": blocks, "completed": int(counts[0]), "solved_exactly": int(counts[1])}
        return TaskResult(float(sums[0]), None if sums[2] else float(sums[1]), blocks, stats)

    return run
