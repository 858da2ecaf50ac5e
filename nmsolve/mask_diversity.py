"""Mask diversity: how many masks a constraint allows (Hubara et al., NeurIPS 2021, section 3),
counted exactly where that can be done.

For a tensor of T weights: unstructured C(T, k); row-wise C(m, n)^(T / m); transposable A(m, n)^(T /
m²), where A is the number of 0/1 matrices of side m whose rows and columns all sum to n. The
paper's transposable formula, (m! (m−1)! … (m−n+1)!)^(T / m²), is another number: exact for n = 1,
far too large where n is a fair share of m, too small for 2:10T.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from nmsolve.errors import InputError
from nmsolve.pattern import Pattern
from nmsolve.validate import check_flag

#: Transposable blocks are counted exactly while the states of a half-filled block, times its rows,
#: are at most this many: m ≤ 16.
STATES = 150_000
#: Counts are given as integers up to this many bits, the longest that Python prints; the logarithm
#: is always given.
COUNT_BITS = 14_000

#: Rows filled so far → for each c, how many columns hold c entries.
State = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Diversity:
    """The number of masks that a constraint allows.

    Attributes
    ----------
    constraint : str
        The pattern, or the unstructured constraint, in words.
    shape : tuple of int
        Of the tensor.
    log2 : float
        Binary logarithm of the number.
    bits_per_weight : float
        log2 over the number of weights.
    count : int or None
        The number itself; None if it is too long or not known exactly.
    exact : bool
        Whether log2 comes from an exact count.
    log2_error : float
        Bound on the error of log2; 0 if it is exact.
    paper_log2 : float or None
        The paper's formula, another number for transposable patterns; None for at most, which it
        does not cover.
    """

    constraint: str
    shape: tuple[int, ...]
    log2: float
    bits_per_weight: float
    count: int | None
    exact: bool
    log2_error: float
    paper_log2: float | None

    def __str__(self) -> str:
        about = "" if self.exact else f" ± {self.log2_error:.2g}"
        count = "" if self.count is None or self.count >= 10**30 else f" = {self.count} masks"
        paper = "" if self.paper_log2 is None else f"; the paper's formula: 2^{self.paper_log2:.6g}"
        return (
            f"{self.constraint} on {self.shape}: 2^{self.log2:.6g}{about}{count}, "
            f"{self.bits_per_weight:.4f} bits per weight{paper}"
        )


def diversity(
    pattern: Pattern | str,
    shape: tuple[int, ...],
    *,
    unstructured: bool = False,
    block: tuple[int, int] = (1, 1),
    at_most: bool | None = None,
) -> Diversity:
    """Count the masks of a pattern on a tensor.

    Parameters
    ----------
    pattern : Pattern or str
        Such as "4:8T"; with `at_most`, masks that keep fewer count too.
    shape : tuple of int
        (..., rows, cols); rows (transposable) and cols divisible by the pattern.
    unstructured : bool
        Count the masks that keep as many weights as the pattern, wherever they are: C(T, T n / m).
    block : (int, int)
        Rows and columns of blocks that are kept or pruned whole; the pattern then holds for blocks
        instead of weights.
    at_most : bool, optional
        Overrides the pattern's own.

    Returns
    -------
    Diversity

    Raises
    ------
    PatternError, InputError
        If the pattern does not exist or does not divide the shape.

    Notes
    -----
    Transposable blocks are counted exactly up to m = 16, by a dynamic program over rows, from both
    ends to the middle, whose state is the multiset of column sums. Beyond, log2 is asymptotic. For
    exactly n it is that of

        C(m, n)^(2m) / C(m², mn) · exp(−1/2 + 1/(2m)),

    with an error below 1/(4m) nats; for at most n, of its analogue summed over the number of
    entries, within 1/4 nat. Both errors are the largest seen on all exact counts, not proven.

    References
    ----------
    Hubara et al., NeurIPS 2021, section 3 (the paper's formula). Canfield, Greenhill, McKay,
    "Asymptotic enumeration of dense 0-1 matrices with specified line sums", J. Combin. Theory A
    115, 2008 (the first factor).

    Examples
    --------
    >>> diversity("4:8T", shape=(8, 8)).count
    116963796250
    >>> # The paper's formula says the opposite.
    >>> diversity("2:4", shape=(8, 8)).count > diversity("4:8T", shape=(8, 8)).count
    True
    """
    pattern = Pattern.of(pattern, at_most)
    check_flag(unstructured, "unstructured")
    sizes = _sizes(shape, pattern)
    height, width = _sizes(block, pattern)[-2:]
    if isinstance(block, set) or len(block) != 2:
        raise InputError(f"a block is (rows, cols), got {block!r}")
    rows, cols = sizes[-2:]
    if rows % (height * pattern.rows) or cols % (width * pattern.m):
        unit = f"{height * pattern.rows} × {width * pattern.m}"
        raise InputError(
            f"shape {sizes} is not a multiple of {unit}, the unit of pattern {pattern}"
            + ("" if (height, width) == (1, 1) else f" with blocks of {height} × {width}")
        )
    weights = math.prod(sizes)
    units = weights // (height * width)
    name = str(pattern) if units == weights else f"{pattern} of {height}×{width} blocks"
    if unstructured:
        kept = units * pattern.n // pattern.m
        name = f"unstructured {'<=' if pattern.at_most else ''}{kept} of {units}"
        log2, count = _unstructured(units, kept, pattern.at_most)
        return _result(name, sizes, log2, count, 0.0, log2)
    n, m = pattern.n, pattern.m
    if not pattern.transposable:
        each = _up_to(m, n) if pattern.at_most else math.comb(m, n)
        return _power(name, sizes, each, units // m, None if pattern.at_most else each)
    paper = None if pattern.at_most else math.prod(math.factorial(m - k) for k in range(n))
    if _countable(n, m, pattern.at_most):
        each = count_blocks(n, m, pattern.at_most)
        return _power(name, sizes, each, units // m**2, paper)
    log2, error = _asymptotic(n, m, pattern.at_most)
    times = units // m**2
    return _result(
        name,
        sizes,
        log2 * times,
        None,
        error * times,
        None if paper is None else math.log2(paper) * times,
    )


def _sizes(shape: tuple[int, ...], pattern: Pattern) -> tuple[int, ...]:
    """Return a shape as plain integers; InputError unless it has two axes or more, none empty."""
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except (TypeError, ValueError):
        sizes = ()
    if len(sizes) < 2 or min(sizes) < 1 or math.prod(sizes) > 2**100:
        raise InputError(
            f"pattern {pattern} needs a shape (..., rows, cols) of positive integers, got {shape!r}"
        )
    return sizes


def _power(
    name: str, sizes: tuple[int, ...], each: int, times: int, paper: int | None
) -> Diversity:
    """Return the diversity of `times` units that allow `each` masks on their own."""
    log2 = math.log2(each) * times
    count = each**times if log2 < COUNT_BITS else None
    return _result(
        name, sizes, log2, count, 0.0, None if paper is None else math.log2(paper) * times
    )


def _result(
    name: str,
    sizes: tuple[int, ...],
    log2: float,
    count: int | None,
    error: float,
    paper: float | None,
) -> Diversity:
    """Return a diversity by its logarithm."""
    return Diversity(
        constraint=name,
        shape=sizes,
        log2=log2,
        bits_per_weight=log2 / math.prod(sizes),
        count=count,
        exact=error == 0.0,
        log2_error=error,
        paper_log2=paper,
    )


def _up_to(total: int, k: int) -> int:
    """Return the number of choices of at most k of `total`."""
    return sum(math.comb(total, j) for j in range(k + 1))


def _unstructured(total: int, kept: int, at_most: bool) -> tuple[float, int | None]:
    """Return log2 of the number of choices of (at most) `kept` of `total`; the number too if it is
    short enough.
    """
    if total <= COUNT_BITS:
        count = _up_to(total, kept) if at_most else math.comb(total, kept)
        return math.log2(count), count
    log2 = _log2_choose(total, kept)
    # Terms fall away from the largest, at `kept` or at total / 2, geometrically or like a normal
    # density.
    if at_most:
        peak = min(kept, total // 2)
        # They change slowly on the scale of `step`, so that one stands for so many.
        step = max(1, math.isqrt(total) // 100)
        spread = range(min(kept, peak + 4000 * step), max(0, peak - 4000 * step), -step)
        top = _log2_choose(total, peak)
        # No term is larger than that of the peak; of logarithms beyond 2^53 rounding may say so.
        log2 = top + math.log2(
            step * math.fsum(2.0 ** min(0.0, _log2_choose(total, k) - top) for k in spread)
        )
    return log2, None


def _log2_choose(total: int, k: int) -> float:
    """Return log2 C(total, k), in constant time."""
    return (math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1)) / math.log(2)


def _countable(n: int, m: int, at_most: bool) -> bool:
    """Return whether blocks are counted exactly: see `STATES`."""
    if at_most:
        return n == m or math.comb(m + n, n) * m <= STATES // 8
    return n == m or _half_states(min(n, m - n), m) * (m // 2) <= STATES


@cache
def _half_states(n: int, m: int) -> int:
    """Return the number of multisets of m column sums ≤ n that total n * (m // 2)."""
    total = n * (m // 2)
    ways = [[0] * (total + 1) for _ in range(m + 1)]
    ways[0][0] = 1
    for part in range(1, n + 1):
        for used in range(1, m + 1):
            for s in range(part, total + 1):
                ways[used][s] += ways[used - 1][s - part]
    return sum(ways[used][total] for used in range(m + 1))


@cache
def count_blocks(n: int, m: int, at_most: bool) -> int:
    """Return the number of 0/1 matrices of side m whose rows and columns all sum to n; at most: to
    n or less.
    """
    if at_most:
        return 2 ** (m * m) if n == m else sum(_filled(n, m, m, True).values())
    n = min(n, m - n)  # complements
    if n == 0:
        return 1
    upper, lower = _filled(n, m, m // 2, False), _filled(n, m, m - m // 2, False)
    total = 0
    for state, ways in upper.items():
        # The columns' sums fix those of the lower half; of its matrices with that multiset of sums,
        # one arrangement fits.
        arrangements = math.factorial(m)
        for columns in state:
            arrangements //= math.factorial(columns)
        total += ways * lower.get(tuple(reversed(state)), 0) // arrangements
    return total


def _filled(n: int, m: int, rows: int, at_most: bool) -> dict[State, int]:
    """Return the number of matrices with `rows` rows for each multiset of their column sums."""
    layer: dict[State, int] = {(m,) + (0,) * n: 1}
    for _ in range(rows):
        following: dict[State, int] = {}
        for state, ways in layer.items():
            for entries in range(n + 1) if at_most else (n,):
                for after, choices in _add_row(state, entries):
                    following[after] = following.get(after, 0) + ways * choices
        layer = following
    return layer


def _add_row(state: State, entries: int) -> Iterator[tuple[State, int]]:
    """Yield every way to put a row's entries into columns that have room, with the number of
    choices of columns.
    """
    room = [sum(state[c:-1]) for c in range(len(state))]

    def place(
        c: int, left: int, moved: tuple[int, ...], choices: int
    ) -> Iterator[tuple[State, int]]:
        if c == len(state) - 1:
            shifted = (0, *moved)
            yield (
                tuple(
                    k - out + into for k, out, into in zip(state, (*moved, 0), shifted, strict=True)
                ),
                choices,
            )
            return
        for take in range(max(0, left - room[c + 1]), min(state[c], left) + 1):
            yield from place(
                c + 1, left - take, (*moved, take), choices * math.comb(state[c], take)
            )

    if entries <= room[0]:
        yield from place(0, entries, (), 1)


@cache
def _asymptotic(n: int, m: int, at_most: bool) -> tuple[float, float]:
    """Return log2 of the number of blocks, and the error seen on exact counts."""
    if not at_most:
        nats = (
            (2 * m * _log2_choose(m, n) - _log2_choose(m * m, m * n)) * math.log(2) - 0.5 + 0.5 / m
        )
        return nats / math.log(2), 0.25 / m / math.log(2)
    rows = [1]  # rows[t]: ways to fill all rows with t entries in total
    for _ in range(m):
        longer = [0] * (len(rows) + n)
        for t, ways in enumerate(rows):
            for k in range(n + 1):
                longer[t + k] += ways * math.comb(m, k)
        rows = longer
    scaled = sum((ways * ways << 64) // math.comb(m * m, t) for t, ways in enumerate(rows))
    return math.log2(scaled) - 64 - 0.25 / math.log(2), 0.25 / math.log(2)
