"""The geometry of a weight: its reduction axis, its matrices, its parts, and the patterns that its
shape holds.

A weight is (out, in, kernel …) or (in, out), and groups lie along its reduction axis, the input
channels. Functions take shapes, or arrays of any library that has `reshape` and `swapaxes` (NumPy,
PyTorch); orientations are views.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from nmsolve.errors import InputError
from nmsolve.pattern import Pattern

#: What becomes of a shape that a pattern does not divide, in `solve`.
PADDINGS = ("error", "pad", "dense")
DEPTHWISE = "depthwise: every filter sees one input channel"


class Array(Protocol):
    """An array of any library.

    Attributes
    ----------
    ndim : int
    """

    @property
    def ndim(self) -> int: ...


ArrayT = TypeVar("ArrayT", bound=Array)


def check_padding(padding: object, paddings: Sequence[str] = PADDINGS) -> None:
    """Raise InputError unless a padding is one of those that there are."""
    if not isinstance(padding, str) or padding not in paddings:
        raise InputError(
            f"padding must be one of {', '.join(map(repr, paddings))}, got {padding!r}"
        )


def other_axis(axis: int) -> int:
    """Return the axis that, with the one that groups lie along, spans a weight's matrices."""
    return axis - 1 if axis else 1


def as_matrices(array: ArrayT, axis: int) -> ArrayT:
    """Return a view (…, rows, columns) of a weight, with its groups along the columns.

    Parameters
    ----------
    array : array of two axes or more
        A weight, or a mask or scores of its shape.
    axis : int
        The axis that groups lie along.

    Examples
    --------
    >>> import numpy as np
    >>> as_matrices(np.zeros((32, 16, 3, 5)), 1).shape, as_matrices(np.zeros((16, 32)), 0).shape
    ((3, 5, 32, 16), (32, 16))
    """
    other = other_axis(axis)
    if (other, axis) == (array.ndim - 2, array.ndim - 1):
        return array
    return _to_end(_to_end(array, other), axis - (axis > other))


def from_matrices(matrices: ArrayT, axis: int) -> ArrayT:
    """Return the inverse of `as_matrices`: a view in the weight's order of axes."""
    other = other_axis(axis)
    if (other, axis) == (matrices.ndim - 2, matrices.ndim - 1):
        return matrices
    return _from_end(_from_end(matrices, axis - (axis > other)), other)


def as_groups(array: ArrayT, axis: int, m: int) -> ArrayT:
    """Return a weight as groups, (…, m): a view if it can be, in an order that begins with the
    weight's first axis.

    So a weight that is cut along its first axis (in multiples of m, if that is the groups' axis)
    has its groups cut alike.
    """
    given: Any = array
    shape = tuple(given.shape)
    split = (*shape[:axis], shape[axis] // m, m, *shape[axis + 1 :])
    groups: ArrayT = given.reshape(split)
    return _to_end(groups, axis + 1)


def from_groups(groups: ArrayT, axis: int) -> ArrayT:
    """Return the inverse of `as_groups`."""
    split: Any = _from_end(groups, axis + 1)
    shape = tuple(split.shape)
    whole: ArrayT = split.reshape(
        (*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :])
    )
    return whole


def _to_end(array: ArrayT, axis: int) -> ArrayT:
    """A view with an axis moved behind all others."""
    moved: Any = array
    for place in range(axis, array.ndim - 1):
        moved = moved.swapaxes(place, place + 1)
    found: ArrayT = moved
    return found


def _from_end(array: ArrayT, axis: int) -> ArrayT:
    """The inverse of `_to_end`."""
    moved: Any = array
    for place in reversed(range(axis, array.ndim - 1)):
        moved = moved.swapaxes(place, place + 1)
    found: ArrayT = moved
    return found


def remainders(rows: int, columns: int, pattern: Pattern) -> tuple[int, int]:
    """Return how many rows and columns of a matrix are left over by whole groups, or blocks."""
    return rows % pattern.rows, columns % pattern.m


