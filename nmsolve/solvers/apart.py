"""Blocks whose scores lie far apart, so that floating point loses the small ones beside the large.

A penalty of −1e30 beside scores of 1 … 99, or a weight 10^7 times its block: sums that hold both
have no digits left for the small ones. Where magnitudes fall apart into small ones, up to M, and
large ones beyond 2 n m M, the large ones decide among themselves, so they are *clipped* to ±B with
B ≥ 2 n m M. If the optimal mask X of the clipped scores C keeps every clipped entry that is
positive and none that is negative, it is optimal for the scores S themselves, and the duals of C
prove it: where r = C − u − v has the right sign for a clipped entry, S − u − v has it too, and for
every other entry the two are the same. Otherwise a higher gap is tried, at last none.

Blocks of m = 4 that need it are decided by comparing all masks, in twice the precision of float64.
"""

from __future__ import annotations

import math

import numpy as np

from nmsolve.solvers import APART, FINE
from nmsolve.solvers.augment import augment
from nmsolve.solvers.compiled import part


@part
def add(high, low, x):
    """(high + low) + x in twice the precision of float64 (Knuth, The Art of Computer Programming,
    vol. 2, 4.2.2, Theorem B).
    """
    total = high + x
    second = total - high
    low += (high - (total - second)) + (x - second)
    return total, low


@part
def value_of(S, kept):
    """The kept score in twice the precision of float64: a sum, and what rounding took from it."""
    high, low = 0.0, 0.0
    for i in range(S.shape[0]):
        for j in range(S.shape[1]):
            if kept[i, j]:
                high, low = add(high, low, S[i, j])
    return add(high, 0.0, low)


