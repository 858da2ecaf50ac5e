"""Plain Python loops over lists: rules, feasibility, objectives and bounds, each written as it is
said.
"""

from __future__ import annotations

import math

import numpy as np


def select(group, n, at_most=False):
    """maximise Σ s_j x_j with Σ x_j = n (at most: ≤ n): the largest first, the lowest index first
    among equals.
    """
    scores = [float(s) for s in group]
    kept = [False] * len(scores)
    for _ in range(n):
        best = None
        for j, s in enumerate(scores):
            if not kept[j] and (best is None or s > scores[best]):
                best = j
        if at_most and scores[best] <= 0:
            break
        kept[best] = True
    return np.array(kept)


def keep_greedy(block, n, at_most=True):
    """Keep-greedy: heaviest first, kept if row and column have room. At most stops at the first
    score that is not positive.
    """
    m = len(block)
    rows, columns = [0] * m, [0] * m
    kept = [[False] * m for _ in range(m)]
    for s, i, j in sorted((-float(block[i][j]), i, j) for i in range(m) for j in range(m)):
        if at_most and -s <= 0:
            break
        if rows[i] < n and columns[j] < n:
            kept[i][j] = True
            rows[i] += 1
            columns[j] += 1
    return np.array(kept)


def cover(block, n, at_most=True):
    """Cover: lightest first, pruned if row or column has pruned fewer than m − n. At most prunes
    every negative score too.
    """
    m = len(block)
    rows, columns = [0] * m, [0] * m
    kept = [[True] * m for _ in range(m)]
    for s, i, j in sorted((float(block[i][j]), i, j) for i in range(m) for j in range(m)):
        if rows[i] < m - n or columns[j] < m - n or (at_most and s < 0):
            kept[i][j] = False
            rows[i] += 1
            columns[j] += 1
    return np.array(kept)


def group_ok(group, n, at_most=False):
    """Whether a group of bools keeps n (at most: ≤ n)."""
    kept = 0
    for x in group:
        kept += bool(x)
    return kept <= n if at_most else kept == n


def block_ok(mask, n, at_most=False):
    """Whether every row and every column of a block keeps n (at most: ≤ n)."""
    m = len(mask)
    for i in range(m):
        if not group_ok([mask[i][j] for j in range(m)], n, at_most):
            return False
        if not group_ok([mask[j][i] for j in range(m)], n, at_most):
            return False
    return True


def objective(scores, mask):
    """Σ S_ij X_ij, correctly rounded."""
    flat = zip(np.ravel(scores).tolist(), np.ravel(mask).tolist(), strict=True)
    return math.fsum(s for s, kept in flat if kept)


def dual_bound(block, u, v, n):
    """n Σ u_i + n Σ v_j + Σ_ij max(0, S_ij − u_i − v_j)."""
    terms = [n * float(x) for x in u] + [n * float(x) for x in v]
    for i, row in enumerate(block):
        for j, s in enumerate(row):
            terms.append(max(0.0, math.fsum((float(s), -float(u[i]), -float(v[j])))))
    return math.fsum(terms)


def group_bound(group, u, n):
    """n u + Σ_j max(0, s_j − u)."""
    return math.fsum([n * float(u), *(max(0.0, float(s) - float(u)) for s in group)])
