"""Whether a mask satisfies a pattern, and what it is provably worth. Plain NumPy: nothing here trusts a solver.

The certificate of a block is a pair of duals. For *any* u, v (≥ 0 for at most)

    bound(u, v) = n Σ u_i + n Σ v_j + Σ_ij max(0, S_ij − u_i − v_j)

is at least the score of every mask of the pattern (LP duality; `docs/formulation.md`), so evaluating it proves a bound wherever
the duals come from. Row-wise groups have u alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nmsolve.blocks import core_shape, remainders, sheets
from nmsolve.errors import InputError, SolverError
from nmsolve.pattern import Pattern
from nmsolve.validate import Scores, check_divisible, is_bfloat16, non_finite_error, to_array


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `verify` found. True in a condition if the mask satisfies the pattern.

    violations : groups (of a transposable pattern: rows and columns of blocks) that keep a wrong number.
    groups : how many there are. first : where the first is, as (index of its first entry) and the number it keeps.
    density : share of entries kept.
    """

    ok: bool
    pattern: Pattern
    shape: tuple[int, ...]
    groups: int
    violations: int
    first: tuple[tuple[int, ...], int] | None
    density: float

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        if self.ok:
            return f"{self.pattern} holds on shape {self.shape}: {self.groups} groups, density {self.density:.4f}"
        place, kept = self.first or ((), 0)
        return (
            f"{self.pattern} is violated on shape {self.shape} in {self.violations} of {self.groups} groups; "
            f"the first, from index {list(place)}, keeps {kept}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Duals:
    """Potentials of every group or block, float64.

    rows : (..., rows, cols / m), one a row of a block (row-wise: a group). columns : (..., rows / m, cols), one a column
    of a block; None for row-wise patterns. Shapes of the padded matrix, or of the solved part for padding="dense".
    """

    rows: NDArray[np.float64]
    columns: NDArray[np.float64] | None


def verify(mask: ArrayLike, pattern: Pattern | str, *, at_most: bool | None = None, padding: str = "error") -> Report:
    """Whether a mask, or an array of weights, satisfies a pattern.

    Parameters
    ----------
    mask : (..., rows, cols) array-like
        A bool mask: under an exactly-pattern every group (transposable: every row and column of every block) must keep exactly n.
        Anything else is taken as weights, of which at most n may be nonzero, since a kept weight may be zero.
    pattern : Pattern or str
        Such as "2:4T".
    at_most : bool, optional
        Overrides the pattern's own.
    padding : {"error", "pad", "dense"}
        As given to `solve`: with "pad" groups cut off by the edge may keep fewer, with "dense" the remainder keeps everything.

    Returns
    -------
    Report

    Raises
    ------
    PatternError, InputError
        If the pattern or the shape cannot be checked.

    Examples
    --------
    >>> import numpy as np
    >>> verify(np.array([[True, False, True, False]]), "2:4").ok
    True
    >>> verify(np.array([[3.0, 0.0, 0.0, 0.0]]), "2:4").ok
    True
    """
    pattern = Pattern.of(pattern, at_most)
    array = to_array(mask, "mask", f"pattern {pattern}")
    if array.ndim < 2 or array.size == 0:
        raise InputError(f"a mask for pattern {pattern} is (..., rows, cols) and not empty, got shape {array.shape}")
    if array.dtype == np.bool_:
        kept, exactly = array, not pattern.at_most
    elif is_bfloat16(array.dtype):
        kept, exactly = (array.view(np.uint16) & 0x7FFF) != 0, False
    elif array.dtype.kind in "iuf":
        kept, exactly = array != 0, False
    else:
        raise InputError(f"a mask for pattern {pattern} is bool, or an array of weights; got dtype {array.dtype}")
    check_divisible(array.shape, pattern, padding)
    rows, cols = core_shape(array.shape, pattern, padding)
    core = kept[..., :rows, :cols]

    groups, violations = 0, 0
    first: tuple[tuple[int, ...], int] | None = None
    for axis in (-1, -2) if pattern.transposable else (-1,):
        count, whole = _group_counts(core, axis, pattern)
        wrong = count > pattern.n
        if exactly:
            # A group cut off by the edge, or that shares a block with padding, may keep fewer than n.
            wrong |= (count < pattern.n) & whole
        groups += count.size
        violations += int(np.count_nonzero(wrong))
        if first is None and wrong.any():
            index = [int(i) for i in np.unravel_index(int(np.argmax(wrong)), wrong.shape)]
            at = tuple(index)
            index[axis] *= pattern.m
            first = tuple(index), int(count[at])
    if padding == "dense" and array.dtype == np.bool_:
        for part in remainders(kept, pattern, padding):
            missing = int(part.size - np.count_nonzero(part))
            violations += missing
            groups += part.size
    return Report(
        ok=violations == 0,
        pattern=pattern,
        shape=array.shape,
        groups=groups,
        violations=violations,
        first=first,
        density=float(np.count_nonzero(kept)) / array.size,
    )


def _group_counts(kept: NDArray[np.bool_], axis: int, pattern: Pattern) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Entries kept by each group along an axis, and which groups lie in no block that the edge cuts."""
    m, size, other = pattern.m, kept.shape[axis], kept.shape[-3 - axis]
    if kept.size == 0:
        shape = [*kept.shape]
        shape[axis] = 0
        return np.zeros(shape, np.int64), np.zeros(shape, bool)
    count = np.add.reduceat(kept, np.arange(0, size, m), axis=axis, dtype=np.int64)
    whole = np.ones(count.shape, bool)
    if size % m:
        np.moveaxis(whole, axis, -1)[..., -1] = False
    if pattern.transposable and other % m:
        np.moveaxis(whole, -3 - axis, -1)[..., other - other % m :] = False
    return count, whole


def objective(scores: Scores, mask: NDArray[np.bool_]) -> float:
    """The float64 sum of kept scores."""
    parts = []
    everything = Pattern(1, 1)
    for sheet in sheets(scores, mask, everything, "error"):
        for first, last in sheet.tasks():
            values = _values(scores, sheet.stage(first, last, np.float64))
            parts.append(float(values[sheet.mask[first:last].astype(bool)].sum()))
    return math.fsum(parts)


def _values(scores: Scores, staged: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.abs(staged, out=staged) if scores.absolute else staged


def evaluate(
    S: NDArray[np.float64], u: NDArray[np.float64], v: NDArray[np.float64] | None, pattern: Pattern
) -> tuple[float, float]:
    """The bound that duals prove for a matrix S (rows, cols), and what float64 may have rounded away of it.

    u (rows, cols / m), v (rows / m, cols) or None.
    """
    n, m = pattern.n, pattern.m
    rest = S.reshape(S.shape[0], -1, m) - u[:, :, None]
    total, size = n * float(u.sum()), float(np.abs(u).sum())
    if v is not None:
        rest -= np.repeat(v, m, axis=0).reshape(rest.shape)
        total += n * float(v.sum())
        size += float(np.abs(v).sum())
    return total + float(np.maximum(rest, 0.0, out=rest).sum()), 2.0**-50 * (n + m) * size


def _potentials(S: NDArray[np.float64], pattern: Pattern, scores: Scores) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Duals of a matrix (rows, cols) of whole blocks. Where they come from does not matter to what they prove."""
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
    from nmsolve.solvers.ascent import solve_range

    block_rows, a_row = S.shape[0] // m, S.shape[1] // m
    u, v = np.zeros((block_rows * a_row, m)), np.zeros((block_rows * a_row, m))
    source: NDArray[Any] = S.astype(np.float32) if computed_kind("ascent", scores.kind, scores.absolute) == "f4" else S
    solve_range(source, np.zeros(S.shape, np.uint8), 0, block_rows, pattern, False, scores.tolerance / 4, (u, v))
    return u.reshape(block_rows, a_row, m).transpose(0, 2, 1).reshape(S.shape[0], a_row), v.reshape(block_rows, S.shape[1])


def dual_bound(
    scores: Scores, pattern: Pattern, padding: str, duals: Duals | None, collect: bool = False
) -> tuple[float, float, Duals | None]:
    """An upper bound on the score of every mask of the pattern, and the rounding it may be off by.

    From `duals` or, without, from duals made here; with `collect` these are returned too.
    """
    shape = scores.array.shape
    scratch = np.empty(shape, np.bool_)  # never written: only its shape is used
    parts = [remainder_score(scores, pattern, padding)]
    roundings = [0.0]
    given = None if duals is None else _flat_duals(duals, shape, pattern, padding)
    made: list[tuple[NDArray[np.float64], NDArray[np.float64] | None]] = []
    row, block_row = 0, 0
    for sheet in sheets(scores, scratch, pattern, padding):
        for first, last in sheet.tasks():
            S = _values(scores, sheet.stage(first, last, np.float64))
            if not np.isfinite(S).all():
                raise non_finite_error(scores, pattern)
            if given is None:
                u, v = _potentials(S, pattern, scores)
            else:
                u = given[0][row : row + S.shape[0]]
                v = None if given[1] is None else given[1][block_row : block_row + last - first]
                row, block_row = row + S.shape[0], block_row + last - first
            if pattern.at_most:
                u, v = np.maximum(u, 0.0), None if v is None else np.maximum(v, 0.0)
            if collect:
                made.append((u, v))
            bound, rounding = evaluate(S, u, v, pattern)
            parts.append(bound)
            roundings.append(rounding)
    bound, rounding = math.fsum(parts), math.fsum(roundings)
    if not collect:
        return bound, rounding, None
    rows, cols = _solved_shape(shape, pattern, padding)
    u_all = np.concatenate([u for u, _ in made]) if made else np.zeros((0, 0))
    shape_u = (*shape[:-2], rows, cols // pattern.m)
    shape_v = (*shape[:-2], rows // pattern.rows, cols)
    if not pattern.transposable:
        return bound, rounding, Duals(rows=u_all.reshape(shape_u), columns=None)
    v_all = np.concatenate([v for _, v in made if v is not None]) if made else np.zeros((0, 0))
    return bound, rounding, Duals(rows=u_all.reshape(shape_u), columns=v_all.reshape(shape_v))


def _dense(scores: Scores, part: NDArray[Any]) -> NDArray[np.float64]:
    if scores.kind == "bf16":
        return (part.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return part.astype(np.float64)


def remainder_score(scores: Scores, pattern: Pattern, padding: str) -> float:
    """What the entries outside the solved part are worth; padding="dense" keeps them all."""
    return math.fsum(float(_values(scores, _dense(scores, part)).sum()) for part in remainders(scores.array, pattern, padding))


def _solved_shape(shape: tuple[int, ...], pattern: Pattern, padding: str) -> tuple[int, int]:
    """Rows and columns of the matrix that duals belong to: padded up, or cut to the solved part."""
    rows, cols = core_shape(shape, pattern, padding)
    return -(-rows // pattern.rows) * pattern.rows, -(-cols // pattern.m) * pattern.m


def _flat_duals(
    duals: Duals, shape: tuple[int, ...], pattern: Pattern, padding: str
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    rows, cols = _solved_shape(shape, pattern, padding)
    expected = [(*shape[:-2], rows, cols // pattern.m)]
    found = [duals.rows.shape]
    if pattern.transposable:
        expected.append((*shape[:-2], rows // pattern.m, cols))
        found.append(() if duals.columns is None else duals.columns.shape)
    if found != expected or not all(np.isfinite(d).all() for d in (duals.rows, duals.columns) if d is not None):
        raise SolverError(f"duals of pattern {pattern} on shape {shape} are finite and have shapes {expected}, got {found}")
    batch = math.prod(shape[:-2])
    u = duals.rows.reshape(batch * rows, cols // pattern.m)
    return u, None if duals.columns is None else duals.columns.reshape(batch * rows // pattern.rows, cols)
