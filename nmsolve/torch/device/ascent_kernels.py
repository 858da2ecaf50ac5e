"""The Triton kernels of the dual ascent: whole blocks in registers, from scores to masks in one
launch; see `ascent`.

How blocks lie in registers: `block_registers`; the steps of the ascent: `ascent_steps`; the proofs
of masks: `block_proofs`. The kernels compute what `torch_engine` computes.
"""

# mypy: ignore-errors

# Triton's language is a subset, without unpacking into tuples; its constants are upper case.
# ruff: noqa: RUF005
import triton
import triton.language as tl

from nmsolve.torch.device.ascent_steps import (
    find_ties,
    lossy,
    magnitude,
    run_rounds,
    shifted,
    signed_masks,
    start,
)
from nmsolve.torch.device.block_proofs import (
    certify,
    kept_sum,
    relax,
)
from nmsolve.torch.device.block_registers import (
    any_of,
    load_block,
    most_of,
    place_of,
    read,
    store_duals,
    store_mask,
    sum_of,
    times,
    turned,
    write,
)
from nmsolve.torch.device.kernels import (
    wide,
)


@triton.jit(
    do_not_specialize=[
        "total",
        "blocks_per_row",
        "blocks_a_batch",
        "rows",
        "cols",
        "once",
        "rounds",
    ]
)
def ascend_first(
    X, words_of_X, mask, U, V, SCALE, OPEN, sums, total, blocks_per_row, blocks_a_batch, rows, cols,
    batch_stride, row_stride, col_stride,
    once, rounds, margin,
    N: tl.constexpr, M: tl.constexpr, UPPER: tl.constexpr, LOWER: tl.constexpr,
    AT_MOST: tl.constexpr, NETWORK: tl.constexpr,
    ABSOLUTE: tl.constexpr, COLLECT: tl.constexpr, EDGES: tl.constexpr, PACK: tl.constexpr,
    ELEMENT: tl.constexpr,
    WIDTH: tl.constexpr, COMPUTE: tl.constexpr, INFINITE: tl.constexpr, LIMIT: tl.constexpr,
    OMEGA: tl.constexpr, K: tl.constexpr,
    SPLIT: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """The first level on all blocks, as torch_engine.ascend_first: what signs beyond doubt prove,
    at a gap of 0.

    OPEN (total,): 1 where a block is not proven. sums (programs, 4): objective and gap of the
    blocks proven, 1 if a score is not finite, and how many are proven.
    """
    PADDED: tl.constexpr = K * SPLIT != M
    batch_stride, row_stride, col_stride = wide(batch_stride, row_stride, col_stride)
    block = tl.program_id(0) * BLOCKS + tl.expand_dims(tl.arange(0, BLOCKS), 1)
    part = tl.expand_dims(tl.arange(0, SPLIT), 0) + tl.zeros((BLOCKS, 1), tl.int32)
    inside = block < total
    block_row, across, row, col, origin = place_of(
        block, blocks_per_row, blocks_a_batch, batch_stride, row_stride, col_stride, M
    )
    by_row, by_column = load_block(
        X, words_of_X, origin, row, col, rows, cols, row_stride, col_stride, part, inside, once,
        M, K, SPLIT, PADDED, PACK, ELEMENT, EDGES, ABSOLUTE, COMPUTE,
    )  # fmt: skip
    _power, scale, wrong = magnitude(by_row, SPLIT, INFINITE, LIMIT, COMPUTE)
    lost = lossy(by_row, scale, SPLIT)
    by_row = times(by_row, 1.0 / scale)
    by_column = times(by_column, 1.0 / scale)
    u, v = start(by_column, M, K, UPPER, LOWER, AT_MOST, NETWORK)
    u, v = run_rounds(
        by_row, by_column, u, v, rounds, 0, OMEGA, M, K, SPLIT, UPPER, LOWER, AT_MOST, NETWORK,
        COMPUTE, BLOCKS,
    )  # fmt: skip
    words, _row_counts, _columns, _column_counts, fine, near = signed_masks(
        by_row, by_column, u, v, part, N, M, K, SPLIT, PADDED, AT_MOST, BLOCKS
    )
    largest = tl.zeros_like(v[0])
    for k in tl.static_range(K):
        size = tl.abs(v[k])
        if PADDED:
            size = tl.where(part * K + k < M, size, 0.0)
        largest = tl.maximum(largest, size)
    closed = inside & fine & ~lost & (near > most_of(largest, SPLIT) * margin)
    value = kept_sum(by_row, words, M, K, SPLIT)
    store_mask(
        mask, block_row, across, blocks_per_row, words, part, inside, once, M, K, PADDED, WIDTH
    )
    if COLLECT:
        store_duals(U, V, u, v, block, tl.cast(total, tl.int64), part, inside, once, M, K, PADDED)
        write((SCALE + block,), (scale,), (inside,), once)
    write((OPEN + block,), ((~closed).to(tl.int8),), (inside,), once)
    program = sums + tl.program_id(0) * 4
    tl.store(program, sum_of(tl.where(closed, value * scale.to(tl.float64), 0.0)))
    tl.store(program + 1, 0.0)
    tl.store(program + 2, sum_of((inside & wrong).to(tl.int32)).to(tl.float64))
    tl.store(program + 3, sum_of(closed.to(tl.int32)).to(tl.float64))


@triton.jit(
    do_not_specialize=[
        "total",
        "count",
        "blocks_per_row",
        "blocks_a_batch",
        "rows",
        "cols",
        "once",
        "sweeps",
    ]
)
def ascend_rest(
    X, words_of_X, mask, place, U, V, SCALE, OPEN, sums, delta, total, count, blocks_per_row,
    blocks_a_batch,
    rows, cols, batch_stride,
    row_stride, col_stride, once, sweeps, grain, rounding, tolerance,
    ROUNDS: tl.constexpr, N: tl.constexpr, M: tl.constexpr, UPPER: tl.constexpr,
    LOWER: tl.constexpr, AT_MOST: tl.constexpr,
    NETWORK: tl.constexpr, ABSOLUTE: tl.constexpr, COLLECT: tl.constexpr, EDGES: tl.constexpr,
    PACK: tl.constexpr,
    ELEMENT: tl.constexpr, WIDTH: tl.constexpr, COMPUTE: tl.constexpr, INFINITE: tl.constexpr,
    LIMIT: tl.constexpr,
    OMEGA: tl.constexpr, LATTICE: tl.constexpr, ZEROS: tl.constexpr, HINT: tl.constexpr,
    FINE: tl.constexpr,
    SHRINK: tl.constexpr, COARSE: tl.constexpr, APART: tl.constexpr, TIGHT: tl.constexpr,
    K: tl.constexpr, SPLIT: tl.constexpr,
    BLOCKS: tl.constexpr,
):  # fmt: skip
    """All levels on the `count` blocks at `place`, one after the other, as
    torch_engine.ascend_rest.

    delta (M M,): the offset of every entry. sums (programs, 2 + levels): objective and gap of the
    blocks proven, and how many each level proved.
    """
    PADDED: tl.constexpr = K * SPLIT != M
    LEVELS: tl.constexpr = len(ROUNDS)
    batch_stride, row_stride, col_stride = wide(batch_stride, row_stride, col_stride)
    index = tl.program_id(0) * BLOCKS + tl.expand_dims(tl.arange(0, BLOCKS), 1)
    part = tl.expand_dims(tl.arange(0, SPLIT), 0) + tl.zeros((BLOCKS, 1), tl.int32)
    left = index < count
    block = read((place + index,), (left,), once, 0)[0]
    block_row, across, row, col, origin = place_of(
        block, blocks_per_row, blocks_a_batch, batch_stride, row_stride, col_stride, M
    )
    by_row, by_column = load_block(
        X, words_of_X, origin, row, col, rows, cols, row_stride, col_stride, part, left, once,
        M, K, SPLIT, PADDED, PACK, ELEMENT, EDGES, ABSOLUTE, COMPUTE,
    )  # fmt: skip
    power, scale, _wrong = magnitude(by_row, SPLIT, INFINITE, LIMIT, COMPUTE)
    inverse = 1.0 / scale
    lost = lossy(by_row, scale, SPLIT)
    by_row = times(by_row, inverse)
    by_column = times(by_column, inverse)
    u, v = start(by_column, M, K, UPPER, LOWER, AT_MOST, NETWORK)
    amount, everywhere, equal = find_ties(
        by_row, by_column, part, power, M, K, SPLIT, PADDED, UPPER, LOWER, NETWORK, LATTICE, ZEROS,
        COARSE,
    )  # fmt: skip
    objective = tl.zeros((BLOCKS, 1), tl.float64)
    gap = tl.zeros((BLOCKS, 1), tl.float64)
    level_of = tl.zeros((BLOCKS, 1), tl.int32)
    for level in range(LEVELS):
        if any_of(left):
            # Scores are read again where they are needed: to keep them beside the shifted ones
            # would take twice the registers.
            by_row, by_column = load_block(
                X, words_of_X, origin, row, col, rows, cols, row_stride, col_stride, part, left,
                once,
                M, K, SPLIT, PADDED, PACK, ELEMENT, EDGES, ABSOLUTE, COMPUTE,
            )  # fmt: skip
            by_row = shifted(
                times(by_row, inverse), delta, amount, everywhere, part, once, M, 1, M, K, PADDED
            )
            if SPLIT == 1:
                by_column = turned(by_row, M)
            else:
                by_column = shifted(
                    times(by_column, inverse), delta, amount, everywhere, part, once, 1, M, M, K,
                    PADDED,
                )  # fmt: skip
            rounds = ROUNDS[0]
            for k in tl.static_range(1, LEVELS):
                rounds = tl.where(level == k, ROUNDS[k], rounds)
            u, v = run_rounds(
                by_row, by_column, u, v, rounds, level, OMEGA, M, K, SPLIT, UPPER, LOWER, AT_MOST,
                NETWORK, COMPUTE, BLOCKS,
            )  # fmt: skip
            words, row_counts, column_words, column_counts, fine, _near = signed_masks(
                by_row, by_column, u, v, part, N, M, K, SPLIT, PADDED, AT_MOST, BLOCKS
            )
            store_mask(
                mask, block_row, across, blocks_per_row, words, part, left, once, M, K, PADDED,
                WIDTH,
            )  # fmt: skip
            fine = left & fine
            if any_of(fine):
                by_row, by_column = load_block(
                    X, words_of_X, origin, row, col, rows, cols, row_stride, col_stride, part, fine,
                    once,
                    M, K, SPLIT, PADDED, PACK, ELEMENT, EDGES, ABSOLUTE, COMPUTE,
                )  # fmt: skip
                by_row = times(by_row, inverse)
                by_column = times(by_column, inverse)
                relaxed_u, relaxed_v = relax(
                    by_row, by_column, u, v, words, column_words, row_counts, column_counts, power,
                    part, sweeps,
                    tl.cast(grain, COMPUTE), N, M, K, SPLIT, PADDED, AT_MOST, BLOCKS,
                )  # fmt: skip
                chosen = fine & (amount > 0)
                new_u = ()
                new_v = ()
                for k in tl.static_range(K):
                    new_u = new_u + (tl.where(chosen, relaxed_u[k], u[k]),)
                    new_v = new_v + (tl.where(chosen, relaxed_v[k], v[k]),)
                u = new_u
                v = new_v
                value, loose, proven = certify(
                    by_row, u, v, words, row_counts, column_counts, power, part, rounding,
                    tolerance,
                    APART, TIGHT, N, M, K, SPLIT, PADDED, AT_MOST, BLOCKS,
                )  # fmt: skip
                proven = fine & proven & ~lost
                objective = tl.where(proven, value, objective)
                gap = tl.where(proven, loose, gap)
                level_of = tl.where(proven, level + 1, level_of)
                if COLLECT:
                    store_duals(
                        U, V, u, v, block, tl.cast(total, tl.int64), part, proven, once, M, K,
                        PADDED,
                    )  # fmt: skip
                left = left & ~proven
            amount = tl.where(fine, amount / SHRINK, amount)
            amount = tl.where(amount == 0, power * tl.where(equal, HINT, FINE), amount)
            everywhere = everywhere | (power > 0)

    write((OPEN + block,), (left.to(tl.int8),), (index < count,), once)
    program = sums + tl.program_id(0) * (2 + LEVELS)
    scale = scale.to(tl.float64)
    tl.store(program, sum_of(objective * scale))
    tl.store(program + 1, sum_of(gap * scale))
    for k in tl.static_range(LEVELS):
        tl.store(program + 2 + k, sum_of((level_of == k + 1).to(tl.int32)).to(tl.float64))
