"""Evaluate what duals prove about a mask, block by block (group by group). Plain NumPy: nothing
here asks or trusts a solver; `proofs` finds duals where none are given.

The certificate of a block is a pair of duals. For *any* u, v (≥ 0 for at most)

    bound(u, v) = n Σ u_i + n Σ v_j + Σ_ij max(0, S_ij − u_i − v_j)

is at least the score of every mask of the pattern (LP duality; `docs/formulation.md`), so
evaluating it proves a bound wherever the duals come from. Row-wise groups have u alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol

import numpy as np
from numpy.typing import NDArray

from nmsolve.blocks import block_matrices, padded_shape, remainder_score
from nmsolve.errors import SolverError
from nmsolve.pattern import Pattern
from nmsolve.solvers import APART, FINE
from nmsolve.validate import Scores, non_finite_error


class Shaped(Protocol):
    """An array of any library.

    Attributes
    ----------
    shape : tuple of int
    """

    @property
    def shape(self) -> Any:
        """Sizes of its axes."""


if TYPE_CHECKING:  # the default of a type variable: an annotation without brackets means NumPy's
    from typing_extensions import TypeVar

    Array = TypeVar("Array", bound=Shaped, default=NDArray[Any])
else:
    from typing import TypeVar

    Array = TypeVar("Array", bound=Shaped)

#: Scores and duals down here are rounded to multiples of this.
SUBNORMAL = 5e-324

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Duals(Generic[Array]):
    """Potentials of every group or block, float64. Shapes are of the padded matrix, or of the
    solved part for padding="dense".

    Attributes
    ----------
    rows : (..., rows, cols / m) array
        One per row of a block; row-wise, per group.
    columns : (..., rows / m, cols) array or None
        One per column of a block; None for row-wise patterns.
    """

    rows: Array
    columns: Array | None


#: (scores (rows, cols) of whole blocks, their first row) → u (rows, cols / m), v (rows / m, cols).
DualsOf = Callable[[Floats, int], tuple[Floats, Floats | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """The proof that duals give of a mask.

    Attributes
    ----------
    bound : float
        No mask of the pattern scores more.
    rounding : float
        The most that float64 may have lost of the bound.
    open : int
        Blocks (groups) whose mask is not proven within tolerance.
    first : (index, float, float) or None
        The first of these: its index, the score it keeps, and how much more might be possible.
    duals : Duals or None
        Those that were used, if they were asked for.
    """

    bound: float
    rounding: float
    open: int
    first: tuple[tuple[int, ...], float, float] | None
    duals: Duals | None

    def __str__(self) -> str:
        if self.first is None:
            return "every block is proven"
        index, kept, gap = self.first
        return (
            f"the block at index {list(index)} keeps {kept!r}, and {gap:.3g} more is not ruled "
            f"out ({self.open} such blocks)"
        )


def objective(scores: Scores, mask: NDArray[np.bool_]) -> float:
    """Return the sum of kept scores, in float64."""
    parts = []
    everything = Pattern(1, 1)
    for matrix in block_matrices(scores, mask, everything, "error"):
        for first, last in matrix.tasks():
            kept = matrix.mask[first:last].astype(bool)
            parts.append(float(matrix.scores(first, last)[kept].sum()))
    return math.fsum(parts)


class CertifiedBlocks:
    """Whole blocks, their mask, and how much of it duals prove.

    Attributes
    ----------
    S : (rows, cols) float64 array
        Scores.
    kept : (rows, cols) bool array
        The mask.
    cut : (block rows, blocks per row) bool array
        Blocks that the edge of the matrix cuts: their own mask is not known.
    pattern : Pattern
    objective : (block rows, blocks per row) float64 array
        What the mask keeps of each block.
    """

    def __init__(
        self, S: Floats, kept: NDArray[np.bool_], cut: NDArray[np.bool_], pattern: Pattern
    ) -> None:
        self.S, self.kept, self.cut, self.pattern = S, kept, cut, pattern
        self.objective: Floats = self._grouped(np.where(kept, S, 0.0)).sum(axis=(1, 3))

    def _grouped(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return (rows, cols) as (block rows, rows of one, blocks per row, m)."""
        unit, m = self.pattern.rows, self.pattern.m
        return array.reshape(array.shape[0] // unit, unit, array.shape[1] // m, m)

    def evaluate(self, u: Floats, v: Floats | None) -> tuple[float, float, Floats]:
        """Return the bound that u (rows, cols / m), v (rows / m, cols) prove, what float64 may have
        lost of it, and the gap of each block.

        bound − objective is the sum of what contradicts the signs of r = S − u − v. These are
        computed in twice the precision of float64, or duals as large as 1e20 would lose S.
        """
        n, m, unit = self.pattern.n, self.pattern.m, self.pattern.rows
        rest, low = _less(self._grouped(self.S), u.reshape(-1, unit, u.shape[1], 1))
        duals = u.reshape(-1, unit, u.shape[1]).sum(axis=1)
        sizes = np.abs(u).reshape(-1, unit, u.shape[1]).sum(axis=1)
        kept = self._grouped(self.kept)
        short = u.reshape(-1, unit, u.shape[1]) * (n - kept.sum(axis=3))
        lost = short.sum(axis=1)
        if v is not None:
            columns = v.reshape(v.shape[0], -1, m)
            rest, more = _less(rest, columns[:, None])
            low = low + more
            duals = duals + columns.sum(axis=2)
            sizes = sizes + np.abs(columns).sum(axis=2)
            lost += (columns * (n - kept.sum(axis=1))).sum(axis=2)
        rest = rest + low
        positive = np.maximum(rest, 0.0)
        bound = n * duals + positive.sum(axis=(1, 3))
        rounding = 2.0**-50 * (n + m) * sizes
        gap = np.where(kept, positive - rest, positive).sum(axis=(1, 3)) + lost
        # What padding keeps of a block that the edge cuts is not in the mask.
        gap = np.where(self.cut, bound - self.objective - rounding, gap)
        return float(bound.sum()), float(rounding.sum()), gap

    def tolerances(self, tolerance: float) -> Floats:
        """Return the gap up to which each block counts as proven.

        A block is apart (`APART`) where what some row keeps is nothing beside its largest score.
        """
        sizes = self._grouped(np.abs(self.S))
        rows = np.where(self._grouped(self.kept), sizes, 0.0).sum(axis=3)
        size = rows.sum(axis=1)
        floor = 4 * self.pattern.m * self.pattern.rows * SUBNORMAL
        if not self.pattern.transposable:
            return np.where(self.cut, 2.0**-48 * size, 0.0) + floor
        limit = np.ldexp(APART, np.frexp(sizes.max(axis=(1, 3)))[1] - 1)
        apart = ((rows > 0) & (rows < limit[:, None])).any(axis=1)
        least = np.where(sizes > 0, sizes, np.inf).min(axis=(1, 3))
        least = np.where(np.isfinite(least), least, 0.0)
        allowed: Floats = (
            np.where(apart, min(tolerance, FINE), tolerance) * np.maximum(size, least) + floor
        )
        return allowed

    def chosen(self, which: NDArray[np.bool_]) -> CertifiedBlocks:
        """Return some of the blocks of a transposable pattern, below each other."""
        m = self.pattern.m
        places = np.argwhere(which)
        parts = [(slice(i * m, (i + 1) * m), slice(g * m, (g + 1) * m)) for i, g in places]
        S = np.concatenate([self.S[part] for part in parts])
        kept = np.concatenate([self.kept[part] for part in parts])
        return CertifiedBlocks(S, kept, self.cut[which][:, None], self.pattern)


def certify(
    scores: Scores,
    mask: NDArray[np.bool_],
    pattern: Pattern,
    padding: str,
    *,
    duals_of: DualsOf,
    tighten: Callable[[CertifiedBlocks], Floats],
    collect: bool,
) -> Proof:
    """Return what duals prove about a mask that satisfies the pattern.

    A block is proven if no mask of it scores more, up to the tolerance of `Scores` times the
    magnitude that it keeps (or its least score that is not zero, if that is more); up to `FINE`
    times that if it is apart (`APART`). A row-wise group, for which nothing has to be rounded, is
    proven exactly or not at all.

    Parameters
    ----------
    scores, mask, pattern, padding
        As they were solved; the mask has the scores' shape.
    duals_of : callable
        Gives u, v of (rows, cols) scores of whole blocks, from this row on of all.
    tighten : callable
        Gives the gaps of blocks of which those do not prove enough.
    collect : bool
        Return the duals too.

    Raises
    ------
    InputError
        If a score is not finite.
    """
    shape, unit = scores.array.shape, pattern.rows
    bounds, roundings, still_open = [remainder_score(scores, pattern, padding)], [0.0], 0
    first_open: tuple[tuple[int, ...], float, float] | None = None
    used: list[tuple[Floats, Floats | None]] = []
    rows, cols = padded_shape(shape, pattern, padding)
    row = 0
    for matrix in block_matrices(scores, np.ascontiguousarray(mask), pattern, padding):
        for first, last in matrix.tasks():
            S = matrix.scores(first, last)
            if not np.isfinite(S).all():
                raise non_finite_error(scores, pattern)
            u, v = duals_of(S, row)
            if pattern.at_most:
                u, v = np.maximum(u, 0.0), None if v is None else np.maximum(v, 0.0)
            if collect:
                used.append((u, v))
            kept = np.zeros(S.shape, bool)
            part = matrix.mask[first * unit : last * unit].astype(bool)
            kept[: part.shape[0], : part.shape[1]] = part
            cut = np.zeros((last - first, S.shape[1] // pattern.m), bool)
            cut[-1, :] |= part.shape[0] < S.shape[0]
            cut[:, -1] |= part.shape[1] < S.shape[1]
            blocks = CertifiedBlocks(S, kept, cut, pattern)
            bound, rounding, gap = blocks.evaluate(u, v)
            allowed = blocks.tolerances(scores.tolerance)
            wrong = ~(gap <= allowed)
            if wrong.any() and pattern.transposable:
                gap[wrong] = np.minimum(gap[wrong], tighten(blocks.chosen(wrong)))
                wrong = ~(gap <= allowed)
            if wrong.any():
                if first_open is None:
                    i, g = (int(k) for k in np.argwhere(wrong)[0])
                    batch, inside = divmod(row + i * unit, rows)
                    index = (
                        *(int(k) for k in np.unravel_index(batch, shape[:-2])),
                        inside,
                        g * pattern.m,
                    )
                    first_open = index, float(blocks.objective[i, g]), float(gap[i, g])
                still_open += int(np.count_nonzero(wrong))
            bounds.append(bound)
            roundings.append(rounding)
            row += S.shape[0]
    return Proof(
        bound=math.fsum(bounds),
        rounding=math.fsum(roundings),
        open=still_open,
        first=first_open,
        duals=_joined(used, (*shape[:-2], rows, cols), pattern) if collect else None,
    )


def given_duals(
    duals: Duals, shape: tuple[int, ...], whole: tuple[int, int], pattern: Pattern
) -> DualsOf:
    """Return the function that reads duals off given ones.

    Parameters
    ----------
    duals : Duals
    shape : tuple of int
        Of the scores.
    whole : tuple of int
        Rows and columns of a matrix's whole blocks.

    Raises
    ------
    SolverError
        If they are not finite real numbers of the shapes that belong to the pattern.
    """
    rows, cols = whole
    expected = [(*shape[:-2], rows, cols // pattern.m)]
    found = [duals.rows]
    if pattern.transposable:
        expected.append((*shape[:-2], rows // pattern.m, cols))
        found += [] if duals.columns is None else [duals.columns]
    shapes = [part.shape for part in found]
    if shapes != expected or not all(
        part.dtype.kind in "fiu" and np.isfinite(part).all() for part in found
    ):
        what = ", ".join(f"{part.dtype} {part.shape}" for part in found)
        raise SolverError(
            f"duals of pattern {pattern} on shape {shape} are finite real numbers of shapes "
            f"{expected}, got {what}"
        )
    batch = math.prod(shape[:-2])
    flat = [part.astype(np.float64, copy=False) for part in found]
    unit = pattern.rows
    u = flat[0].reshape(batch * rows, cols // pattern.m)
    v = flat[1].reshape(batch * rows // unit, cols) if flat[1:] else None

    def read(S: Floats, row: int) -> tuple[Floats, Floats | None]:
        last = row + S.shape[0]
        return u[row:last], None if v is None else v[row // unit : last // unit]

    return read


def _joined(
    parts: list[tuple[Floats, Floats | None]], shape: tuple[int, ...], pattern: Pattern
) -> Duals:
    """Return the duals of all tasks as those of an array of whole blocks."""
    *batch, rows, cols = shape
    m, unit = pattern.m, pattern.rows
    u = np.concatenate([np.zeros((0, cols // m)), *(u for u, _ in parts)])
    v = np.concatenate([np.zeros((0, cols)), *(v for _, v in parts if v is not None)])
    return Duals(
        rows=u.reshape((*batch, rows, cols // m)),
        columns=v.reshape((*batch, rows // unit, cols)) if pattern.transposable else None,
    )


def _less(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Return x − y, and what rounding took from it (Knuth, The Art of Computer Programming, vol. 2,
    4.2.2, Theorem B).
    """
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # duals beyond float64 prove nothing, and say so by a gap that is no number
        total = x - y
        second = total - x
        return total, (x - (total - second)) - (y + second)
