"""Lane programs of `ties`: offsets, and the relaxations that take their place in the duals.

Layout as in `ascent_lanes`.
"""

from __future__ import annotations

from typing import Any

from nmsolve.solvers.lanes import (
    ELEMENT,
    LANES,
    Vec,
    constant,
    in_lanes,
    intrinsic,
    ir,
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
    types,
)


@intrinsic(prefer_literal=True)
def lattice_line(typingctx, S, start, power, word, steps, m):
    """word = the lanes where every score of a row is a multiple of power / steps."""
    sig = types.void(S, start, power, word, steps, m)
    size = number(m)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        S, start, power, word, steps, _ = pointers(context, builder, sig, args)
        origin = ir.Constant(ir.IntType(64), 0)
        largest = load(builder, power, origin)
        unit = Vec(builder, builder.fdiv(in_lanes(builder, steps, largest).value, largest.value))
        shift = 1.5 * 2.0 ** (
            52 if largest.element == ELEMENT["f8"] else 23
        )  # adding and subtracting it rounds
        fine = largest.equals(largest)
        for x in load_line(builder, S, start, ir.Constant(start.type, LANES), size):
            scaled = x * unit
            fine = fine & (scaled + shift - shift).equals(scaled)
        store_bits(builder, fine, word, origin)
        return context.get_dummy_value()

    return sig, codegen


@intrinsic(prefer_literal=True)
def perturb_row(typingctx, S, start, delta, amount, everywhere, A, m):
    """A = S + amount * delta where `everywhere` or S is zero: what separates ties. delta is one
    scalar per entry.
    """
    sig = types.void(S, start, delta, amount, everywhere, A, m)
    size = number(m)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        S, start, delta, amount, everywhere, A, _ = pointers(context, builder, sig, args)
        origin = ir.Constant(ir.IntType(64), 0)
        strength, flag = load(builder, amount, origin), load_bits(builder, everywhere, origin)
        zero = constant(builder, 0.0, strength.element)
        lanes = ir.Constant(start.type, LANES)
        for j, x in enumerate(load_line(builder, S, start, lanes, size)):
            place = builder.add(start, ir.Constant(start.type, j * LANES))
            entry = splat(builder, builder.load(builder.gep(delta, [builder.udiv(place, lanes)])))
            added = select(flag | x.equals(0.0), entry * strength, zero)
            store(builder, x + added, A, place)
        return context.get_dummy_value()

    return sig, codegen


@intrinsic(prefer_literal=True)
def round_duals(typingctx, u, v, at, power, share, ru, rw):
    """ru = u and rw = −v, rounded to multiples of share * power."""
    sig = types.void(u, v, at, power, share, ru, rw)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        u, v, at, power, share, ru, rw = pointers(context, builder, sig, args)
        largest = load(builder, power, ir.Constant(ir.IntType(64), 0))
        shift = (
            largest
            * in_lanes(builder, share, largest)
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
        ru, rw, z, at, amount, good, u, v, _ = pointers(context, builder, sig, args)
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
        S, start, bits, u, at, w, _ = pointers(context, builder, sig, args)
        lanes = ir.Constant(start.type, LANES)
        best = load(builder, u, at)
        columns = load_first(builder, w, size)
        for j, x in enumerate(load_line(builder, S, start, lanes, size)):
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
        S, column, bits, u, w, _ = pointers(context, builder, sig, args)
        lanes = ir.Constant(column.type, LANES)
        at = builder.mul(column, lanes)
        best = load(builder, w, at)
        rows = load_first(builder, u, size)
        for i, x in enumerate(
            load_line(builder, S, at, ir.Constant(column.type, size * LANES), size)
        ):
            kept = load_bits(builder, bits, builder.add(column, ir.Constant(column.type, i * size)))
            best = select(kept, best, minimum(rows[i] - x, best))
        store(builder, best, w, at)
        return context.get_dummy_value()

    return sig, codegen
