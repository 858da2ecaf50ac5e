"""Lane programs of the dual ascent: what happens to one line (row or column) of 16 blocks at once.

Layout: S[i, j] of 16 blocks is the vector at (i * m + j) * LANES; u[i] and v[j] are vectors at
i * LANES and j * LANES. A line starts at `start` and its elements lie `stride` apart (both in
elements): LANES for a row, m * LANES for a column. Masks are one bit per lane, 16 bits per entry.
"""

from __future__ import annotations

from typing import Any

from numba.core import cgutils

from nmsolve.solvers.lanes import (
    ELEMENT,
    LANES,
    Vec,
    constant,
    gather,
    in_lanes,
    intrinsic,
    ir,
    lane_offsets,
    load,
    load_bits,
    load_first,
    load_line,
    maximum,
    minimum,
    number,
    pointers,
    select,
    splat,
    store,
    store_bits,
    store_mask,
    to_scores,
    types,
    unzip,
)
from nmsolve.solvers.network import select_ranks


@intrinsic(prefer_literal=True)
def stage_line(typingctx, X, element, offsets, side_by_side, absolute, S, start, top, m):
    """Bring one row of 16 blocks from X (from `element` on) into S, and raise `top`, the bits of
    the largest magnitude.

    Blocks lie side by side, or lane l starts `offsets[l]` elements after `element`.
    """
    sig = types.void(X, element, offsets, side_by_side, absolute, S, start, top, m)
    size = number(m)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, at, lanes, adjacent, magnitude, S, start, top, _ = pointers(
            context, builder, sig, args
        )
        kind = "f8" if sig.args[0].dtype is types.float64 else "f4"
        bits = ELEMENT["i8" if kind == "f8" else "i4"]

        def finish(vectors: list[Vec]) -> None:
            largest = load(builder, top, ir.Constant(ir.IntType(64), 0))
            for j, raw in enumerate(vectors):
                scores = to_scores(raw, kind, magnitude)
                clear = scores.bitcast(bits) & ((1 << (bits.width - 1)) - 1)
                largest = maximum(clear, largest)
                store(builder, scores, S, builder.add(start, ir.Constant(start.type, j * LANES)))
            store(builder, largest, top, ir.Constant(ir.IntType(64), 0))

        one = ir.Constant(adjacent.type, 0)
        with builder.if_else(builder.icmp_unsigned("!=", adjacent, one)) as (
            consecutive,
            scattered,
        ):
            with consecutive:
                if size & (size - 1) == 0 and size <= 32:
                    step = ir.Constant(at.type, LANES)
                    places = [
                        builder.add(at, builder.mul(step, ir.Constant(at.type, k)))
                        for k in range(size)
                    ]
                    finish(unzip([load(builder, source, place) for place in places]))
                else:
                    lane = lane_offsets(builder, ir.Constant(ir.IntType(64), size)) + splat(
                        builder, at
                    )
                    finish([gather(builder, source, lane + j) for j in range(size)])
            with scattered:
                lane = load(builder, lanes, ir.Constant(ir.IntType(64), 0)) + splat(builder, at)
                finish([gather(builder, source, lane + j) for j in range(size)])
        return context.get_dummy_value()

    return sig, codegen


def middle_ranks(n: int, m: int) -> tuple[int, int]:
    """The ranks (0 is the largest) between which the threshold of a line that keeps n of m lies."""
    return n - 1, min(n, m - 1)


@intrinsic(prefer_literal=True)
def start_line(
    typingctx, S, start, stride, other, mine, at, share, equal, zero, low, n, m, at_most
):
    """mine = share * midpoint of the n-th and (n+1)-th of S − other, counting the lines where these
    two are equal.

    `equal` counts those that are equal and not zero, `zero` those that are both zero. low (2
    LANES,): the largest (n+1)-th, and the least negative of an n-th, or 0: what is ordinary in a
    block is as large.
    """
    sig = types.void(S, start, stride, other, mine, at, share, equal, zero, low, n, m, at_most)
    keep, size, clamp = number(n), number(m), number(at_most)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        S, start, stride, other, mine, at, share, equal, zero, low, *_ = pointers(
            context, builder, sig, args
        )
        line = load_line(builder, S, start, stride, size)
        line = [x - y for x, y in zip(line, load_first(builder, other, size), strict=True)]
        upper, lower = select_ranks(line, middle_ranks(keep, size), maximum, minimum)
        highest, lowest = load_first(builder, low, 2)
        nothing = constant(builder, 0.0, upper.element)
        store(builder, maximum(lower, highest), low, ir.Constant(ir.IntType(64), 0))
        store(
            builder,
            minimum(maximum(nothing - upper, nothing), lowest),
            low,
            ir.Constant(ir.IntType(64), LANES),
        )
        middle = (upper + lower) * 0.5 * in_lanes(builder, share, upper)
        store(
            builder,
            maximum(middle, constant(builder, 0.0, middle.element)) if clamp else middle,
            mine,
            at,
        )
        tied, null = upper.equals(lower), upper.equals(0.0)
        origin = ir.Constant(ir.IntType(64), 0)
        for array, counted in ((equal, tied & ~null), (zero, tied & null)):
            store(
                builder, load(builder, array, origin) + counted.widen(ELEMENT["i4"]), array, origin
            )
        return context.get_dummy_value()

    return sig, codegen


