"""Every mask there is, for small m."""

from __future__ import annotations

import math
from functools import cache
from itertools import combinations

import numpy as np


@cache
def groups(n, m, at_most=False):
    """Every group of m bools with n (at most: ≤ n) of them True."""
    sizes = range(n + 1) if at_most else [n]
    return tuple(
        tuple(j in chosen for j in range(m))
        for size in sizes
        for chosen in combinations(range(m), size)
    )


@cache
def blocks(n, m, at_most=False):
    """Every m × m mask whose rows and columns keep n (at most: ≤ n), as an array (masks, m, m); for
    m ≤ 5.
    """
    rows = groups(n, m, at_most)
    found = [()]
    for _ in range(m):
        found = [
            (*above, row)
            for above in found
            for row in rows
            if all(sum(r[j] for r in (*above, row)) <= n for j in range(m))
        ]
    if not at_most:
        found = [mask for mask in found if all(sum(r[j] for r in mask) == n for j in range(m))]
    return np.array(found)


def _best(scores, masks):
    scores = np.asarray(scores, np.float64)
    rounded = masks.reshape(len(masks), -1) @ scores.ravel()
    candidates = masks[rounded >= rounded.max() - 1e-9 * np.abs(scores).sum()]
    totals = [math.fsum(scores[mask].tolist()) for mask in candidates]
    best = max(range(len(totals)), key=totals.__getitem__)
    return candidates[best], totals[best]


def optimum(block, n, at_most=False):
    """maximise Σ S_ij X_ij over every mask of a block: mask and objective."""
    return _best(block, blocks(n, len(block), at_most))


def select(group, n, at_most=False):
    """maximise Σ s_j x_j over every mask of a group: mask and objective."""
    return _best(group, np.array(groups(n, len(group), at_most)))
