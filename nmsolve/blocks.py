"""Cut an array (..., rows, cols) into matrices of blocks, and those into tasks that kernels can
read. What has to be copied is copied one task at a time, or within `COPY_LIMIT`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from nmsolve.elements import widen
from nmsolve.errors import InputError
from nmsolve.geometry import check_padding, remainders
from nmsolve.pattern import Pattern
from nmsolve.validate import Scores

#: Weights per task, and the least number of blocks per task: enough to keep 16 lanes full and
#: threads busy. Results are summed task by task, and tasks depend on the shape alone, so objectives
#: too are the same for every number of threads.
TASK_WEIGHTS, TASK_BLOCKS = 2**18, 512
#: An array whose axes cannot be flattened as a view is flattened by copies of at most this many
#: elements.
COPY_LIMIT = 2**21

T = TypeVar("T")
#: (scores, mask, first block row, last) → what it found.
Kernel = Callable[[NDArray[Any], NDArray[Any], int, int], T]

_WIDE: dict[str, type[np.floating[Any]]] = {"f4": np.float32, "f8": np.float64}


@dataclass(frozen=True, slots=True)
class BlockMatrix:
    """A matrix whose rows of blocks are solved.

    Attributes
    ----------
    source : (rows, cols) array
        Scores as they are stored, in any strides.
    mask : (rows, cols) uint8 array
        The mask's view for it.
    kind : str
        How scores are stored, as in `Scores`.
    absolute : bool
        Whether their signs are dropped.
    pattern : Pattern
    """

    source: NDArray[Any]
    mask: NDArray[np.uint8]
    kind: str
    absolute: bool
    pattern: Pattern

    @property
    def block_rows(self) -> int:
        return -(-int(self.source.shape[0]) // self.pattern.rows)

    @property
    def padded_columns(self) -> int:
        return -(-int(self.source.shape[1]) // self.pattern.m) * self.pattern.m

    @property
    def even(self) -> bool:
        """True if blocks tile the matrix without a remainder."""
        rows, cols = (int(size) for size in self.source.shape)
        return rows % self.pattern.rows == 0 and cols == self.padded_columns

    @property
    def direct(self) -> bool:
        """True if kernels can read the source in place."""
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
        """Yield ranges of block rows, each worth one call of a kernel."""
        unit = self.pattern.rows
        blocks_per_row = self.padded_columns // self.pattern.m
        step = max(
            1, TASK_WEIGHTS // (self.padded_columns * unit), -(-TASK_BLOCKS // blocks_per_row)
        )
        for first in range(0, self.block_rows, step):
            yield first, min(self.block_rows, first + step)

    def stage(self, first: int, last: int, dtype: type[np.floating[Any]]) -> NDArray[Any]:
        """Return block rows first … last − 1 as a contiguous array, widened exactly, with zeros
        beyond the edge.
        """
        unit = self.pattern.rows
        part = self.source[first * unit : last * unit]
        buffer = np.zeros(((last - first) * unit, self.padded_columns), dtype)
        inside = buffer[: part.shape[0], : part.shape[1]]
        np.copyto(inside, widen(part, self.kind), casting="unsafe")
        return buffer

    def scores(self, first: int, last: int) -> NDArray[np.float64]:
        """Return what block rows first … last − 1 are scored by, in float64."""
        staged = self.stage(first, last, np.float64)
        return np.abs(staged, out=staged) if self.absolute else staged

    def reader(
        self, kernel: Callable[[str], Kernel[T]], *, in_place: bool, wide: str
    ) -> Callable[[int, int], T]:
        """Return a function that solves a range of block rows and writes their part of the mask.

        Parameters
        ----------
        kernel : callable
            Gives the kernel that reads scores of a kind.
        in_place : bool
            Whether there is one for the kind of this matrix.
        wide : {"f4", "f8"}
            The kind to which scores are widened otherwise, one task at a time.
        """
        if not (in_place and self.direct):
            return partial(self._solve_staged, kernel(wide), _WIDE[wide])
        bits = self.kind in ("f16", "bf16")
        source = self.source.view(np.uint16) if bits else self.source
        return partial(kernel(self.kind), source, self.mask)

    def _solve_staged(
        self, kernel: Kernel[T], dtype: type[np.floating[Any]], first: int, last: int
    ) -> T:
        """Solve block rows first … last − 1 on a widened copy. The mask is written in place unless
        the matrix's edge cuts blocks.
        """
        buffer = self.stage(first, last, dtype)
        unit = self.pattern.rows
        target = self.mask[first * unit : last * unit]
        if self.even:
            return kernel(buffer, target, 0, last - first)
        padded = np.empty(buffer.shape, np.uint8)
        found = kernel(buffer, padded, 0, last - first)
        target[...] = padded[: target.shape[0], : target.shape[1]]
        return found


def _flat(array: NDArray[Any]) -> NDArray[Any] | None:
    """(..., rows, cols) as (all rows, cols) without a copy, or None."""
    try:
        return np.reshape(array, (-1, array.shape[-1]), copy=False)
    except ValueError:
        return None


def _block_matrices(
    scores: Scores, source: NDArray[Any], mask: NDArray[Any], pattern: Pattern
) -> Iterator[BlockMatrix]:
    """Yield the matrices of a part of the scores' array."""
    if source.ndim == 2:
        yield BlockMatrix(source, mask, scores.kind, scores.absolute, pattern)
        return
    flat_mask = _flat(mask) if source.shape[-2] % pattern.rows == 0 else None
    if flat_mask is not None:
        flat = _flat(source)
        if flat is None and source.size <= COPY_LIMIT:
            flat = np.ascontiguousarray(source).reshape(-1, source.shape[-1])
        if flat is not None:
            yield BlockMatrix(flat, flat_mask, scores.kind, scores.absolute, pattern)
            return
    if source.shape[0] == 1:
        yield from _block_matrices(scores, source[0], mask[0], pattern)
        return
    step = 1
    if flat_mask is not None:
        step = min(source.shape[0] - 1, max(1, COPY_LIMIT // source[0].size))
    for start in range(0, source.shape[0], step):
        piece = slice(start, start + step)
        yield from _block_matrices(scores, source[piece], mask[piece], pattern)


def check_divisible(shape: tuple[int, ...], pattern: Pattern, padding: str) -> None:
    """Raise InputError if the shape leaves a remainder that `padding` does not allow."""
    check_padding(padding)
    if padding != "error":
        return
    rows, columns = remainders(shape[-2], shape[-1], pattern)
    for what, size, unit, left in (
        ("rows", shape[-2], pattern.rows, rows),
        ("columns", shape[-1], pattern.m, columns),
    ):
        if left:
            raise InputError(
                f"shape {shape} has {size} {what}, not a multiple of {unit}: pattern {pattern} "
                f"leaves {left} {what} from index {size - left} on; pass padding='pad' (solve as "
                "if zeros followed) or padding='dense' (keep them)"
            )


def core_shape(shape: tuple[int, ...], pattern: Pattern, padding: str) -> tuple[int, int]:
    """Return how many rows and columns are solved: all of them, or without the remainder that
    padding="dense" keeps.
    """
    rows, cols = shape[-2:]
    if padding != "dense":
        return rows, cols
    below, beside = remainders(rows, cols, pattern)
    return rows - below, cols - beside


def padded_shape(shape: tuple[int, ...], pattern: Pattern, padding: str) -> tuple[int, int]:
    """Return how many rows and columns whole blocks have: those that are solved, rounded up."""
    rows, cols = core_shape(shape, pattern, padding)
    return -(-rows // pattern.rows) * pattern.rows, -(-cols // pattern.m) * pattern.m


def block_matrices(
    scores: Scores, mask: NDArray[np.bool_], pattern: Pattern, padding: str
) -> Iterator[BlockMatrix]:
    """Yield the solved part of the scores as matrices, with the matching views of a mask of the
    scores' shape.
    """
    rows, cols = core_shape(scores.array.shape, pattern, padding)
    if rows and cols:
        source = scores.array[..., :rows, :cols]
        yield from _block_matrices(scores, source, mask.view(np.uint8)[..., :rows, :cols], pattern)


def remainder_parts(array: NDArray[Any], pattern: Pattern, padding: str) -> list[NDArray[Any]]:
    """Return the parts outside the solved one, which padding="dense" keeps."""
    rows, cols = core_shape(array.shape, pattern, padding)
    parts = [array[..., :rows, cols:], array[..., rows:, :]]
    return [part for part in parts if part.size]


def remainder_score(scores: Scores, pattern: Pattern, padding: str) -> float:
    """Return what the entries outside the solved part are worth, in float64."""
    parts = []
    for part in remainder_parts(scores.array, pattern, padding):
        wide = widen(part, scores.kind).astype(np.float64)
        parts.append(float((np.abs(wide) if scores.absolute else wide).sum()))
    return math.fsum(parts)
