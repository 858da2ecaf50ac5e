"""Prove a mask: by duals that are given, or by duals found here with the solvers' help. Where duals
come from does not matter to what they prove, which `certificates` evaluates.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from nmsolve.blocks import padded_shape
from nmsolve.certificates import (
    CertifiedBlocks,
    Duals,
    DualsOf,
    Floats,
    Proof,
    certify,
    given_duals,
)
from nmsolve.pattern import Pattern
from nmsolve.solvers import ASCENT, FINE
from nmsolve.stopwatch import Stopwatch
from nmsolve.validate import Scores


def prove(
    scores: Scores,
    mask: NDArray[np.bool_],
    pattern: Pattern,
    padding: str,
    *,
    duals: Duals | None = None,
    collect: bool = False,
    stopwatch: Stopwatch | None = None,
) -> Proof:
    """Return what `duals` prove about a mask that satisfies the pattern; without them, what duals
    prove that are found here.

    Parameters
    ----------
    scores, mask, pattern, padding
        As they were solved; the mask has the scores' shape.
    duals : Duals, optional
        Of the shapes that `Duals` states.
    collect : bool
        Return the duals too.
    stopwatch : Stopwatch, optional
        Stopped while kernels are compiled.

    Raises
    ------
    InputError
        If a score is not finite.
    SolverError
        If duals were given that do not belong to the pattern and the shape.
    """
    finder = _Finder(pattern, scores, stopwatch or Stopwatch())
    duals_of: DualsOf = finder.duals
    if duals is not None:
        shape = scores.array.shape
        whole = padded_shape(shape, pattern, padding)
        duals_of = given_duals(duals, shape, whole, pattern)
    return certify(
        scores, mask, pattern, padding,
        duals_of=duals_of, tighten=finder.tighten, collect=collect,
    )  # fmt: skip


class _Finder:
    """Duals of blocks, found by selection or by the ascent."""

    def __init__(self, pattern: Pattern, scores: Scores, stopwatch: Stopwatch) -> None:
        self.pattern, self.scores, self.stopwatch = pattern, scores, stopwatch

    def duals(self, S: Floats, row: int) -> tuple[Floats, Floats | None]:
        """Return duals of rows of whole blocks, wherever they stand."""
        n, m, at_most = self.pattern.n, self.pattern.m, self.pattern.at_most
        grouped = S.reshape(S.shape[0], -1, m)
        if not self.pattern.transposable or n == m:
            u = np.partition(grouped, m - n, axis=2)[:, :, m - n]
            u = np.maximum(u, 0.0) if at_most else u
            if not self.pattern.transposable:
                return u, None
            if at_most:
                u = np.zeros_like(u)
            return u, np.zeros((S.shape[0] // m, S.shape[1]))
        kind = ASCENT.computes_in(self.scores.kind, self.scores.absolute)
        return self._ascended(S, kind, self.scores.tolerance)

    def tighten(self, blocks: CertifiedBlocks) -> Floats:
        """Return the gaps of blocks (m, m) below each other, as small as float64 can show them."""
        S, pattern = blocks.S, self.pattern
        n, m = pattern.n, pattern.m
        if not pattern.transposable or n == m:
            return blocks.evaluate(*self.duals(S, 0))[2].ravel()
        from nmsolve.solvers.block_masks import codes

        u, v = self._ascended(S, "f8", FINE)
        if pattern.at_most:
            u, v = np.maximum(u, 0.0), np.maximum(v, 0.0)
        gaps = blocks.evaluate(u, v)[2].ravel()
        masks = codes(n, m)
        if len(masks) and not pattern.at_most:  # few enough to be tried
            which = (masks[:, None] >> np.arange(16) & 1).astype(bool)
            for k, (block, kept) in enumerate(
                zip(S.reshape(-1, 16), blocks.kept.reshape(-1, 16), strict=True)
            ):
                best = max(math.fsum(block[mask]) for mask in which)
                gaps[k] = min(gaps[k], max(0.0, best - math.fsum(block[kept])))
        return gaps

    def _ascended(self, S: Floats, kind: str, tolerance: float) -> tuple[Floats, Floats]:
        """Return the duals that the ascent ends with, computed in `kind`."""
        self.stopwatch.stop()
        ASCENT.make(self.pattern, kind, False, tolerance)
        from nmsolve.solvers.ascent import solve_range

        self.stopwatch.go()
        m = self.pattern.m
        block_rows, blocks_per_row = S.shape[0] // m, S.shape[1] // m
        u = np.zeros((block_rows * blocks_per_row, m))
        v = np.zeros((block_rows * blocks_per_row, m))
        X = S.astype(np.float32) if kind == "f4" else S
        mask = np.zeros(S.shape, np.uint8)
        solve_range(X, mask, 0, block_rows, self.pattern, False, tolerance / 4, (u, v))
        rows = u.reshape(block_rows, blocks_per_row, m).transpose(0, 2, 1)
        return rows.reshape(S.shape[0], blocks_per_row), v.reshape(block_rows, S.shape[1])