@intrinsic(prefer_literal=True)
def half_step(typingctx, S, start, stride, other, mine, at, omega, n, m, at_most):
    """One coordinate of the dual ascent: mine += omega * (midpoint of the n-th and (n+1)-th of S −
    other, − mine).
    """
    sig = types.void(S, start, stride, other, mine, at, omega, n, m, at_most)
    keep, size, clamp = number(n), number(m), number(at_most)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        S, start, stride, other, mine, at, omega, *_ = pointers(context, builder, sig, args)
        line = load_line(builder, S, start, stride, size)
        line = [x - y for x, y in zip(line, load_first(builder, other, size), strict=True)]
        upper, lower = select_ranks(line, middle_ranks(keep, size), maximum, minimum)
        old = load(builder, mine, at)
        new = old + ((upper + lower) * 0.5 - old) * in_lanes(builder, omega, old)
        store(
            builder, maximum(new, constant(builder, 0.0, new.element)) if clamp else new, mine, at
        )
        return context.get_dummy_value()

    return sig, codegen


@intrinsic(prefer_literal=True)
def sign_row(typingctx, S, start, u, at, v, bits, row_count, column_count, m):
    """X = (S − u − v > 0) of one row as bits; its count, and what it adds to the column counts."""
    sig = types.void(S, start, u, at, v, bits, row_count, column_count, m)
    size = number(m)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        S, start, u, at, v, bits, row_count, column_count, _ = pointers(context, builder, sig, args)
        lanes = ir.Constant(start.type, LANES)
        potential = load(builder, u, at)
        total = constant(builder, 0, ELEMENT["i4"])
        columns = load_first(builder, v, size)
        for j, x in enumerate(load_line(builder, S, start, lanes, size)):
            kept = x - potential - columns[j] > 0.0
            one = kept.widen(ELEMENT["i4"])
            total = total + one
            place = ir.Constant(ir.IntType(64), j * LANES)
            store(builder, load(builder, column_count, place) + one, column_count, place)
            index = builder.add(builder.udiv(start, lanes), ir.Constant(start.type, j))
            store_bits(builder, kept, bits, index)
        store(builder, total, row_count, at)
        return context.get_dummy_value()

    return sig, codegen


@intrinsic(prefer_literal=True)
def judge_line(typingctx, count, at, dual, good, n, at_most):
    """Clear the lanes of `good` whose line does not keep n (at most: keeps more, or fewer at a
    positive dual).
    """
    sig = types.void(count, at, dual, good, n, at_most)
    keep, fewer = number(n), number(at_most)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        count, at, dual, good, *_ = pointers(context, builder, sig, args)
        origin = ir.Constant(ir.IntType(64), 0)
        kept = load(builder, count, at)
        fine = kept.equals(keep)
        if fewer:
            fine = fine | ((kept < keep) & load(builder, dual, at).equals(0.0))
        store_bits(builder, load_bits(builder, good, origin) & fine, good, origin)
        return context.get_dummy_value()

    return sig, codegen


@intrinsic(prefer_literal=True)
def certify_row(typingctx, S, start, bits, u, at, v, objective, size, gap, m):
    """Add one row's kept scores, their magnitudes, and what its entries leave between them and the
    dual bound, in float64.

    bound − objective = Σ pruned max(0, r) + Σ kept max(0, −r) with r = S − u − v, when every line
    keeps n.
    """
    sig = types.void(S, start, bits, u, at, v, objective, size, gap, m)
    length = number(m)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        S, start, bits, u, at, v, objective, size, gap, _ = pointers(context, builder, sig, args)
        lanes, double = ir.Constant(start.type, LANES), ELEMENT["f8"]
        zero = constant(builder, 0.0, double)
        origin = ir.Constant(ir.IntType(64), 0)
        total, loose = load(builder, objective, origin), load(builder, gap, origin)
        magnitude = load(builder, size, origin)
        potential = load(builder, u, at).widen(double)
        columns = load_first(builder, v, length)
        for j, x in enumerate(load_line(builder, S, start, lanes, length)):
            index = builder.add(builder.udiv(start, lanes), ir.Constant(start.type, j))
            kept = load_bits(builder, bits, index)
            score = x.widen(double)
            r = score - potential - columns[j].widen(double)
            total = select(kept, total + score, total)
            magnitude = select(kept, magnitude + maximum(score, zero - score), magnitude)
            loose = loose + maximum(select(kept, zero - r, r), zero)
        store(builder, total, objective, origin)
        store(builder, magnitude, size, origin)
        store(builder, loose, gap, origin)
        return context.get_dummy_value()

    return sig, codegen


@intrinsic(prefer_literal=True)
def write_mask_row(typingctx, bits, row, mask, at, m):
    """One mask row of 16 blocks that lie side by side, from bits to bytes."""
    sig = types.void(bits, row, mask, at, m)
    size = number(m)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits, row, mask, at, _ = pointers(context, builder, sig, args)
        first = builder.mul(row, ir.Constant(row.type, size))
        kept = [
            load_bits(builder, bits, builder.add(first, ir.Constant(row.type, j)))
            for j in range(size)
        ]
        store_mask(builder, kept, mask, at)
        return context.get_dummy_value()

    return sig, codegen


@intrinsic(prefer_literal=True)
def copy_mask_row(typingctx, tile, start, mask, at, m):
    """m bytes from tile to mask, as few moves as they take."""
    sig = types.void(tile, start, mask, at, m)
    size = number(m)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        tile, start, mask, at, _ = pointers(context, builder, sig, args)
        count = ir.Constant(ir.IntType(64), size)
        cgutils.raw_memcpy(builder, builder.gep(mask, [at]), builder.gep(tile, [start]), count, 1)
        return context.get_dummy_value()

    return sig, codegen
