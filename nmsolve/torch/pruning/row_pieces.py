"""The rows of a layer in pieces that are pruned one after the other, each a problem of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from nmsolve.geometry import Geometry, other_axis
from nmsolve.pattern import Pattern

#: Weights of a piece.
_AT_ONCE = 2**22


@dataclass(frozen=True, slots=True)
class RowPiece:
    """Consecutive rows of a weight, with all blocks within them whole.

    Attributes
    ----------
    layout : Geometry
        Of the piece.
    rows : slice
        Of all rows of the weight, part after part.
    parts : slice
        The weight's parts that they are of: whole ones, or rows of a single one.
    within : slice
        The rows of each of these parts.
    """

    layout: Geometry
    rows: slice
    parts: slice
    within: slice

    def of(self, weight: Tensor) -> Tensor:
        """Return the piece of a weight, or of scores of its shape: a view."""
        if self.rows == slice(None):
            return weight
        return weight.narrow(
            other_axis(self.layout.axis), self.rows.start, self.rows.stop - self.rows.start
        )


def row_pieces(layout: Geometry, pattern: Pattern) -> Iterator[RowPiece]:
    """Yield the rows of a weight in pieces of some `_AT_ONCE` weights: errors are sums over rows,
    and patterns tie rows of a block alone.
    """
    rows, parts = layout.part_rows, layout.parts
    cols = _size(layout) // max(1, rows * parts)
    # Blocks may lie across parts that are no products of their own.
    across = parts > 1 and bool(rows % pattern.rows)
    if _size(layout) <= _AT_ONCE or layout.axis > 1 or across:
        yield RowPiece(layout, slice(None), slice(0, parts), slice(0, rows))
        return
    many = _AT_ONCE // (rows * cols)
    if many:
        for first in range(0, parts, many):
            yield _piece(layout, slice(first, min(first + many, parts)), slice(0, rows))
        return
    height = max(1, _AT_ONCE // (cols * pattern.rows)) * pattern.rows
    for part in range(parts):
        starts = list(range(0, rows, height))
        if len(starts) > 1 and rows - starts[-1] < pattern.rows:
            starts.pop()  # what is shorter than a block is padded as the end of a piece with some
        for start, stop in zip(starts, [*starts[1:], rows], strict=True):
            yield _piece(layout, slice(part, part + 1), slice(start, stop))


def _piece(layout: Geometry, parts: slice, within: slice) -> RowPiece:
    first = parts.start * layout.part_rows + within.start
    count = (parts.stop - parts.start) * (within.stop - within.start)
    shape = list(layout.shape)
    shape[other_axis(layout.axis)] = count
    own = dataclasses.replace(layout, shape=tuple(shape), parts=parts.stop - parts.start)
    return RowPiece(own, slice(first, first + count), parts, within)


def _size(layout: Geometry) -> int:
    size = 1
    for extent in layout.shape:
        size *= extent
    return size
