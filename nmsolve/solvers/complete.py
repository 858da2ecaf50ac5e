"""Completing an at-most mask of an approximation, so that it keeps exactly n in every row and
column of a block.

Both approximations leave some rows and columns below n. As many units are missing in rows as in
columns; for a row i and a column j that lack one, either (i, j) itself is added, or a kept (k, l)
makes way for (i, l) and (k, j). Of these steps the one that gains most is taken. One always exists
for n < m: if (i, j) is kept, row i misses some column l that more rows keep than keep j, so one of
these rows keeps l and not j.

A step can lose score. The kernels of `greedy` and `cover` check that their guarantee still stands
for the completed block; where it does not (it has not been seen) the block is solved exactly, so
that the guarantee holds by construction.
"""

from __future__ import annotations

import numpy as np

from nmsolve.solvers.augment import augment
from nmsolve.solvers.compiled import part


@part
def read_block(X, row, column, absolute, S):
    """Copy a block's scores to S (m, m). Returns their sum, the least of them, and whether all are
    finite.
    """
    m = S.shape[0]
    total, least, finite = 0.0, np.inf, True
    for i in range(m):
        for j in range(m):
            x = X[row + i, column + j]
            x = abs(x) if absolute else x
            S[i, j] = x
            total += x
            least = min(least, x)
            finite &= np.isfinite(x)
    return total, least, finite


@part
def kept_score(S, kept):
    """Return the sum of the kept scores."""
    total = 0.0
    for i in range(S.shape[0]):
        for j in range(S.shape[1]):
            total += S[i, j] if kept[i, j] else 0.0
    return total


@part
def complete(S, kept, n):
    """Add units to kept (m, m) uint8, whose lines keep at most n, until every line keeps n. Returns
    the units added.
    """
    m = S.shape[0]
    added = 0
    while True:
        i, j = -1, -1
        for k in range(m):
            in_row, in_column = 0, 0
            for x in range(m):
                in_row += kept[k, x]
                in_column += kept[x, k]
            if in_row < n and i < 0:
                i = k
            if in_column < n and j < 0:
                j = k
        if i < 0:
            return added
        best, out_row, out_column = -np.inf, -1, -1
        if kept[i, j] == 0:
            best = S[i, j]
        for k in range(m):
            if k == i or kept[k, j] == 1:
                continue
            for x in range(m):
                if kept[k, x] == 1 and kept[i, x] == 0:
                    gain = S[i, x] + S[k, j] - S[k, x]
                    if gain > best:
                        best, out_row, out_column = gain, k, x
        if out_row < 0:
            kept[i, j] = 1
        else:
            kept[out_row, out_column] = 0
            kept[i, out_column] = 1
            kept[out_row, j] = 1
        added += 1


@part
def relaxed_optimum(S, n):
    """Return an upper bound on the kept score of a block with scores ≥ 0: the n largest of every
    row, or of every column.
    """
    m = S.shape[0]
    top = np.empty(n)
    rows, columns = 0.0, 0.0
    for k in range(m):
        rows += _largest(S[k], top)
        columns += _largest(S[:, k], top)
    return min(rows, columns)


@part
def _largest(line, top):
    """Return the sum of the len(top) largest values, by insertion into top."""
    n = top.shape[0]
    filled = 0
    for x in line:
        if filled == n and x <= top[n - 1]:
            continue
        k = min(filled, n - 1)
        while k > 0 and top[k - 1] < x:
            top[k] = top[k - 1]
            k -= 1
        top[k] = x
        filled = min(n, filled + 1)
    return top.sum()


@part
def solve_alone(S, n, kept):
    """Write the optimal mask of one block, exactly n, to kept."""
    m = S.shape[0]
    size = 2 * m + 1
    augment(
        S, np.zeros(m), np.zeros(m), n, False, kept, np.empty(m, np.int64), np.empty(m, np.int64),
        np.empty(size, np.int64),
        np.empty(size), np.empty(size, np.int64), np.empty(size, np.int64),
    )  # fmt: skip
