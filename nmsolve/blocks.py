"""From an array (..., rows, cols) to rows of blocks that kernels can read, without copying more
than a task's worth.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsolve.elements import widen
from nmsolve.pattern import Pattern
from nmsolve.validate import Scores

#: Weights a task, and blocks a task at least: enough to keep 16 lanes full and threads busy.
#: Results are summed task by task, and tasks depend on the shape alone, so objectives too are the
#: same for every number of threads.
TASK_WEIGHTS, TASK_BLOCKS = 2**18, 512
#: An array whose axes cannot be flattened as a view is flattened by copies of at most this many
#: elements.
COPY_LIMIT = 2**21


@dataclass(frozen=True, slots=True)
class BlockMatrix:
    """A matrix whose rows of blocks are solved: source (rows, cols) in any strides, and the mask's
    view for it.
    """

    source: NDArray[Any]
    mask: NDArray[np.uint8]
    kind: str
    pattern: Pattern

    @property
    def block_rows(self) -> int:
        return -(-int(self.source.shape[0]) // self.pattern.rows)

    @property
    def padded_columns(self) -> int:
        return -(-int(self.source.shape[1]) // self.pattern.m) * self.pattern.m

    @property
    def even(self) -> bool:
        """Whether blocks tile the matrix without a remainder."""
        rows, cols = (int(size) for size in self.source.shape)
        return rows % self.pattern.rows == 0 and cols == self.padded_columns

    @property
    def direct(self) -> bool:
        """Whether kernels can read the source in place."""
        source = self.source
        return bool(
            self.even
            and self.kind in ("f4", "f8", "f16", "bf16")
            and source.dtype.isnative
            and source.flags.aligned
            and int(source.strides[1]) == source.itemsize
            and int(source.strides[0]) % source.itemsize == 0
        )

    def tasks(self) -> Iterator[tuple[int, int]]:
        """Ranges of block rows, each worth one call of a kernel."""
        unit = self.pattern.rows
        blocks_per_row = self.padded_columns // self.pattern.m
        step = max(
            1, TASK_WEIGHTS // (self.padded_columns * unit), -(-TASK_BLOCKS // blocks_per_row)
        )
        for first in range(0, self.block_rows, step):
            yield first, min(self.block_rows, first + step)

    def stage(self, first: int, last: int, dtype: type[np.floating[Any]]) -> NDArray[Any]:
        """Block rows first … last − 1 as a contiguous array, widened exactly, zeros beyond the
        edge.
        """
        unit = self.pattern.rows
        part = self.source[first * unit : last * unit]
        buffer = np.zeros(((last - first) * unit, self.padded_columns), dtype)
        inside = buffer[: part.shape[0], : part.shape[1]]
        np.copyto(inside, widen(part, self.kind), casting="unsafe")
        return buffer


def _flat(array: NDArray[Any]) -> NDArray[Any] | None:
    """(..., rows, cols) as (all rows, cols) without a copy, or None."""
    try:
        return np.reshape(array, (-1, array.shape[-1]), copy=False)
    except ValueError:
        return None


def _block_matrices(
    source: NDArray[Any], mask: NDArray[Any], kind: str, pattern: Pattern
) -> Iterator[BlockMatrix]:
    if source.ndim == 2:
        yield BlockMatrix(source, mask, kind, pattern)
        return
    flat_mask = _flat(mask) if source.shape[-2] % pattern.rows == 0 else None
    if flat_mask is not None:
        flat = _flat(source)
        if flat is None and source.size <= COPY_LIMIT:
            flat = np.ascontiguousarray(source).reshape(-1, source.shape[-1])
        if flat is not None:
            yield BlockMatrix(flat, flat_mask, kind, pattern)
            return
    if source.shape[0] == 1:
        yield from _block_matrices(source[0], mask[0], kind, pattern)
        return
    step = 1
    if flat_mask is not None:
        step = min(source.shape[0] - 1, max(1, COPY_LIMIT // source[0].size))
    for start in range(0, source.shape[0], step):
        piece = slice(start, start + step)
        yield from _block_matrices(source[piece], mask[piece], kind, pattern)


def core_shape(shape: tuple[int, ...], pattern: Pattern, padding: str) -> tuple[int, int]:
    """Rows and columns that are solved: all of them, or without the remainder that padding="dense"
    keeps.
    """
    rows, cols = shape[-2:]
    if padding != "dense":
        return rows, cols
    return rows - rows % pattern.rows, cols - cols % pattern.m


def block_matrices(
    scores: Scores, mask: NDArray[np.bool_], pattern: Pattern, padding: str
) -> Iterator[BlockMatrix]:
    """The solved part of the scores as matrices, with the matching views of a mask of the scores'
    shape.
    """
    rows, cols = core_shape(scores.array.shape, pattern, padding)
    if rows and cols:
        source = scores.array[..., :rows, :cols]
        yield from _block_matrices(
            source, mask.view(np.uint8)[..., :rows, :cols], scores.kind, pattern
        )


def remainders(array: NDArray[Any], pattern: Pattern, padding: str) -> list[NDArray[Any]]:
    """The parts outside the solved one, which padding="dense" keeps."""
    rows, cols = core_shape(array.shape, pattern, padding)
    parts = [array[..., :rows, cols:], array[..., rows:, :]]
    return [part for part in parts if part.size]
