"""What duals prove about a mask, block by block (group by group). Plain NumPy: nothing here trusts
a solver.

The certificate of a block is a pair of duals. For *any* u, v (≥ 0 for at most)

    bound(u, v) = n Σ u_i + n Σ v_j + Σ_ij max(0, S_ij − u_i − v_j)

is at least the score of every mask of the pattern (LP duality; `docs/formulation.md`), so
evaluating it proves a bound wherever the duals come from. Row-wise groups have u alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsolve.blocks import block_matrices, core_shape, remainders
from nmsolve.elements import widen
from nmsolve.errors import SolverError
from nmsolve.pattern import Pattern
from nmsolve.solvers import APART, FINE
from nmsolve.validate import Scores, non_finite_error

#: Scores and duals down here are rounded to multiples of this.
SUBNORMAL = 5e-324

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Duals:
    """Potentials of every group or block, float64.

    rows : (..., rows, cols / m), one a row of a block (row-wise: a group). columns : (..., rows /
    m, cols), one a column of a block; None for row-wise patterns. Shapes of the padded matrix, or
    of the solved part for padding="dense".
    """

    rows: NDArray[np.float64]
    columns: NDArray[np.float64] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What duals prove.

    bound : no mask of the pattern scores more. rounding : what float64 may have lost of it. open :
    blocks (groups) whose mask they do not prove within tolerance. first : the first of these, as
    its index, the score it keeps and how much more might be possible. duals : those that were made,
    if they were asked for.
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
    """The float64 sum of kept scores."""
    parts = []
    everything = Pattern(1, 1)
    for matrix in block_matrices(scores, mask, everything, "error"):
        for first, last in matrix.tasks():
            values = _values(scores, matrix.stage(first, last, np.float64))
            parts.append(float(values[matrix.mask[first:last].astype(bool)].sum()))
    return math.fsum(parts)


def _values(scores: Scores, staged: Array) -> Array:
    return np.abs(staged, out=staged) if scores.absolute else staged


def remainder_score(scores: Scores, pattern: Pattern, padding: str) -> float:
    """What the entries outside the solved part are worth; padding="dense" keeps them all."""
    parts = remainders(scores.array, pattern, padding)
    return math.fsum(
        float(_values(scores, widen(part, scores.kind).astype(np.float64)).sum()) for part in parts
    )


def prove(
    scores: Scores,
    mask: NDArray[np.bool_],
    pattern: Pattern,
    padding: str,
    duals: Duals | None = None,
    collect: bool = False,
) -> Proof:
    """What `duals` prove about a mask that satisfies the pattern; without, what duals prove that
    are made here.

    A block is proven if no mask of it scores more, up to the tolerance of `Scores` times the
    magnitude that it keeps (or its least score that is not zero, if that is more); up to `FINE`
    times that if it is apart (`APART`). A row-wise group, for which nothing has to be rounded, is
    proven exactly or not at all.
    """
    shape = scores.array.shape
    rows, cols = _solved_shape(shape, pattern, padding)
    given = None if duals is None else _flat_duals(duals, shape, pattern, padding)
    bounds, roundings, still_open = [remainder_score(scores, pattern, padding)], [0.0], 0
    first_open: tuple[tuple[int, ...], float, float] | None = None
    made: list[tuple[Array, Array | None]] = []
    row, unit = 0, pattern.rows
    for matrix in block_matrices(scores, np.ascontiguousarray(mask), pattern, padding):
        for first, last in matrix.tasks():
            S = _values(scores, matrix.stage(first, last, np.float64))
            if not np.isfinite(S).all():
                raise non_finite_error(scores, pattern)
            if given is None:
                u, v = _potentials(S, pattern, scores)
            else:
                u = given[0][row : row + S.shape[0]]
                v = None if given[1] is None else given[1][row // unit : (row + S.shape[0]) // unit]
            if pattern.at_most:
                u, v = np.maximum(u, 0.0), None if v is None else np.maximum(v, 0.0)
            if collect:
                made.append((u, v))
            kept = np.zeros(S.shape, bool)
            part = matrix.mask[first * unit : last * unit].astype(bool)
            kept[: part.shape[0], : part.shape[1]] = part
            cut = np.zeros(
                (last - first, S.shape[1] // pattern.m), bool
            )  # blocks that the edge cuts: their own mask is not known
            cut[-1, :] |= part.shape[0] < S.shape[0]
            cut[:, -1] |= part.shape[1] < S.shape[1]
            task = _Task(S, kept, cut, pattern)
            bound, rounding, gap = task.evaluate(u, v)
            allowed = task.tolerances(scores.tolerance)
            wrong = ~(gap <= allowed)
            if wrong.any():
                gap[wrong] = task.second_look(wrong, gap[wrong])
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
                    first_open = index, float(task.objective[i, g]), float(gap[i, g])
                still_open += int(np.count_nonzero(wrong))
            bounds.append(bound)
            roundings.append(rounding)
            row += S.shape[0]
    u_all = v_all = None
    if collect:
        u_all = np.concatenate([np.zeros((0, cols // pattern.m)), *(u for u, _ in made)])
        v_all = np.concatenate([np.zeros((0, cols)), *(v for _, v in made if v is not None)])
    collected = None
    if u_all is not None and v_all is not None:
        columns = v_all.reshape((*shape[:-2], rows // unit, cols)) if pattern.transposable else None
        collected = Duals(
            rows=u_all.reshape((*shape[:-2], rows, cols // pattern.m)), columns=columns
        )
    return Proof(
        bound=math.fsum(bounds),
        rounding=math.fsum(roundings),
        open=still_open,
        first=first_open,
        duals=collected,
    )


class _Task:
    """Scores S and mask (rows, cols) of whole blocks, and what is known of each block, in arrays
    (block rows, blocks a row).
    """

    def __init__(
        self, S: Array, kept: NDArray[np.bool_], cut: NDArray[np.bool_], pattern: Pattern
    ) -> None:
        self.S, self.kept, self.cut, self.pattern = S, kept, cut, pattern
        self.objective = self._over_blocks(np.where(kept, S, 0.0))

    def _grouped(self, array: NDArray[Any]) -> NDArray[Any]:
        """(rows, cols) as (block rows, rows of one, blocks a row, m)."""
        unit, m = self.pattern.rows, self.pattern.m
        return array.reshape(array.shape[0] // unit, unit, array.shape[1] // m, m)

    def _over_blocks(self, array: NDArray[Any]) -> NDArray[Any]:
        total: NDArray[Any] = self._grouped(array).sum(axis=(1, 3))
        return total

    def evaluate(self, u: Array, v: Array | None) -> tuple[float, float, Array]:
        """The bound that u (rows, cols / m), v (rows / m, cols) prove, what float64 may have lost
        of it, and every block's gap.

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

    def tolerances(self, tolerance: float) -> Array:
        """The gap up to which each block counts as proven.

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
        allowed: Array = (
            np.where(apart, min(tolerance, FINE), tolerance) * np.maximum(size, least) + floor
        )
        return allowed

    def second_look(self, wrong: NDArray[np.bool_], gap: Array) -> Array:
        """Smaller gaps of the blocks that are `wrong`, if there are any: from duals that are as
        good as float64 has them.
        """
        if not self.pattern.transposable or self.pattern.n == self.pattern.m:
            return gap
        from nmsolve.solvers.apart import codes

        m = self.pattern.m
        places = np.argwhere(wrong)
        blocks = [(slice(i * m, (i + 1) * m), slice(g * m, (g + 1) * m)) for i, g in places]
        S, kept = (
            np.concatenate([self.S[b] for b in blocks]),
            np.concatenate([self.kept[b] for b in blocks]),
        )
        chosen = _Task(S, kept, self.cut[wrong][:, None], self.pattern)
        u, v = _ascended(S, self.pattern, FINE / 4)
        if self.pattern.at_most:
            u, v = np.maximum(u, 0.0), np.maximum(v, 0.0)
        found = np.minimum(gap, chosen.evaluate(u, v)[2].ravel())
        masks = codes(self.pattern.n, m)
        if len(masks) and not self.pattern.at_most:  # few enough to be tried
            which = (masks[:, None] >> np.arange(16) & 1).astype(bool)
            for k, block in enumerate(S.reshape(-1, 16)):
                best = max(math.fsum(block[mask]) for mask in which)
                found[k] = min(
                    found[k], max(0.0, best - math.fsum(block[kept[k * m : k * m + m].ravel()]))
                )
        return found


def _potentials(S: Array, pattern: Pattern, scores: Scores) -> tuple[Array, Array | None]:
    """Duals of a matrix (rows, cols) of whole blocks. Where they come from does not matter to what
    they prove.
    """
    n, m = pattern.n, pattern.m
    grouped = S.reshape(S.shape[0], -1, m)
    if not pattern.transposable or n == m:
        u = np.partition(grouped, m - n, axis=2)[:, :, m - n]
        u = np.maximum(u, 0.0) if pattern.at_most else u
        if not pattern.transposable:
            return u, None
        if pattern.at_most:
            u = np.zeros_like(u)
        return u, np.zeros((S.shape[0] // m, S.shape[1]))
    from nmsolve.solvers import computed_kind

    narrow = computed_kind("ascent", scores.kind, scores.absolute) == "f4"
    return _ascended(S.astype(np.float32) if narrow else S, pattern, scores.tolerance / 4)


def _ascended(S: NDArray[Any], pattern: Pattern, gap: float) -> tuple[Array, Array]:
    from nmsolve.solvers.ascent import solve_range

    m = pattern.m
    block_rows, blocks_per_row = S.shape[0] // m, S.shape[1] // m
    u, v = np.zeros((block_rows * blocks_per_row, m)), np.zeros((block_rows * blocks_per_row, m))
    solve_range(S, np.zeros(S.shape, np.uint8), 0, block_rows, pattern, False, gap, (u, v))
    return u.reshape(block_rows, blocks_per_row, m).transpose(0, 2, 1).reshape(
        S.shape[0], blocks_per_row
    ), v.reshape(block_rows, S.shape[1])


def _solved_shape(shape: tuple[int, ...], pattern: Pattern, padding: str) -> tuple[int, int]:
    """Rows and columns of the matrix that duals belong to: padded up, or cut to the solved part."""
    rows, cols = core_shape(shape, pattern, padding)
    return -(-rows // pattern.rows) * pattern.rows, -(-cols // pattern.m) * pattern.m


def _flat_duals(
    duals: Duals, shape: tuple[int, ...], pattern: Pattern, padding: str
) -> tuple[Array, Array | None]:
    rows, cols = _solved_shape(shape, pattern, padding)
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
    return flat[0].reshape(batch * rows, cols // pattern.m), flat[1].reshape(
        batch * rows // pattern.rows, cols
    ) if flat[1:] else None


def _less(x: Array, y: Array) -> tuple[Array, Array]:
    """x − y, and what rounding took from it (Knuth, The Art of Computer Programming, vol. 2, 4.2.2,
    Theorem B).
    """
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # duals beyond float64 prove nothing, and say so by a gap that is no number
        total = x - y
        second = total - x
        return total, (x - (total - second)) - (y + second)
