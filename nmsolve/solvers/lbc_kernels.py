"""Kernels of LBC: enumerate candidates, drop the lowest-scored, and mark what the others keep."""

from __future__ import annotations

import numpy as np

from nmsolve.solvers.compiled import kernel


@kernel
def enumerate_candidates(n, m, out):
    """The n-element subsets of m as rows of out (C(m, n), m) uint8, in lexicographic order."""
    chosen = np.arange(n)
    for row in range(out.shape[0]):
        for k in range(n):
            out[row, chosen[k]] = 1
        k = n - 1
        while k >= 0 and chosen[k] == m - n + k:
            k -= 1
        if k >= 0:
            chosen[k] += 1
            for later in range(k + 1, n):
                chosen[later] = chosen[later - 1] + 1


@kernel
def drop_lowest(scores, alive, left):
    """Clear alive (G, C) uint8 for the lowest scores of every group until `left` are alive; of
    equals the last goes first.
    """
    groups, candidates = scores.shape
    order = np.empty(candidates, np.int64)
    values = np.empty(candidates, scores.dtype)
    for g in range(groups):
        count = 0
        for c in range(candidates - 1, -1, -1):
            if alive[g, c]:
                order[count] = c
                values[count] = scores[g, c]
                count += 1
        if count > left:
            ranked = np.argsort(values[:count], kind="mergesort")
            for k in range(count - left):
                alive[g, order[ranked[k]]] = 0


@kernel
def mark_survivors(alive, candidates, out):
    """out (G, m) uint8 = the union of the candidates (C, m) that are alive (G, C)."""
    groups, total = alive.shape
    m = candidates.shape[1]
    for g in range(groups):
        for j in range(m):
            out[g, j] = 0
        for c in range(total):
            if alive[g, c]:
                for j in range(m):
                    out[g, j] |= candidates[c, j]