@dataclass(frozen=True, slots=True)
class Geometry:
    """The place of groups in a weight.

    Attributes
    ----------
    shape : tuple of int
    axis : int
        The axis that groups lie along.
    parts : int
        How many pieces of it have inputs of their own: filter groups of a convolution, packed
        projections, matrices of a stack. Each is a matrix, of consecutive rows.
    apart : bool
        Whether blocks must stay within a part. Filter groups are products of their own, forwards
        and backwards; packed projections are one.
    """

    shape: tuple[int, ...]
    axis: int
    parts: int = 1
    apart: bool = False

    @property
    def rows(self) -> int:
        """Rows that a block may span: outputs, of a part where parts are apart."""
        return self.part_rows if self.apart else self.shape[other_axis(self.axis)]

    @property
    def part_rows(self) -> int:
        """Rows of a part."""
        other = other_axis(self.axis)
        return math.prod(self.shape[: min(self.axis, other)]) * self.shape[other] // self.parts

    @property
    def columns(self) -> int:
        """Inputs at one kernel position, along which groups lie."""
        return self.shape[self.axis]

    @property
    def is_depthwise(self) -> bool:
        """True if each of several filter groups sees one input channel."""
        return self.apart and self.parts > 1 and self.columns == 1

    def unfit(self, pattern: Pattern, padding: str, *, channels: bool = False) -> str | None:
        """Return why the shape does not hold a pattern; None if it does.

        Parameters
        ----------
        padding : {"skip", "error", "pad", "dense"}
        channels : bool
            Whether to speak of input and output channels, as of a layer, rather than of axes.
        """
        m, unit = pattern.m, "block" if pattern.transposable else "group"
        if 0 in self.shape:
            return "it has no element"
        if self.is_depthwise and m > 1:
            return DEPTHWISE
        rows, columns = remainders(self.rows, self.columns, pattern)
        inside = (
            f" within each of its {self.parts} filter groups"
            if self.apart and self.parts > 1
            else ""
        )
        if rows and inside:
            return f"{self.rows} output channels{inside} do not consist of {unit}s of {m}"
        if padding in ("pad", "dense"):
            outputs = self.shape[other_axis(self.axis)]
            if padding == "dense" and (self.columns < m or outputs < pattern.rows):
                return f"smaller than one {unit} of {m}"
            return None
        if columns:
            return (
                f"{self.columns} input channels{inside} do not consist of groups of {m}"
                if channels
                else f"its axis {self.axis} does not consist of {unit}s of {m}"
            )
        if rows:
            return (
                f"{self.rows} output channels do not consist of {unit}s of {m}"
                if channels
                else f"its axis {other_axis(self.axis)} does not consist of {unit}s of {m}"
            )
        return None

    def matrices(self, array: ArrayT) -> ArrayT:
        """Return (parts, rows, columns) of a weight, or of a mask or scores of its shape, so that
        outputs are inputs times the transposed part.

        Columns are runs of input channels, one run for each kernel position: groups are consecutive
        columns in a run.
        """
        given: Any = array
        last = _to_end(given, self.axis)  # (leading …, rows, kernel …, columns)
        found: ArrayT = last.reshape((self.parts, self.part_rows, -1))
        return found

    def weight(self, matrices: ArrayT) -> ArrayT:
        """Return the inverse of `matrices`."""
        given: Any = matrices
        shape = (*self.shape[: self.axis], *self.shape[self.axis + 1 :], self.columns)
        found: ArrayT = _from_end(given.reshape(shape), self.axis)
        return found

    def run_groups(self, pattern: Pattern, padding: str) -> list[tuple[int, int, int]]:
        """Return (first column, columns, columns kept) of every group of a run; a remainder that is
        shorter than m as `padding` has it.
        """
        run, m = self.columns, pattern.m
        groups = [(start, min(m, run - start)) for start in range(0, run, m)]
        return [
            (
                start,
                size,
                pattern.n if size == m else size if padding == "dense" else min(pattern.n, size),
            )
            for start, size in groups
        ]