@part
def enumerate_exactly(S, masks, kept):
    """The best of all masks of a 4 × 4 block into kept, the first where several are; in twice the
    precision of float64.
    """
    rows, lost = np.zeros((4, 16)), np.zeros((4, 16))  # sums of the entries that four bits name
    top, least, narrow = 0.0, np.inf, True
    for i in range(4):
        for j in range(4):
            x = abs(S[i, j])
            top, least = max(top, x), min(least, x) if x > 0.0 else least
            narrow &= float(np.float32(S[i, j])) == S[i, j]
            for bits in range(1 << j, 2 << j):
                rows[i, bits], lost[i, bits] = add(
                    rows[i, bits - (1 << j)], lost[i, bits - (1 << j)], S[i, j]
                )
    best, high, low = 0, -np.inf, 0.0
    if (
        narrow and top < 2.0**26 * least
    ):  # 24 bits a score, and 3 for a sum of eight: float64 rounds nothing
        for k in range(masks.shape[0]):
            code = int(masks[k])
            total = (rows[0, code & 15] + rows[1, code >> 4 & 15]) + (
                rows[2, code >> 8 & 15] + rows[3, code >> 12]
            )
            if total > high:
                best, high = code, total
    else:
        for k in range(masks.shape[0]):
            code = int(masks[k])
            total, rest = rows[0, code & 15], lost[0, code & 15]
            for i in range(1, 4):
                bits = code >> 4 * i & 15
                total, rest = add(total, rest + lost[i, bits], rows[i, bits])
            total, rest = add(total, 0.0, rest)
            if total > high or (total == high and rest > low):
                best, high, low = code, total, rest
    for bit in range(16):
        kept[bit // 4, bit % 4] = best >> bit & 1


@part
def power_of_two(x):
    """The largest power of two that is no larger than x > 0."""
    return math.ldexp(1.0, math.frexp(x)[1] - 1)


@part
def is_apart(S, kept):
    """Return whether what a mask keeps in some row is nothing beside the block's largest score
    (`APART`).
    """
    top = 0.0
    for i in range(S.shape[0]):
        for j in range(S.shape[1]):
            top = max(top, abs(S[i, j]))
    if top == 0.0:
        return False
    limit = power_of_two(top) * APART
    for i in range(S.shape[0]):
        total = 0.0
        for j in range(S.shape[1]):
            total += abs(S[i, j]) if kept[i, j] else 0.0
        if 0.0 < total < limit:
            return True
    return False


@part
def _lies_apart(S, factor, at_most):
    """Return whether some magnitude is beyond `factor` times the next smaller one.

    Mostly none is, which a few passes tell without sorting.
    """
    top, least, deepest = 0.0, np.inf, 0.0
    for i in range(S.shape[0]):
        for j in range(S.shape[1]):
            x = S[i, j] if at_most else abs(S[i, j])
            deepest = max(deepest, -x)
            if x > 0.0:
                top, least = max(top, x), min(least, x)
    if at_most and top > 0.0 and deepest > factor * top:
        return True
    reached = top
    while reached > least:  # down from the largest, by a factor at a time
        lower = reached
        for i in range(S.shape[0]):
            for j in range(S.shape[1]):
                x = S[i, j] if at_most else abs(S[i, j])
                if 0.0 < x < lower and factor * x >= reached:
                    lower = x
        if lower == reached:
            return True
        reached = lower
    return False


@part
def bound_above(S, n, at_most, past):
    """The least B > past that a block's large scores can be clipped to, a power of two; infinity if
    there is none.

    Magnitudes lie apart where one is beyond 2 n m times the next smaller one, M, and B is 2 n m M.
    No line may have more large scores than a mask could keep (negative ones: prune), unless all are
    equally large: then the optimum keeps the best number of them. At most: what is negative is
    never kept, so that only positive scores have to lie apart, and B may be above all of them.
    """
    m = S.shape[0]
    factor = 2.0 * n * m
    if not _lies_apart(S, factor, at_most):
        return np.inf
    sizes, count, deepest = np.empty(m * m), 0, 0.0
    for i in range(m):
        for j in range(m):
            x = S[i, j]
            if at_most:
                deepest = max(deepest, -x)
            if x > 0.0 or (x < 0.0 and not at_most):
                sizes[count] = abs(x)
                count += 1
    if count == 0:
        return np.inf
    ordered = np.sort(sizes[:count])
    for k in range(count):
        following = ordered[k + 1] if k + 1 < count else deepest
        if following > factor * ordered[k]:
            bound = power_of_two(ordered[k]) * power_of_two(factor) * 4.0
            if past < bound < following and (
                ordered[count - 1] == following or _fits(S, n, at_most, bound)
            ):
                return bound
    return np.inf


@part
def _fits(S, n, at_most, bound):
    """Return whether no line has more than n scores above a bound, or more than m − n below its
    negative.
    """
    m = S.shape[0]
    for k in range(m):
        row_high, row_low, column_high, column_low = 0, 0, 0, 0
        for x in range(m):
            row_high += S[k, x] > bound
            row_low += S[k, x] < -bound
            column_high += S[x, k] > bound
            column_low += S[x, k] < -bound
        if max(row_high, column_high) > n or (not at_most and max(row_low, column_low) > m - n):
            return False
    return True


@part
def decides(S, kept, bound):
    """Return whether a mask keeps every score above a bound, and none below its negative."""
    for i in range(S.shape[0]):
        for j in range(S.shape[1]):
            if (S[i, j] > bound and kept[i, j] == 0) or (S[i, j] < -bound and kept[i, j] == 1):
                return False
    return True


@part
def certificate(S, kept, u, v, n):
    """The magnitude kept, and how far the dual bound is from the kept score; S − u − v in twice
    float64's precision.
    """
    m = S.shape[0]
    size, loose = 0.0, 0.0
    for i in range(m):
        in_row, in_column = 0, 0
        for j in range(m):
            high, low = add(S[i, j], 0.0, -u[i])
            high, low = add(high, low, -v[j])
            rest = high + low
            in_row += kept[i, j]
            in_column += kept[j, i]
            size += abs(S[i, j]) if kept[i, j] else 0.0
            loose += max(0.0, -rest if kept[i, j] else rest)
        loose += u[i] * (n - in_row) + v[i] * (n - in_column)
    return size, loose


@part
def closes(S, kept, size, loose, tolerance, lost):
    """Return whether a gap is within tolerance of the magnitude kept, or of the least score that is
    not zero if that is more.
    """
    if loose > 0.0 and is_apart(S, kept):
        tolerance = min(tolerance, 0.25 * FINE)
    if loose <= tolerance * size:
        return True
    if lost > 0.0:  # the least score may be among what scaling took
        return False
    least = np.inf
    for i in range(S.shape[0]):
        for j in range(S.shape[1]):
            x = abs(S[i, j])
            if 0.0 < x < least:
                least = x
    return loose <= tolerance * least


@part
def scale_of(top):
    """The divisor of a block with which sums of its scores neither overflow nor vanish: 1, but for
    extreme ones.
    """
    return 1.0 if top == 0.0 or 2.0**-500 <= top <= 2.0**500 else power_of_two(max(top, 2.0**-1022))


@part
def copy(kept, other):
    """A mask into another array. (Of a slice numba would compile the error that shapes differ.)"""
    for i in range(kept.shape[0]):
        for j in range(kept.shape[1]):
            other[i, j] = kept[i, j]


@part
def finish(S, bound, u, v, n, at_most, tolerance, masks, kept, clipped, other, integers, floats):
    """One block alone, by augmenting paths from any duals: mask to `kept`, duals to u, v. S (m, m)
    float64 is finite.

    bound : what scores were clipped to when u, v were found, infinity for nothing. masks : `codes`.
    Returns the kept score, how far the dual bound is from it, the number of paths (-1 if one was
    not found), and whether the mask is proven.
    """
    m = S.shape[0]
    size = 2 * m + 1
    top = 0.0
    for i in range(m):
        for j in range(m):
            top = max(top, abs(S[i, j]))
    paths, candidates, scale, lost = 0, 0, 1.0, 0.0
    high, low = -np.inf, 0.0
    while True:
        before, scale = scale, scale_of(min(top, bound))
        for i in range(m):
            u[i] *= before / scale
            v[i] *= before / scale
            for j in range(m):
                x = min(max(S[i, j], -bound), bound)
                clipped[i, j] = x * (1.0 / scale)
                if clipped[i, j] * scale != x:  # scores too far apart to be scaled
                    lost = 2.0 * m * m * 2.0**-1074
        found = augment(
            clipped, u, v, n, at_most, kept, integers[0, :m], integers[0, m : 2 * m],
            integers[1, :size], floats,
            integers[2, :size], integers[3, :size],
        )  # fmt: skip
        if found < 0:
            return 0.0, np.inf, -1, False
        paths += found
        if bound == np.inf or decides(S, kept, bound):
            break
        # Some large score cannot be kept, or avoided: of the masks found with other bounds, and
        # with none, the best is kept.
        total, rest = value_of(S, kept)
        if total > high or (total == high and rest > low):
            high, low = total, rest
            copy(kept, other)
            candidates += 1
        bound = bound_above(S, n, at_most, bound)
    if candidates > 0:
        total, rest = value_of(S, kept)
        if high > total or (high == total and low > rest):
            copy(other, kept)
    magnitude, loose = certificate(clipped, kept, u, v, n)
    if bound < np.inf or lost > 0.0:  # it lies apart as it is given
        tolerance = min(tolerance, 0.25 * FINE)
    proven = closes(clipped, kept, magnitude, loose + lost, tolerance, lost)
    loose = (loose + lost) * scale
    if (
        not proven and masks.shape[0] > 0 and not at_most and top < 2.0**1000
    ):  # masks are few: their exhaustion is a proof
        enumerate_exactly(S, masks, kept)
        loose, proven = 0.0, True
    for i in range(m):
        u[i] *= scale
        v[i] *= scale
    return value_of(S, kept)[0], loose, paths, proven
