"""Masks in bits, as files and state dicts hold them. `docs/format.md` specifies the order."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

#: Of state dicts before version 0.2: the first entry in the highest bit. What is written has
#: "little", the first in the lowest.
Order = Literal["little", "big"]


def packed_size(entries: int) -> int:
    """Return the bytes of a mask: one bit per entry, whole bytes."""
    return -(-entries // 8)


def pack(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return a mask's bits in C order, the lowest of a byte first; after the last entry come zeros.

    Examples
    --------
    >>> pack(np.array([[True, True, False], [False, False, True]])), 0b100011
    (array([35], dtype=uint8), 35)
    """
    return np.packbits(mask, axis=None, bitorder="little")


def unpack(
    packed: NDArray[np.uint8], shape: tuple[int, ...], order: Order = "little"
) -> NDArray[np.bool_]:
    """Return the mask that was packed, a bool array of this shape."""
    return (
        np.unpackbits(packed, count=math.prod(shape), bitorder=order).view(np.bool_).reshape(shape)
    )


def has_loose_bits(packed: NDArray[np.uint8], entries: int, order: Order = "little") -> bool:
    """Return whether bits after the last entry are set, which no mask has: it is damaged, or in
    another order.
    """
    beyond = entries % 8
    if not beyond:
        return False
    last = int(packed[-1])
    return bool(last >> beyond if order == "little" else last & (0xFF >> beyond))
