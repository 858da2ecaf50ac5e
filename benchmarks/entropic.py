"""Entropic transport and rounding: the published heuristic that scales best, reimplemented from its
description.

Source: Meng, Makni, Mazumder, "TSENOR: Highly-Efficient Algorithm for Finding Transposable N:M
Sparse Masks" (2025, arXiv:2505.23949), Algorithms 1 and 2. A block's linear program with an entropy
term,

    maximise <S, X> + H(X) / τ,   row and column sums of X equal to n,   0 ≤ X ≤ 1

is the projection of exp(τ S) on three sets, found by Dykstra's algorithm: scale rows, scale
columns, clip at one, where the clip has a dual Q. The fractional X is rounded greedily (heaviest X
first, if row and column have room), and then, while a row i and a column j lack an entry, the swap
that gains most puts (i, l) and (k, j) in the place of a kept (k, l).

Departures: τ is relative to the block's largest score and was tuned here together with the number
of iterations; a swap is made even where it gains nothing, so that exactly n are kept.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: τ times the largest score of a block, and Dykstra iterations: of {30, 60, 80} × {30, 60, 150} the
#: least loss at this speed. Twice the sharpness needs more than twice the iterations, and at 80 the
#: dual Q overflows float32.
SHARPNESS, ITERATIONS = 30.0, 60
#: Weights in a batch of blocks, so that the arrays of an iteration stay in the cache.
BATCH_WEIGHTS = 2**16


def solve_blocks(S: NDArray[np.float32], n: int) -> NDArray[np.bool_]:
    """Masks of blocks (count, m, m) of scores ≥ 0."""
    step = max(1, BATCH_WEIGHTS // (S.shape[1] * S.shape[2]))
    return np.concatenate(
        [_solve_batch(S[start : start + step], n) for start in range(0, len(S), step)]
    )


def _solve_batch(S: NDArray[np.float32], n: int) -> NDArray[np.bool_]:
    kept = _round(_transport(S, n), n)
    _saturate(S, kept, n)
    return kept


def _transport(S: NDArray[np.float32], n: int) -> NDArray[np.float32]:
    """Dykstra's projections of exp(τ S). Rows are scaled first, so shifting a row by its largest
    score changes nothing.
    """
    largest = np.maximum(S.max(axis=(1, 2), keepdims=True), np.float32(1e-30))
    X = np.exp((S - S.max(axis=2, keepdims=True)) * (np.float32(SHARPNESS) / largest))
    Q = np.ones_like(X)
    for _ in range(ITERATIONS):
        X *= n / X.sum(axis=2, keepdims=True)
        X *= n / X.sum(axis=1, keepdims=True)
        X *= Q
        np.maximum(X, 1.0, out=Q)
        np.minimum(X, 1.0, out=X)
    return X


def _round(X: NDArray[np.float32], n: int) -> NDArray[np.bool_]:
    """Heaviest first, kept if row and column have room: one entry of every block at a time."""
    count, m, _ = X.shape
    rows, columns = np.divmod(np.argsort(-X.reshape(count, m * m), axis=1), m)
    in_row, in_column = np.zeros((count, m), np.int64), np.zeros((count, m), np.int64)
    kept = np.zeros(X.shape, np.bool_)
    block = np.arange(count)
    for i, j in zip(rows.T, columns.T, strict=True):
        room = (in_row[block, i] < n) & (in_column[block, j] < n)
        kept[block, i, j] = room
        in_row[block, i] += room
        in_column[block, j] += room
    return kept


def _saturate(S: NDArray[np.float32], kept: NDArray[np.bool_], n: int) -> None:
    """Swaps, one a block at a time, until every row and column keeps n."""
    while (open_blocks := np.flatnonzero((kept.sum(axis=2) < n).any(axis=1))).size:
        scores, mask = S[open_blocks], kept[open_blocks]
        block = np.arange(len(open_blocks))
        i = (mask.sum(axis=2) < n).argmax(axis=1)
        j = (mask.sum(axis=1) < n).argmax(axis=1)
        gain = scores[block, i][:, None, :] + scores[block, :, j][:, :, None] - scores
        gain[~mask | mask[block, i][:, None, :] | mask[block, :, j][:, :, None]] = -np.inf
        k, x = np.divmod(gain.reshape(len(block), -1).argmax(axis=1), S.shape[1])
        kept[open_blocks, k, x] = False
        kept[open_blocks, i, x] = True
        kept[open_blocks, k, j] = True
