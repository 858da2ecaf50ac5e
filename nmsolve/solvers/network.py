"""Selection networks: compare-exchange programs that bring chosen ranks of m values to known
places.

Batcher's odd-even merge sort for any m (Knuth, The Art of Computer Programming, vol. 3, 5.2.2,
Algorithm M), pruned backwards to the outputs that are asked for: 5 / 17 / 53 / 157 comparators for
the two middle ranks of m = 4 / 8 / 16 / 32. A network has no branch, so it runs on vectors, with
every lane sorting values of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

#: (i, j, which): compare places i < j and write the larger to i ("max"), the smaller to j ("min"),
#: or "both".
Comparator = tuple[int, int, str]


def _batcher(m: int) -> list[tuple[int, int]]:
    pairs = []
    levels = (m - 1).bit_length()
    p = 1 << (levels - 1) if levels else 0
    while p > 0:
        q, r, d = 1 << (levels - 1), 0, p
        while True:
            pairs += [(i, i + d) for i in range(m - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1
    return pairs


@cache
def selection_network(m: int, ranks: tuple[int, ...]) -> tuple[Comparator, ...]:
    """Return comparators after which place r holds the r-th largest value, for each r of `ranks` (0
    is the largest).
    """
    needed = set(ranks)
    kept: list[Comparator] = []
    for i, j in reversed(_batcher(m)):
        if i in needed or j in needed:
            kept.append((i, j, "both" if {i, j} <= needed else "max" if i in needed else "min"))
            needed |= {i, j}
    return tuple(reversed(kept))


def select_ranks(
    values: Sequence[Any],
    ranks: tuple[int, ...],
    maximum: Callable[[Any, Any], Any],
    minimum: Callable[[Any, Any], Any],
) -> list[Any]:
    """Return the values of the given ranks (0 is the largest), through a selection network.

    Works on anything that `maximum` and `minimum` take: NumPy arrays, or vectors of a kernel.
    """
    places = list(values)
    for i, j, which in selection_network(len(places), ranks):
        a, b = places[i], places[j]
        if which != "min":
            places[i] = maximum(a, b)
        if which != "max":
            places[j] = minimum(a, b)
    return [places[r] for r in ranks]
