"""Row-wise n:m: keep the n largest scores of every m consecutive ones, for any 1 ≤ n ≤ m ≤ 64.

    maximise Σ_j S_j x_j,   x ∈ {0, 1}^m,   Σ_j x_j = n   (at most: ≤ n)

The threshold t, the n-th largest score, is found by a selection network on 16 groups at once; what
is larger is kept, and of what equals t the lowest indices until n are kept. At most n keeps only
positive scores of these. With u = t (at most: max(t, 0)) the dual bound n u + Σ max(0, S_j − u)
equals the kept sum, so the threshold is the certificate; each group checks that its t separates n
scores.
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
from nmsolve.solvers.compiled import BUILD, STORAGE, array, kernel, specialise
from nmsolve.solvers.lanes import (
    ELEMENT,
    LANES,
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
    unzip,
)
from nmsolve.solvers.network import select_ranks


def keep_largest(
    values: list[Any], n: int, at_most: bool, ones: Any, choose: Any, highest: Any, lowest: Any
) -> Any:
    """Return, of m values, which are among the n largest, the lowest index first among equals; and
    whether n are separated.

    `ones` is the integer 1 in every lane; `choose`, `highest` and `lowest` are the select, maximum
    and minimum of the values' kind.
    """
    threshold = select_ranks(values, (n - 1,), highest, lowest)[0]
    none = ones - ones
    above, equal = none, none
    for x in values:
        above = above + choose(x > threshold, ones, none)
    room = ones * n - above
    kept = []
    for x in values:
        tied = x.equals(threshold)
        kept.append((x > threshold) | (tied & (room > equal)))
        equal = equal + choose(tied, ones, none)
    separated = (above < ones * n) & (above + equal > ones * (n - 1))
    if at_most:
        kept = [k & (x > 0.0) for k, x in zip(kept, values, strict=True)]
    return kept, separated


@intrinsic(prefer_literal=True)
def _keep_groups(typingctx, X, at, kind, absolute, mask, mask_at, sums, top, wrong, n, m, at_most):
    """Sixteen consecutive groups: mask bytes, kept scores added to sums, largest magnitude to
    top.
    """
    sig = types.void(X, at, kind, absolute, mask, mask_at, sums, top, wrong, n, m, at_most)
    keep, size, fewer, stored = number(n), number(m), number(at_most), kind.literal_value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, mask, sums, top, wrong = (
            data(context, builder, sig.args[k], args[k]) for k in (0, 4, 6, 7, 8)
        )
        at, absolute, mask_at = args[1], args[3], args[5]
        bits, double = ELEMENT["i8" if stored == "f8" else "i4"], ELEMENT["f8"]
        origin = ir.Constant(ir.IntType(64), 0)

        def after(base: Any, extra: int) -> Any:
            return builder.add(base, ir.Constant(base.type, extra))

        if size & (size - 1) == 0 and size <= 32:
            raw = unzip([load(builder, source, after(at, LANES * k)) for k in range(size)])
        else:
            lanes = lane_offsets(builder, ir.Constant(ir.IntType(64), size)) + splat(builder, at)
            raw = [gather(builder, source, lanes + j) for j in range(size)]
        values = [to_scores(x, stored, absolute) for x in raw]

        largest = load(builder, top, origin)
        for x in values:
            largest = maximum(x.bitcast(bits) & ((1 << (bits.width - 1)) - 1), largest)
        store(builder, largest, top, origin)

        ones = constant(builder, 1, bits)
        kept, separated = keep_largest(values, keep, bool(fewer), ones, select, maximum, minimum)
        store_bits(builder, load_bits(builder, wrong, origin) | ~separated, wrong, origin)
        total = load(builder, sums, origin)
        for k, x in zip(kept, values, strict=True):
            total = select(k, total + x.widen(double), total)
        store(builder, total, sums, origin)

        store_mask(builder, kept, mask, mask_at)
        return context.get_dummy_value()

    return sig, codegen


@kernel
def keep_rows(
    X, top, kind, absolute, mask, first, last, n, m, at_most, tile, tile_mask, sums, wrong, build
):
    """Solve rows first … last − 1 of X into mask; sums[:16] gains the kept scores, wrong[0] the
    lanes that failed the check.

    X (rows, cols) float32, float64 or 16-bit patterns, named by the literal `kind`; elements of a
    row adjacent. Groups that do not fill 16 in a row are collected in tile (1, 16 m), of X's dtype.
    """
    row_stride = X.strides[0] // X.itemsize
    mask_stride = mask.strides[0]
    groups = X.shape[1] // m
    whole = groups // LANES * LANES
    for r in range(first, last):
        for g in range(0, whole, LANES):
            _keep_groups(
                X, r * row_stride + g * m, kind, absolute, mask, r * mask_stride + g * m, sums, top,
                wrong, n, m, at_most,
            )  # fmt: skip
    rest = groups - whole
    total = rest * (last - first)
    for start in range(0, total, LANES):
        filled = min(LANES, total - start)
        tile[:] = 0
        for lane in range(filled):
            r, c = first + (start + lane) // rest, (whole + (start + lane) % rest) * m
            for j in range(m):
                tile[0, lane * m + j] = X[r, c + j]
        _keep_groups(tile, 0, kind, absolute, tile_mask, 0, sums, top, wrong, n, m, at_most)
        for lane in range(filled):
            r, c = first + (start + lane) // rest, (whole + (start + lane) % rest) * m
            for j in range(m):
                mask[r, c + j] = tile_mask[0, lane * m + j]


@cache
def _compiled(kind: str, n: int, m: int, at_most: int) -> Callable[..., None]:
    stored, integer = STORAGE[kind]
    return specialise(
        keep_rows, array(stored, 2, "A"), array(integer, 1), kind, types.int64,
        array(types.uint8, 2, "A"), types.int64,
        types.int64, n, m, at_most, array(stored, 2), array(types.uint8, 2),
        array(types.float64, 1), array(types.uint16, 1),
    )  # fmt: skip


def make(pattern: Pattern, kind: str, absolute: bool, tolerance: float) -> Run:
    """Return the exact solver of row-wise patterns, and of m:mT, which keeps every (positive)
    entry.
    """
    n, m, at_most, wide = pattern.n, pattern.m, int(pattern.at_most), kind == "f8"
    solve = _compiled(kind, n, m, at_most)

    def run(X: NDArray[Any], mask: NDArray[Any], first: int, last: int) -> TaskResult | None:
        top, sums, wrong = (
            np.zeros(LANES, np.int64 if wide else np.int32),
            np.zeros(LANES),
            np.zeros(1, np.uint16),
        )
        tile, tile_mask = np.zeros((1, m * LANES), X.dtype), np.zeros((1, m * LANES), np.uint8)
        rows = pattern.rows
        solve(
            X, top, kind, int(absolute), mask, first * rows, last * rows, n, m, at_most, tile,
            tile_mask, sums, wrong, BUILD,
        )  # fmt: skip
        if top.max() >= (0x7FF0000000000000 if wide else 0x7F800000):
            return None
        groups = (last - first) * rows * (X.shape[1] // m)
        objective = float(sums.sum())
        return TaskResult(objective, objective, int(wrong[0]).bit_count(), {"groups": groups})

    return run
