"""The masks of a 4 × 4 block that keep exactly n in every row and column: 90 for n = 2, else 24."""

from __future__ import annotations

from functools import cache
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

M = 4

Pair = tuple[int, int]


@cache
def row_patterns(n: int) -> tuple[tuple[int, ...], ...]:
    """Return the C(4, n) sets of kept columns, in lexicographic order."""
    return tuple(combinations(range(M), n))


@cache
def classes(n: int) -> tuple[tuple[tuple[Pair, ...], tuple[Pair, ...]], ...]:
    """Return, for every way to split the column counts between the halves, the row-pattern pairs of
    the upper half and those of the lower.
    """
    pairs: dict[tuple[int, ...], list[Pair]] = {}
    patterns = row_patterns(n)
    for a, b in product(range(len(patterns)), repeat=2):
        counts = tuple((j in patterns[a]) + (j in patterns[b]) for j in range(M))
        pairs.setdefault(counts, []).append((a, b))
    split = []
    for counts, upper in pairs.items():
        lower = pairs.get(tuple(n - c for c in counts))
        if lower:
            split.append((tuple(upper), tuple(lower)))
    return tuple(split)


def pair_code(n: int, pair: Pair) -> int:
    """Return two rows of a mask as eight bits, bit 4 * row + column."""
    return sum(
        1 << (M * row + j) for row, pattern in enumerate(pair) for j in row_patterns(n)[pattern]
    )


@cache
def codes(n: int, m: int) -> NDArray[np.uint16]:
    """Return every mask of a 4 × 4 block in 16 bits, bit 4 row + column; none for other m."""
    if m != 4:
        return np.zeros(0, np.uint16)
    rows = [row for row in range(16) if row.bit_count() == n]
    found = []
    for lines in product(rows, repeat=4):
        if all(sum(line >> j & 1 for line in lines) == n for j in range(4)):
            found.append(sum(line << 4 * i for i, line in enumerate(lines)))
    return np.array(found, np.uint16)
