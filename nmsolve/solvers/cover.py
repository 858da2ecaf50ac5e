"""Cover: the transposable-masks paper's 2-approximation of the pruned score.

The lightest entries first, each pruned if its row **or** its column has pruned fewer than m − n so
far (Hubara et al. 2021, section 4, "2-approximation": the pruned entries must cover every row and
column m − n times).

Guarantee, for scores ≥ 0: the pruned score is less than twice the optimum's. (An entry is pruned
because some line still needs it; charge it to the entries the optimum prunes in that line, none of
which is lighter when it is charged, and every optimal entry lies in two lines.) The rule prunes at
least m − n in every line, so it yields an at-most mask; for exactly n it is completed (`complete`).
"""

from __future__ import annotations

import numpy as np

from nmsolve.pattern import Pattern
from nmsolve.solvers import Run
from nmsolve.solvers.compiled import kernel, part
from nmsolve.solvers.complete import complete, kept_score, read_block, relaxed_optimum, solve_alone
from nmsolve.solvers.greedy import approximation, compiled


@part
def prune_lightest(S, n, at_most, kept):
    """Apply the rule, ties by lowest index. At most n prunes negative scores too. Returns the
    pruned score.
    """
    m = S.shape[0]
    order = np.argsort(S.reshape(-1), kind="mergesort")
    rows, columns = np.zeros(m, np.int64), np.zeros(m, np.int64)
    kept[:] = 1
    total = 0.0
    for flat in order:
        i, j = flat // m, flat % m
        if rows[i] < m - n or columns[j] < m - n or (at_most and S[i, j] < 0.0):
            rows[i] += 1
            columns[j] += 1
            kept[i, j] = 0
            total += S[i, j]
    return total


@kernel
def cover_blocks(X, absolute, mask, first, last, n, m, at_most, sums, counts, build):
    """Solve block rows first … last − 1 of X (rows, cols) float64 into mask.

    sums (3,) gains objective and bound, counts (2,) the blocks that were completed, and of them
    those solved exactly. sums[2] becomes 1 if a score is negative, which voids the bound. Returns
    False if a score is not finite.
    """
    S, kept = np.empty((m, m)), np.empty((m, m), np.uint8)
    for r in range(first * m, last * m, m):
        for c in range(0, X.shape[1], m):
            total, least, finite = read_block(X, r, c, absolute, S)
            if not finite:
                return False
            sums[2] = 1.0 if least < 0.0 else sums[2]
            pruned = prune_lightest(S, n, at_most, kept)
            bound = min(total - 0.5 * pruned, relaxed_optimum(S, n))
            if not at_most and complete(S, kept, n) > 0:
                counts[0] += 1
                value = kept_score(S, kept)
                if (
                    value < total - pruned
                    and least >= 0.0
                    and total - value > 2.0 * (total - bound)
                ):
                    counts[1] += 1
                    solve_alone(S, n, kept)
            value = kept_score(S, kept)
            sums[0] += value
            sums[1] += max(value, bound)
            mask[r : r + m, c : c + m] = kept
    return True


def make(pattern: Pattern, kind: str, absolute: bool, tolerance: float) -> Run:
    """Return cover for a transposable pattern."""
    return approximation(compiled(cover_blocks), pattern, absolute)
