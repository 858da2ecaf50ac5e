"""Transposable blocks of m = 4, exactly n: the best of all masks, found as a two-stage maximum.

There are 90 masks with two entries in every row and column of a 4 × 4 block (24 for 1:4T and 3:4T). The upper two
rows have 36 pairs of row patterns, of which only the column counts matter to the lower two rows: 19
classes of counts. The best pair of every class in each half, the sums of complementary classes, the best
of 19: about 170 additions and maxima for 16 weights, without a branch, 16 blocks at once.

The proof is the exhaustion itself. Sums of float32 scores are rounded at most three times on the way to a mask's value, so the best
value, raised by three roundings, bounds every mask of the block; the objective is summed again in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import combinations, product
from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from nmsolve.pattern import Pattern
from nmsolve.solvers import Run, Tally
from nmsolve.solvers.compiled import BUILD, STORAGE, array, kernel, specialise
from nmsolve.solvers.lanes import (
    ELEMENT,
    LANES,
    Vec,
    constant,
    data,
    intrinsic,
    ir,
    load,
    maximum,
    number,
    select,
    store,
    to_scores,
    unzip,
)

M = 4
#: A mask's value passes three roundings (two entries, two rows, two halves), the bound on it one more.
ROUNDINGS = 4

Pair = tuple[int, int]


@cache
def row_patterns(n: int) -> tuple[tuple[int, ...], ...]:
    """The C(4, n) sets of kept columns, in lexicographic order."""
    return tuple(combinations(range(M), n))


@cache
def classes(n: int) -> tuple[tuple[tuple[Pair, ...], tuple[Pair, ...]], ...]:
    """For every way to split the column counts between the halves: the row-pattern pairs of the upper and of the lower."""
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


def _code(n: int, pair: Pair) -> int:
    """Two rows of a mask as eight bits, bit 4 * row + column."""
    return sum(1 << (M * row + j) for row, pattern in enumerate(pair) for j in row_patterns(n)[pattern])


def _best_pair(n: int, rows: list[list[Any]], pairs: tuple[Pair, ...]) -> tuple[Vec, Vec]:
    value = rows[0][pairs[0][0]] + rows[1][pairs[0][1]]
    code = constant(value.builder, _code(n, pairs[0]), ELEMENT["i4"])
    for pair in pairs[1:]:
        rival = rows[0][pair[0]] + rows[1][pair[1]]
        better = rival > value
        code = select(better, constant(value.builder, _code(n, pair), ELEMENT["i4"]), code)
        value = maximum(rival, value)
    return value, code


def _best_mask(n: int, block: list[list[Vec]]) -> tuple[Vec, Vec]:
    """Value and 16-bit mask of the best block; the first in a fixed order where several are best."""
    sums = []
    for row in block:
        total = []
        for pattern in row_patterns(n):
            entries = [row[j] for j in pattern]
            value = entries[0]
            for entry in entries[1:]:
                value = value + entry
            total.append(value)
        sums.append(total)
    best: tuple[Vec, Vec] | None = None
    for upper, lower in classes(n):
        high, high_code = _best_pair(n, sums[:2], upper)
        low, low_code = _best_pair(n, sums[2:], lower)
        value, code = high + low, high_code | low_code.shift_left(8)
        if best is None:
            best = value, code
        else:
            better = value > best[0]
            best = maximum(value, best[0]), select(better, code, best[1])
    assert best is not None
    return best


@intrinsic(prefer_literal=True)
def _solve_group(typingctx, X, at, row_stride, kind, absolute, mask, mask_at, mask_stride, sums, top, n):  # type: ignore[no-untyped-def]
    """Sixteen blocks side by side: masks to `mask`, objectives and bounds added to sums, largest magnitude to top."""
    sig = types.void(X, at, row_stride, kind, absolute, mask, mask_at, mask_stride, sums, top, n)
    keep, stored = number(n), kind.literal_value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, mask, sums, top = (data(context, builder, sig.args[k], args[k]) for k in (0, 5, 8, 9))
        at, row_stride, absolute, mask_at, mask_stride = (args[k] for k in (1, 2, 4, 6, 7))
        wide = stored == "f8"
        bits, double = ELEMENT["i8" if wide else "i4"], ELEMENT["f8"]

        def offset(base: Any, stride: Any, row: int, extra: int = 0) -> Any:
            step = builder.mul(stride, ir.Constant(stride.type, row))
            return builder.add(builder.add(base, step), ir.Constant(base.type, extra))

        block = []
        for i in range(M):
            raw = [load(builder, source, offset(at, row_stride, i, LANES * k)) for k in range(M)]
            block.append([to_scores(x, stored, absolute) for x in unzip(raw)])
        origin = ir.Constant(ir.IntType(64), 0)
        clear = (1 << (bits.width - 1)) - 1
        largest = constant(builder, 0, bits)
        for row in block:
            for x in row:
                largest = maximum(x.bitcast(bits) & clear, largest)
        store(builder, maximum(largest, load(builder, top, origin)), top, origin)

        # Sums of eight scores near the largest float would overflow; such blocks are scaled, exactly, before.
        element = block[0][0].element
        huge = largest.bitcast(element) > (2.0**1000 if wide else 2.0**120)
        scale = select(huge, constant(builder, 2.0**-8, element), constant(builder, 1.0, element))
        block = [[x * scale for x in row] for row in block]
        value, code = _best_mask(keep, block)

        objective = constant(builder, 0.0, double)
        for i, row in enumerate(block):
            for j, x in enumerate(row):
                kept = ~(code & (1 << (M * i + j))).equals(0)
                objective = select(kept, objective + x.widen(double), objective)
            nibble = code if i == 0 else Vec(builder, builder.lshr(code.value, constant(builder, M * i, code.element).value))
            nibble = nibble & 0xF
            spread = nibble | nibble.shift_left(7) | nibble.shift_left(14) | nibble.shift_left(21)
            store(builder, spread & 0x01010101, mask, offset(mask_at, mask_stride, i))
        back = select(huge, constant(builder, 2.0**8, double), constant(builder, 1.0, double))
        for place, amount in ((0, objective), (LANES, value.widen(double))):
            index = ir.Constant(ir.IntType(64), place)
            store(builder, load(builder, sums, index) + amount * back, sums, index)
        return context.get_dummy_value()

    return sig, codegen


@kernel
def enumerate_blocks(X, top, kind, absolute, mask, first, last, n, tile, tile_mask, sums, build):  # type: ignore[no-untyped-def]
    """Solve block rows first … last − 1 of X into mask; sums[:16] gains the objective and sums[16:] the best values.

    X (rows, cols) float32, float64 or 16-bit patterns, named by the literal `kind`; elements of a row adjacent. Blocks that
    do not fill a
    group of 16 side by side are collected in tile (4, 64), of X's dtype.
    """
    row_stride = X.strides[0] // X.itemsize
    tile_stride = tile.shape[1]
    mask_stride = mask.strides[0]
    a_row = X.shape[1] // M
    grouped = a_row // LANES * LANES
    for r in range(first, last):
        for c in range(0, grouped, LANES):
            _solve_group(
                X,
                r * M * row_stride + c * M,
                row_stride,
                kind,
                absolute,
                mask,
                r * M * mask_stride + c * M,
                mask_stride,
                sums,
                top,
                n,
            )
    rest = a_row - grouped
    total = rest * (last - first)
    for start in range(0, total, LANES):
        filled = min(LANES, total - start)
        tile[:] = 0
        for lane in range(filled):
            r, c = (first + (start + lane) // rest) * M, (grouped + (start + lane) % rest) * M
            for i in range(M):
                for j in range(M):
                    tile[i, lane * M + j] = X[r + i, c + j]
        _solve_group(tile, 0, tile_stride, kind, absolute, tile_mask, 0, tile_stride, sums, top, n)
        for lane in range(filled):
            r, c = (first + (start + lane) // rest) * M, (grouped + (start + lane) % rest) * M
            for i in range(M):
                for j in range(M):
                    mask[r + i, c + j] = tile_mask[i, lane * M + j]


def prove(objective: float, best: float, wide: bool, tolerance: float) -> tuple[float, bool]:
    """The bound that the sum of best values proves, and whether it closes. wide: whether they were summed in float64."""
    exact_sums = not wide and tolerance < 1e-6  # small integers
    rounding = 0.0 if exact_sums else ROUNDINGS * (2.0**-53 if wide else 2.0**-24)
    bound = max(objective, best * (1.0 + rounding))
    return bound, bound - objective <= tolerance * objective


@cache
def _compiled(kind: str, n: int) -> Callable[..., None]:
    stored, integer = STORAGE[kind]
    return specialise(
        enumerate_blocks, array(stored, 2, "A"), array(integer, 1), kind, types.int64, array(types.uint8, 2, "A"), types.int64,
        types.int64, n, array(stored, 2), array(types.uint8, 2), array(types.float64, 1),
    )  # fmt: skip


def make(pattern: Pattern, kind: str, absolute: bool, tolerance: float) -> Run:
    """The exact solver of 1:4T, 2:4T and 3:4T, exactly n, for scores ≥ 0 (sums of others cancel, which voids the bound)."""
    n, wide = pattern.n, kind == "f8"
    solve = _compiled(kind, n)

    def run(X: NDArray[Any], mask: NDArray[Any], first: int, last: int) -> Tally | None:
        top, sums = np.zeros(LANES, np.int64 if wide else np.int32), np.zeros(2 * LANES)
        tile, tile_mask = np.zeros((M, M * LANES), X.dtype), np.zeros((M, M * LANES), np.uint8)
        solve(X, top, kind, int(absolute), mask, first, last, n, tile, tile_mask, sums, BUILD)
        largest = top.max()
        if largest >= (0x7FF0000000000000 if wide else 0x7F800000):
            return None
        blocks = (last - first) * (X.shape[1] // M)
        objective, best = float(sums[:LANES].sum()), float(sums[LANES:].sum())
        bound, closed = prove(objective, best, wide, tolerance)
        return Tally(objective, bound, {"enumerated": blocks, "unproven": 0 if closed else blocks})

    return run
