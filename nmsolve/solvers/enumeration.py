"""Transposable blocks of m = 4, exactly n: the best of all masks, found as a two-stage maximum.

A 4 × 4 block has 90 masks with two entries in every row and column (24 for 1:4T and 3:4T), listed
in `block_masks`. Its upper two rows have 36 pairs of row patterns, of which only the column counts
matter to the lower two rows: 19 classes of counts. So the best pair of every class is found in each
half, then the best of the 19 sums of complementary classes. That is about 170 additions and maxima
for 16 weights, without a branch, for 16 blocks at once.

The proof is the exhaustion itself. Sums of float32 scores are rounded at most three times on the
way to a mask's value, so the best value, raised by three roundings, bounds every mask of the block;
the objective is summed again in float64. Where a large score would hide what the others are worth
(`apart`), the masks are compared again, one by one, in twice the precision of float64.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from nmsolve.pattern import Pattern
from nmsolve.solvers import Run, TaskResult
from nmsolve.solvers.apart import enumerate_exactly
from nmsolve.solvers.block_masks import M, Pair, classes, codes, pair_code, row_patterns
from nmsolve.solvers.compiled import BUILD, STORAGE, array, kernel, part, specialise
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
    store_bits,
    to_scores,
    unzip,
)

#: A mask's value passes three roundings (two entries, two rows, two halves), the bound on it one
#: more.
ROUNDINGS = 4
#: Blocks that keep two scores smaller than this share of their largest (n = 1: one), and have one
#: there that is not zero, are enumerated exactly: all that are apart (`nmsolve.solvers.APART`), and
#: one in a million N(0, 1) blocks.
SMALL = 2.0**-12


def _best_pair(n: int, rows: list[list[Any]], pairs: tuple[Pair, ...]) -> tuple[Vec, Vec]:
    value = rows[0][pairs[0][0]] + rows[1][pairs[0][1]]
    code = constant(value.builder, pair_code(n, pairs[0]), ELEMENT["i4"])
    for pair in pairs[1:]:
        rival = rows[0][pair[0]] + rows[1][pair[1]]
        better = rival > value
        code = select(better, constant(value.builder, pair_code(n, pair), ELEMENT["i4"]), code)
        value = maximum(rival, value)
    return value, code


def _best_mask(n: int, block: list[list[Vec]]) -> tuple[Vec, Vec]:
    """Value and 16-bit code of the best mask; the first in a fixed order where several are best."""
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


def _offset(builder: Any, base: Any, stride: Any, row: int, extra: int = 0) -> Any:
    step = builder.mul(stride, ir.Constant(stride.type, row))
    return builder.add(builder.add(base, step), ir.Constant(base.type, extra))


def _block(
    builder: Any, source: Any, at: Any, row_stride: Any, stored: str, absolute: Any
) -> list[list[Vec]]:
    """The scores of sixteen blocks side by side."""
    block = []
    for i in range(M):
        raw = [
            load(builder, source, _offset(builder, at, row_stride, i, LANES * k)) for k in range(M)
        ]
        block.append([to_scores(x, stored, absolute) for x in unzip(raw)])
    return block


@intrinsic(prefer_literal=True)
def _read_group(typingctx, X, at, row_stride, kind, absolute, scores):
    """Sixteen blocks side by side to scores (16, LANES) float64."""
    sig = types.void(X, at, row_stride, kind, absolute, scores)
    stored = kind.literal_value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, out = (
            data(context, builder, sig.args[0], args[0]),
            data(context, builder, sig.args[5], args[5]),
        )
        for i, row in enumerate(_block(builder, source, args[1], args[2], stored, args[4])):
            for j, x in enumerate(row):
                store(
                    builder,
                    x.widen(ELEMENT["f8"]),
                    out,
                    ir.Constant(ir.IntType(64), (M * i + j) * LANES),
                )
        return context.get_dummy_value()

    return sig, codegen


@intrinsic(prefer_literal=True)
def _solve_group(
    typingctx, X, at, row_stride, kind, absolute, mask, mask_at, mask_stride, sums, top, far, n
):
    """Sixteen blocks side by side: masks to `mask`, objectives and bounds added to sums, largest
    magnitude to top.

    far : becomes the lanes whose scores lie far apart (`SMALL`). Scores are ≥ 0.
    """
    sig = types.void(
        X, at, row_stride, kind, absolute, mask, mask_at, mask_stride, sums, top, far, n
    )
    keep, stored = number(n), kind.literal_value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, mask, sums, top, far = (
            data(context, builder, sig.args[k], args[k]) for k in (0, 5, 8, 9, 10)
        )
        at, row_stride, absolute, mask_at, mask_stride = (args[k] for k in (1, 2, 4, 6, 7))
        wide = stored == "f8"
        bits, double = ELEMENT["i8" if wide else "i4"], ELEMENT["f8"]
        block = _block(builder, source, at, row_stride, stored, absolute)
        origin = ir.Constant(ir.IntType(64), 0)
        # Less 1, so that 0 is the least of them with a sign, and without one the largest.
        least = largest = constant(builder, -1, bits)
        for row in block:
            for x in row:
                code = x.bitcast(bits) + -1
                largest = maximum(code, largest)
                least = select(
                    Vec(builder, builder.icmp_unsigned("<", code.value, least.value)), code, least
                )
        largest, least = largest + 1, least + 1
        store(builder, maximum(largest, load(builder, top, origin)), top, origin)
        element = block[0][0].element
        small = (largest & ((0x7FF << 52) if wide else 0x7F800000)).bitcast(element) * SMALL
        some = small > least.bitcast(element)
        store_bits(builder, some, far, origin)

        # Sums of eight scores near the largest float would overflow; such blocks are scaled,
        # exactly, before.
        huge = largest.bitcast(element) > (2.0**1000 if wide else 2.0**120)
        scale = select(huge, constant(builder, 2.0**-8, element), constant(builder, 1.0, element))
        block = [[x * scale for x in row] for row in block]
        value, code = _best_mask(keep, block)

        objective = constant(builder, 0.0, double)
        for i, row in enumerate(block):
            for j, x in enumerate(row):
                kept = ~(code & (1 << (M * i + j))).equals(0)
                objective = select(kept, objective + x.widen(double), objective)
            nibble = (
                code
                if i == 0
                else Vec(
                    builder, builder.lshr(code.value, constant(builder, M * i, code.element).value)
                )
            )
            nibble = nibble & 0xF
            spread = nibble | nibble.shift_left(7) | nibble.shift_left(14) | nibble.shift_left(21)
            store(builder, spread & 0x01010101, mask, _offset(builder, mask_at, mask_stride, i))
        back = select(huge, constant(builder, 2.0**8, double), constant(builder, 1.0, double))
        for place, amount in ((0, objective), (LANES, value.widen(double))):
            index = ir.Constant(ir.IntType(64), place)
            store(builder, load(builder, sums, index) + amount * back, sums, index)
        word = builder.load(builder.gep(far, [origin]))
        with builder.if_then(
            builder.icmp_unsigned("!=", word, ir.Constant(word.type, 0)), likely=False
        ):
            few = constant(builder, 0, bits)
            for i, row in enumerate(block):
                for j, x in enumerate(row):
                    kept = ~(code & (1 << (M * i + j))).equals(0)
                    few = select(kept & (small * scale > x), few + 1, few)
            store_bits(builder, some & (few > (1 if keep > 1 else 0)), far, origin)
        return context.get_dummy_value()

    return sig, codegen


@part
def _mend(
    X, at, row_stride, kind, absolute, mask, row, column, sums, far, masks, scores, block, kept
):
    """Solve the lanes of `far` again, exactly. The first block's mask is at row, column."""
    _read_group(X, at, row_stride, kind, absolute, scores)
    for lane in range(LANES):
        if (far[0] >> lane) & 1 == 0:
            continue
        largest = scores[:, lane].max()
        scale = 2.0**-8 if largest > 2.0**1000 else 1.0
        before, after = 0.0, 0.0
        for i in range(M):
            for j in range(M):
                block[i, j] = scores[M * i + j, lane] * scale
                kept[i, j] = mask[row + i, column + M * lane + j]
                before += block[i, j] if kept[i, j] else 0.0
        enumerate_exactly(block, masks, kept)
        for i in range(M):
            for j in range(M):
                mask[row + i, column + M * lane + j] = kept[i, j]
                after += block[i, j] if kept[i, j] else 0.0
        sums[lane] += (after - before) / scale


