"""Check that a mask satisfies a pattern. Plain NumPy: nothing here trusts a solver. What a mask is
provably worth is evaluated by `certificates`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nmsolve.blocks import check_divisible, core_shape, remainder_parts
from nmsolve.elements import kind_of, nonzero
from nmsolve.errors import InputError
from nmsolve.pattern import Pattern
from nmsolve.validate import to_array


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The findings of `verify`. True in a condition if the mask satisfies the pattern.

    Attributes
    ----------
    ok : bool
        Whether it does.
    pattern : Pattern
    shape : tuple of int
        Of the mask.
    groups : int
        How many groups there are; of a transposable pattern, rows and columns of blocks.
    violations : int
        How many of these keep a wrong number.
    first : ((int, ...), int) or None
        The first violation: the index of its first entry, and the number that it keeps.
    density : float
        Share of entries kept.
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
            return (
                f"{self.pattern} holds on shape {self.shape}: {self.groups} groups, density "
                f"{self.density:.4f}"
            )
        place, kept = self.first or ((), 0)
        return (
            f"{self.pattern} is violated on shape {self.shape} in {self.violations} of "
            f"{self.groups} groups; the first, from index {list(place)}, keeps {kept}"
        )


def verify(
    mask: ArrayLike, pattern: Pattern | str, *, at_most: bool | None = None, padding: str = "error"
) -> Report:
    """Check that a mask, or an array of weights, satisfies a pattern.

    Parameters
    ----------
    mask : (..., rows, cols) array-like
        A bool mask: under an exactly-pattern every group (transposable: every row and column of
        every block) must keep exactly n. Anything else is taken as weights, of which at most n may
        be nonzero, since a kept weight may be zero.
    pattern : Pattern or str
        Such as "2:4T".
    at_most : bool, optional
        Overrides the pattern's own.
    padding : {"error", "pad", "dense"}
        As given to `solve`: with "pad" groups cut off by the edge may keep fewer, with "dense" the
        remainder keeps everything.

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
        raise InputError(
            f"a mask for pattern {pattern} is (..., rows, cols) and not empty, got shape "
            f"{array.shape}"
        )
    if array.dtype == np.bool_:
        kept, exactly = array, not pattern.at_most
    elif kind_of(array.dtype) or array.dtype.kind == "f":  # long doubles too, which are not solved
        kept, exactly = nonzero(array), False
    else:
        raise InputError(
            f"a mask for pattern {pattern} is bool, or an array of weights; got dtype {array.dtype}"
        )
    check_divisible(array.shape, pattern, padding)
    rows, cols = core_shape(array.shape, pattern, padding)
    core = kept[..., :rows, :cols]

    groups, violations = 0, 0
    first: tuple[tuple[int, ...], int] | None = None
    for axis in (-1, -2) if pattern.transposable else (-1,):
        count, whole = _group_counts(core, axis, pattern)
        wrong = count > pattern.n
        if exactly:
            # A group that the edge cuts, or that shares a block with padding, may keep fewer.
            wrong |= (count < pattern.n) & whole
        groups += count.size
        violations += int(np.count_nonzero(wrong))
        if first is None and wrong.any():
            index = [int(i) for i in np.unravel_index(int(np.argmax(wrong)), wrong.shape)]
            at = tuple(index)
            index[axis] *= pattern.m
            first = tuple(index), int(count[at])
    if padding == "dense" and array.dtype == np.bool_:
        for part in remainder_parts(kept, pattern, padding):
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


def _group_counts(
    kept: NDArray[np.bool_], axis: int, pattern: Pattern
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the entries kept by each group along an axis, and which groups lie in no block that
    the edge cuts.
    """
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
