"""Lane programs of the dual ascent: what happens to one line (row or column) of 16 blocks at once.

Layout: S[i, j] of 16 blocks is the vector at (i * m + j) * LANES; u[i] and v[j] are vectors at i *
LANES. A line starts at `start` and its elements lie `stride` apart (both in elements): LANES for a
row, m * LANES for a column. Masks are one bit a lane, 16 bits an entry.
"""

from __future__ import annotations

from typing import Any

from numba.core import cgutils

from nmsolve.solvers.lanes import (
    ELEMENT,
    LANES,
    Vec,
    constant,
    data,
    gather,
    intrinsic,
    ir,
    lane_offsets,
    load,
    load_bits,
    maximum,
    minimum,
    number,
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


def _walk(builder: Any, array: Any, start: Any, stride: Any, m: int) -> list[Vec]:
    """The m vectors of a line."""
    offsets = [
        builder.add(start, builder.mul(stride, ir.Constant(stride.type, k))) for k in range(m)
    ]
    return [load(builder, array, offset) for offset in offsets]


def _row(builder: Any, array: Any, m: int) -> list[Vec]:
    """The first m vectors of an array, one after the other."""
    return [load(builder, array, ir.Constant(ir.IntType(64), k * LANES)) for k in range(m)]


def _pointers(context: Any, builder: Any, sig: Any, args: Any) -> list[Any]:
    """Arguments with arrays replaced by their data pointers."""
    return [
        data(context, builder, kind, value) if isinstance(kind, types.Array) else value
        for kind, value in zip(sig.args, args, strict=True)
    ]


@intrinsic(prefer_literal=True)
def stage_line(typingctx, X, element, offsets, side_by_side, absolute, S, start, top, m):
    """Bring one row of 16 blocks from X (from `element` on) into S, and raise `top`, the bits of
    the largest magnitude.

    Blocks lie side by side, or lane l starts `offsets[l]` elements after `element`.
    """
    sig = types.void(X, element, offsets, side_by_side, absolute, S, start, top, m)
    size = number(m)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, at, lanes, adjacent, magnitude, S, start, top, _ = _pointers(
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
        S, start, stride, other, mine, at, share, equal, zero, low, *_ = _pointers(
            context, builder, sig, args
        )
        line = _walk(builder, S, start, stride, size)
        line = [x - y for x, y in zip(line, _row(builder, other, size), strict=True)]
        upper, lower = select_ranks(line, middle_ranks(keep, size), maximum, minimum)
        highest, lowest = _row(builder, low, 2)
        nothing = constant(builder, 0.0, upper.element)
        store(builder, maximum(lower, highest), low, ir.Constant(ir.IntType(64), 0))
        store(
            builder,
            minimum(maximum(nothing - upper, nothing), lowest),
            low,
            ir.Constant(ir.IntType(64), LANES),
        )
        middle = (upper + lower) * 0.5 * _like(builder, share, upper)
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


def _like(builder: Any, scalar: Any, vec: Vec) -> Vec:
    """A float64 scalar in every lane, in the vector's type."""
    return splat(
        builder, scalar if vec.element == scalar.type else builder.fptrunc(scalar, vec.element)
    )


@intrinsic(prefer_literal=True)
def half_step(typingctx, S, start, stride, other, mine, at, omega, n, m, at_most):
    """One coordinate of the dual ascent: mine += omega * (midpoint of the n-th and (n+1)-th of S −
    other, − mine).
    """
    sig = types.void(S, start, stride, other, mine, at, omega, n, m, at_most)
    keep, size, clamp = number(n), number(m), number(at_most)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        S, start, stride, other, mine, at, omega, *_ = _pointers(context, builder, sig, args)
        line = _walk(builder, S, start, stride, size)
        line = [x - y for x, y in zip(line, _row(builder, other, size), strict=True)]
        upper, lower = select_ranks(line, middle_ranks(keep, size), maximum, minimum)
        old = load(builder, mine, at)
        new = old + ((upper + lower) * 0.5 - old) * _like(builder, omega, old)
        store(
            builder, maximum(new, constant(builder, 0.0, new.element)) if clamp else new, mine, at
        )
        return context.get_dummy_value()

    return sig, codegen


@intrinsic(prefer_literal=True)
def lattice_line(typingctx, S, start, power, word, steps, m):
    """word = the lanes where every score of a row is a multiple of power / steps."""
    sig = types.void(S, start, power, word, steps, m)
    size = number(m)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        S, start, power, word, steps, _ = _pointers(context, builder, sig, args)
        origin = ir.Constant(ir.IntType(64), 0)
        largest = load(builder, power, origin)
        unit = Vec(builder, builder.fdiv(_like(builder, steps, largest).value, largest.value))
        shift = 1.5 * 2.0 ** (
            52 if largest.element == ELEMENT["f8"] else 23
        )  # adding and subtracting it rounds
        fine = largest.equals(largest)
        for x in _walk(builder, S, start, ir.Constant(start.type, LANES), size):
            scaled = x * unit
            fine = fine & (scaled + shift - shift).equals(scaled)
        store_bits(builder, fine, word, origin)
        return context.get_dummy_value()

    return sig, codegen


@intrinsic(prefer_literal=True)
def perturb_row(typingctx, S, start, delta, amount, everywhere, A, m):
    """A = S + amount * delta where `everywhere` or S is zero: what separates ties. delta is one
    scalar an entry.
    """
    sig = types.void(S, start, delta, amount, everywhere, A, m)
    size = number(m)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        S, start, delta, amount, everywhere, A, _ = _pointers(context, builder, sig, args)
        origin = ir.Constant(ir.IntType(64), 0)
        strength, flag = load(builder, amount, origin), load_bits(builder, everywhere, origin)
        zero = constant(builder, 0.0, strength.element)
        lanes = ir.Constant(start.type, LANES)
        for j, x in enumerate(_walk(builder, S, start, lanes, size)):
            place = builder.add(start, ir.Constant(start.type, j * LANES))
            entry = splat(builder, builder.load(builder.gep(delta, [builder.udiv(place, lanes)])))
            added = select(flag | x.equals(0.0), entry * strength, zero)
            store(builder, x + added, A, place)
        return context.get_dummy_value()

    return sig, codegen


@intrinsic(prefer_literal=True)
def sign_row(typingctx, S, start, u, at, v, bits, row_count, column_count, m):
    """X = (S − u − v > 0) of one row as bits; its count, and what it adds to the column counts."""
    sig = types.void(S, start, u, at, v, bits, row_count, column_count, m)
    size = number(m)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        S, start, u, at, v, bits, row_count, column_count, _ = _pointers(
            context, builder, sig, args
        )
        lanes = ir.Constant(start.type, LANES)
        potential = load(builder, u, at)
        total = constant(builder, 0, ELEMENT["i4"])
        columns = _row(builder, v, size)
        for j, x in enumerate(_walk(builder, S, start, lanes, size)):
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
        count, at, dual, good, *_ = _pointers(context, builder, sig, args)
        origin = ir.Constant(ir.IntType(64), 0)
        kept = load(builder, count, at)
        fine = kept.equals(keep)
        if fewer:
            fine = fine | ((kept < keep) & load(builder, dual, at).equals(0.0))
        store_bits(builder, load_bits(builder, good, origin) & fine, good, origin)
        return context.get_dummy_value()

    return sig, codegen


@intrinsic(prefer_literal=True)
def round_duals(typingctx, u, v, at, power, share, ru, rw):
    """ru = u and rw = −v, rounded to multiples of share * power."""
    sig = types.void(u, v, at, power, share, ru, rw)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        u, v, at, power, share, ru, rw = _pointers(context, builder, sig, args)
        largest = load(builder, power, ir.Constant(ir.IntType(64), 0))
        shift = (
            largest
            * _like(builder, share, largest)
            * (1.5 * 2.0 ** (52 if largest.element == ELEMENT["f8"] else 23))
        )
        store(builder, load(builder, u, at) + shift - shift, ru, at)
        store(builder, shift - (load(builder, v, at) + shift), rw, at)
        return context.get_dummy_value()

    return sig, codegen


@intrinsic(prefer_literal=True)
def adopt_duals(typingctx, ru, rw, z, at, amount, good, u, v, at_most):
    """u = ru and v = −rw (at most: measured from z and clipped at 0) in the feasible lanes that
    were shifted.
    """
    sig = types.void(ru, rw, z, at, amount, good, u, v, at_most)
    clamp = number(at_most)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        ru, rw, z, at, amount, good, u, v, _ = _pointers(context, builder, sig, args)
        origin = ir.Constant(ir.IntType(64), 0)
        chosen = load_bits(builder, good, origin) & (load(builder, amount, origin) > 0.0)
        rows, columns = load(builder, ru, at), load(builder, rw, at)
        base = load(builder, z, origin) if clamp else constant(builder, 0.0, rows.element)
        zero = constant(builder, 0.0, rows.element)
        for new, array in ((rows - base, u), (base - columns, v)):
            store(
                builder,
                select(chosen, maximum(new, zero) if clamp else new, load(builder, array, at)),
                array,
                at,
            )
        return context.get_dummy_value()

    return sig, codegen


@intrinsic(prefer_literal=True)
def relax_row(typingctx, S, start, bits, u, at, w, m):
    """u_i = min(u_i, min over kept j of w_j + S_ij): one Bellman–Ford relaxation, w = −v."""
    sig = types.void(S, start, bits, u, at, w, m)
    size = number(m)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        S, start, bits, u, at, w, _ = _pointers(context, builder, sig, args)
        lanes = ir.Constant(start.type, LANES)
        best = load(builder, u, at)
        columns = _row(builder, w, size)
        for j, x in enumerate(_walk(builder, S, start, lanes, size)):
            index = builder.add(builder.udiv(start, lanes), ir.Constant(start.type, j))
            best = select(load_bits(builder, bits, index), minimum(columns[j] + x, best), best)
        store(builder, best, u, at)
        return context.get_dummy_value()

    return sig, codegen


@intrinsic(prefer_literal=True)
def relax_column(typingctx, S, column, bits, u, w, m):
    """w_j = min(w_j, min over pruned i of u_i − S_ij)."""
    sig = types.void(S, column, bits, u, w, m)
    size = number(m)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        S, column, bits, u, w, _ = _pointers(context, builder, sig, args)
        lanes = ir.Constant(column.type, LANES)
        at = builder.mul(column, lanes)
        best = load(builder, w, at)
        rows = _row(builder, u, size)
        for i, x in enumerate(_walk(builder, S, at, ir.Constant(column.type, size * LANES), size)):
            kept = load_bits(builder, bits, builder.add(column, ir.Constant(column.type, i * size)))
            best = select(kept, best, minimum(rows[i] - x, best))
        store(builder, best, w, at)
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
        S, start, bits, u, at, v, objective, size, gap, _ = _pointers(context, builder, sig, args)
        lanes, double = ir.Constant(start.type, LANES), ELEMENT["f8"]
        zero = constant(builder, 0.0, double)
        origin = ir.Constant(ir.IntType(64), 0)
        total, loose = load(builder, objective, origin), load(builder, gap, origin)
        magnitude = load(builder, size, origin)
        potential = load(builder, u, at).widen(double)
        columns = _row(builder, v, length)
        for j, x in enumerate(_walk(builder, S, start, lanes, length)):
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
        bits, row, mask, at, _ = _pointers(context, builder, sig, args)
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
        tile, start, mask, at, _ = _pointers(context, builder, sig, args)
        count = ir.Constant(ir.IntType(64), size)
        cgutils.raw_memcpy(builder, builder.gep(mask, [at]), builder.gep(tile, [start]), count, 1)
        return context.get_dummy_value()

    return sig, codegen