@kernel
def enumerate_blocks(
    X, top, kind, absolute, mask, first, last, n, masks, tile, tile_mask, sums, build
):
    """Solve block rows first … last − 1 of X into mask; sums[:16] gains the objective and sums[16:]
    the best values.

    X (rows, cols) float32, float64 or 16-bit patterns, named by the literal `kind`; elements of a
    row adjacent. masks: as `apart.codes` lists them. Blocks that do not fill a group of 16 side by
    side are collected in tile (4, 64), of X's dtype.
    """
    row_stride, mask_stride, tile_stride = (
        X.strides[0] // X.itemsize,
        mask.strides[0],
        tile.shape[1],
    )
    far, scores = np.zeros(1, np.uint16), np.empty((M * M, LANES))
    block, kept = np.empty((M, M)), np.empty((M, M), np.uint8)
    blocks_per_row = X.shape[1] // M
    grouped = blocks_per_row // LANES * LANES
    for r in range(first, last):
        for c in range(0, grouped, LANES):
            at = r * M * row_stride + c * M
            _solve_group(
                X, at, row_stride, kind, absolute, mask, r * M * mask_stride + c * M, mask_stride,
                sums, top, far, n,
            )  # fmt: skip
            if far[0] != 0:
                _mend(
                    X, at, row_stride, kind, absolute, mask, r * M, c * M, sums, far, masks, scores,
                    block, kept,
                )  # fmt: skip
    rest = blocks_per_row - grouped
    total = rest * (last - first)
    for start in range(0, total, LANES):
        filled = min(LANES, total - start)
        tile[:] = 0
        for lane in range(filled):
            r, c = (first + (start + lane) // rest) * M, (grouped + (start + lane) % rest) * M
            for i in range(M):
                for j in range(M):
                    tile[i, lane * M + j] = X[r + i, c + j]
        _solve_group(
            tile, 0, tile_stride, kind, absolute, tile_mask, 0, tile_stride, sums, top, far, n
        )
        if far[0] != 0:
            _mend(
                tile, 0, tile_stride, kind, absolute, tile_mask, 0, 0, sums, far, masks, scores,
                block, kept,
            )  # fmt: skip
        for lane in range(filled):
            r, c = (first + (start + lane) // rest) * M, (grouped + (start + lane) % rest) * M
            for i in range(M):
                for j in range(M):
                    mask[r + i, c + j] = tile_mask[i, lane * M + j]


def prove(objective: float, best: float, wide: bool, tolerance: float) -> tuple[float, bool]:
    """Return the bound that the sum of best values proves, and whether it closes.

    wide : they were summed in float64.
    """
    exact_sums = not wide and tolerance < 1e-6  # small integers
    rounding = 0.0 if exact_sums else ROUNDINGS * (2.0**-53 if wide else 2.0**-24)
    bound = max(objective, best * (1.0 + rounding))
    return bound, bound - objective <= tolerance * objective


@cache
def _compiled(kind: str, n: int) -> Callable[..., None]:
    stored, integer = STORAGE[kind]
    return specialise(
        enumerate_blocks, array(stored, 2, "A"), array(integer, 1), kind, types.int64,
        array(types.uint8, 2, "A"), types.int64,
        types.int64, n, array(types.uint16, 1), array(stored, 2), array(types.uint8, 2),
        array(types.float64, 1),
    )  # fmt: skip


def make(pattern: Pattern, kind: str, absolute: bool, tolerance: float) -> Run:
    """Return the exact solver of 1:4T, 2:4T and 3:4T, exactly n, for scores ≥ 0 (sums of others
    cancel, which voids the bound).
    """
    n, wide = pattern.n, kind == "f8"
    solve = _compiled(kind, n)

    def run(X: NDArray[Any], mask: NDArray[Any], first: int, last: int) -> TaskResult | None:
        top, sums = np.zeros(LANES, np.int64 if wide else np.int32), np.zeros(2 * LANES)
        tile, tile_mask = np.zeros((M, M * LANES), X.dtype), np.zeros((M, M * LANES), np.uint8)
        solve(
            X, top, kind, int(absolute), mask, first, last, n, codes(n, M), tile, tile_mask, sums,
            BUILD,
        )  # fmt: skip
        largest = top.max()
        if largest >= (0x7FF0000000000000 if wide else 0x7F800000):
            return None
        blocks = (last - first) * (X.shape[1] // M)
        objective, best = float(sums[:LANES].sum()), float(sums[LANES:].sum())
        bound, closed = prove(objective, best, wide, tolerance)
        return TaskResult(objective, bound, 0 if closed else blocks, {"enumerated": blocks})

    return run
