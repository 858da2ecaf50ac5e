"""The Triton kernels of the dual ascent: whole blocks in registers, from scores to masks in one
launch; see `ascent`.

How blocks lie in registers: `block_registers`; what proves their masks: `block_proofs`. What the
kernels compute, `plain` computes.
"""

# mypy: ignore-errors

# Triton's language is a subset, without unpacking into tuples; its constants are upper case.
# ruff: noqa: RUF005, SIM300
import triton
import triton.language as tl

from nmsolve.torch.device.block_proofs import certify, kept_sum, relax
from nmsolve.torch.device.block_registers import (
    any_of,
    least_of,
    load_block,
    most_of,
    place_of,
    read,
    shared,
    store_duals,
    store_mask,
    sum_of,
    times,
    total_of,
    turned,
    write,
)
from nmsolve.torch.device.kernels import magnitude_bits, select, wide


@triton.jit
def _power_of_two(bits, COMPUTE: tl.constexpr):
    """The largest power of two no larger than the magnitude of these bits; the least normal one of
    subnormals, 1 of 0.
    """
    if COMPUTE == tl.float64:
        power = tl.maximum((bits & 0x7FF0000000000000).to(tl.float64, bitcast=True), 2.0**-1022)
    else:
        power = tl.maximum((bits & 0x7F800000).to(tl.float32, bitcast=True), 2.0**-126)
    return tl.where(bits == 0, 1.0, power)


@triton.jit
def _medians(
    lines,
    k: tl.constexpr,
    M: tl.constexpr,
    UPPER: tl.constexpr,
    LOWER: tl.constexpr,
    NETWORK: tl.constexpr,
):
    line = select(lines[k * M : k * M + M], NETWORK)
    return line[UPPER], line[LOWER]


@triton.jit
def _half_step(
    lines, own, fixed, by, M: tl.constexpr, K: tl.constexpr, UPPER: tl.constexpr,
    LOWER: tl.constexpr, AT_MOST: tl.constexpr,
    NETWORK: tl.constexpr,
):  # fmt: skip
    """Move a lane's duals to, and beyond, the midpoint that is least for the bound; `fixed` are the
    other axis's, all of them.
    """
    moved = ()
    for k in tl.static_range(K):
        rest = ()
        for j in tl.static_range(M):
            rest = rest + (lines[k * M + j] - fixed[j],)
        rest = select(rest, NETWORK)
        new = own[k] + ((rest[UPPER] + rest[LOWER]) * 0.5 - own[k]) * by
        if AT_MOST:
            new = tl.maximum(new, 0.0)
        moved = moved + (new,)
    return moved


@triton.jit
def _judge(count, dual, N: tl.constexpr, AT_MOST: tl.constexpr):
    """Where a line keeps n, or at most: fewer at the dual 0."""
    fine = count == N
    if AT_MOST:
        fine = fine | ((count < N) & (dual == 0))
    return fine


@triton.jit
def _signs(
    lines, own, fixed, part, BY_ROW: tl.constexpr, N: tl.constexpr, M: tl.constexpr,
    K: tl.constexpr, PADDED: tl.constexpr,
    AT_MOST: tl.constexpr,
):  # fmt: skip
    """A lane's lines of the mask S − u − v > 0 as words, their counts, whether all are feasible,
    and the least |S − u − v|.

    The subtractions are in the same order for rows and for columns, so that both see the same
    signs.
    """
    words = ()
    counts = ()
    fine = part >= 0
    least = tl.full(part.shape, float("inf"), own[0].dtype)
    for k in tl.static_range(K):
        word = tl.zeros(part.shape, tl.int32)
        count = tl.zeros(part.shape, tl.int32)
        near = tl.full(part.shape, float("inf"), own[0].dtype)
        for j in tl.static_range(M):
            if BY_ROW:
                rest = (lines[k * M + j] - own[k]) - fixed[j]
            else:
                rest = (lines[k * M + j] - fixed[j]) - own[k]
            kept = rest > 0
            count += kept.to(tl.int32)
            word = word | (kept.to(tl.int32) << j)
            near = tl.minimum(near, tl.abs(rest))
        good = _judge(count, own[k], N, AT_MOST)
        if PADDED:
            beyond = part * K + k >= M
            good = good | beyond
            near = tl.where(beyond, float("inf"), near)
        fine = fine & good
        least = tl.minimum(least, near)
        words = words + (word,)
        counts = counts + (count,)
    return words, counts, fine, least


@triton.jit
def _magnitude(
    by_row, SPLIT: tl.constexpr, INFINITE: tl.constexpr, LIMIT: tl.constexpr, COMPUTE: tl.constexpr
):
    """Of a block: its largest score's power of two after scaling, what extreme scores are divided
    by, where it is not finite.
    """
    top = magnitude_bits(by_row[0], COMPUTE)
    for k in tl.static_range(1, len(by_row)):
        top = tl.maximum(top, magnitude_bits(by_row[k], COMPUTE))
    top = most_of(top, SPLIT)
    wrong = top >= INFINITE
    top = tl.where(wrong, 0, top)
    power = _power_of_two(top, COMPUTE)
    extreme = (power > LIMIT) | (power < 1.0 / LIMIT)
    scale = tl.where(extreme, power, 1.0)
    # A subnormal maximum is scaled too little to reach 1.
    scaled = magnitude_bits(top.to(COMPUTE, bitcast=True) * (1.0 / scale), COMPUTE)
    return tl.where(extreme, _power_of_two(scaled, COMPUTE), power), scale, wrong


@triton.jit
def _lossy(by_row, scale, SPLIT: tl.constexpr):
    """Whether scores of a block are so far apart that dividing by its scale loses some: then
    nothing is proven of it here.
    """
    changed = tl.zeros(by_row[0].shape, tl.int32)
    for k in tl.static_range(len(by_row)):
        changed = changed | ((by_row[k] * (1.0 / scale)) * scale != by_row[k]).to(tl.int32)
    return most_of(changed, SPLIT) > 0


@triton.jit
def _start(
    by_column, M: tl.constexpr, K: tl.constexpr, UPPER: tl.constexpr, LOWER: tl.constexpr,
    AT_MOST: tl.constexpr,
    NETWORK: tl.constexpr,
):  # fmt: skip
    """First duals of a lane's lines: u = 0, v half the column medians."""
    u = ()
    v = ()
    for k in tl.static_range(K):
        upper, lower = _medians(by_column, k, M, UPPER, LOWER, NETWORK)
        half = (upper + lower) * 0.25
        if AT_MOST:
            half = tl.maximum(half, 0.0)
        u = u + (tl.zeros_like(half),)
        v = v + (half,)
    return u, v


@triton.jit
def _ties(
    by_row, by_column, part, power, M: tl.constexpr, K: tl.constexpr, SPLIT: tl.constexpr,
    PADDED: tl.constexpr,
    UPPER: tl.constexpr, LOWER: tl.constexpr, NETWORK: tl.constexpr, LATTICE: tl.constexpr,
    ZEROS: tl.constexpr,
    COARSE: tl.constexpr,
):  # fmt: skip
    """First offset of a block, whether every entry is shifted by it or zeros alone, and whether a
    line has equal medians.

    See nmsolve.solvers.ties.flag_ties.
    """
    equal = tl.zeros(part.shape, tl.int32)
    zero = tl.zeros(part.shape, tl.int32)
    for k in tl.static_range(K):
        upper, lower = _medians(by_column, k, M, UPPER, LOWER, NETWORK)
        tied = upper == lower
        if PADDED:
            tied = tied & (part * K + k < M)
        equal += (tied & (upper != 0)).to(tl.int32)
        zero += (tied & (upper == 0)).to(tl.int32)
        upper, lower = _medians(by_row, k, M, UPPER, LOWER, NETWORK)
        equal += ((upper == lower) & (upper != 0)).to(tl.int32)
    equal = total_of(equal, SPLIT)
    zero = total_of(zero, SPLIT)
    coarse = part >= 0
    for j in tl.static_range(M):
        steps = by_row[j] * (COARSE / power)
        coarse = coarse & (steps == tl.floor(steps))
    coarse = least_of((coarse | (part > 0)).to(tl.int32), SPLIT) > 0
    everywhere = (equal >= max(3, M // 2)) | ((equal > 0) & coarse)
    amount = tl.where(everywhere, power * LATTICE, tl.where(zero > 0, power * ZEROS, 0.0))
    return amount, everywhere, equal > 0


@triton.jit
def _shifted(
    lines, delta, amount, everywhere, part, once, ACROSS: tl.constexpr, ALONG: tl.constexpr,
    M: tl.constexpr, K: tl.constexpr,
    PADDED: tl.constexpr,
):  # fmt: skip
    """A lane's lines with the offsets that separate ties; delta (M M,), whose lines lie ACROSS
    apart, entries ALONG.
    """
    pointers = ()
    masks = ()
    for k in tl.static_range(K):
        here = part >= 0
        if PADDED:
            here = part * K + k < M
        for j in tl.static_range(M):
            pointers = pointers + (delta + ((part * K + k) * ACROSS + j * ALONG),)
            masks = masks + (here,)
    steps = read(pointers, masks, once, 0.0)
    scores = ()
    for k in tl.static_range(K * M):
        scores = scores + (
            lines[k] + tl.where(everywhere | (lines[k] == 0), steps[k] * amount, 0.0),
        )
    return scores


@triton.jit
def _rounds(
    by_row, by_column, u, v, rounds, level, OMEGA: tl.constexpr, M: tl.constexpr, K: tl.constexpr,
    SPLIT: tl.constexpr,
    UPPER: tl.constexpr, LOWER: tl.constexpr, AT_MOST: tl.constexpr, NETWORK: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCKS: tl.constexpr,
):  # fmt: skip
    """Rounds of the ascent; the very first is not over-relaxed."""
    for step in range(rounds):
        by = tl.where(level + step == 0, tl.full((), 1.0, COMPUTE), tl.full((), OMEGA, COMPUTE))
        u = _half_step(
            by_row, u, shared(v, M, K, SPLIT, BLOCKS), by, M, K, UPPER, LOWER, AT_MOST, NETWORK
        )
        v = _half_step(
            by_column, v, shared(u, M, K, SPLIT, BLOCKS), by, M, K, UPPER, LOWER, AT_MOST, NETWORK
        )
    return u, v


@triton.jit
def _masks(
    by_row, by_column, u, v, part, N: tl.constexpr, M: tl.constexpr, K: tl.constexpr,
    SPLIT: tl.constexpr,
    PADDED: tl.constexpr, AT_MOST: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """`_signs` of a lane's rows and columns, and of a block: whether its mask is feasible, and its
    least |S − u − v|.
    """
    words, row_counts, fine_rows, near = _signs(
        by_row, u, shared(v, M, K, SPLIT, BLOCKS), part, True, N, M, K, PADDED, AT_MOST
    )
    column_words, column_counts, fine_columns, _near = _signs(
        by_column, v, shared(u, M, K, SPLIT, BLOCKS), part, False, N, M, K, PADDED, AT_MOST
    )
    fine = least_of((fine_rows & fine_columns).to(tl.int32), SPLIT) > 0
    return words, row_counts, column_words, column_counts, fine, least_of(near, SPLIT)


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
    """The first level on all blocks, as plain.ascend_first: what signs beyond doubt prove, at a gap
    of 0.

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
    _power, scale, wrong = _magnitude(by_row, SPLIT, INFINITE, LIMIT, COMPUTE)
    lost = _lossy(by_row, scale, SPLIT)
    by_row = times(by_row, 1.0 / scale)
    by_column = times(by_column, 1.0 / scale)
    u, v = _start(by_column, M, K, UPPER, LOWER, AT_MOST, NETWORK)
    u, v = _rounds(
        by_row,
        by_column,
        u,
        v,
        rounds,
        0,
        OMEGA,
        M,
        K,
        SPLIT,
        UPPER,
        LOWER,
        AT_MOST,
        NETWORK,
        COMPUTE,
        BLOCKS,
    )
    words, _row_counts, _columns, _column_counts, fine, near = _masks(
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
    """All levels on the `count` blocks at `place`, one after the other, as plain.ascend_rest.

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
    power, scale, _wrong = _magnitude(by_row, SPLIT, INFINITE, LIMIT, COMPUTE)
    inverse = 1.0 / scale
    lost = _lossy(by_row, scale, SPLIT)
    by_row = times(by_row, inverse)
    by_column = times(by_column, inverse)
    u, v = _start(by_column, M, K, UPPER, LOWER, AT_MOST, NETWORK)
    amount, everywhere, equal = _ties(
        by_row,
        by_column,
        part,
        power,
        M,
        K,
        SPLIT,
        PADDED,
        UPPER,
        LOWER,
        NETWORK,
        LATTICE,
        ZEROS,
        COARSE,
    )
    objective = tl.zeros((BLOCKS, 1), tl.float64)
    gap = tl.zeros((BLOCKS, 1), tl.float64)
    level_of = tl.zeros((BLOCKS, 1), tl.int32)
    for level in range(LEVELS):
        if any_of(left):
            # Scores are read anew where they are needed: to keep them beside the shifted ones would
            # take twice the registers.
            by_row, by_column = load_block(
                X, words_of_X, origin, row, col, rows, cols, row_stride, col_stride, part, left,
                once,
                M, K, SPLIT, PADDED, PACK, ELEMENT, EDGES, ABSOLUTE, COMPUTE,
            )  # fmt: skip
            by_row = _shifted(
                times(by_row, inverse), delta, amount, everywhere, part, once, M, 1, M, K, PADDED
            )
            if SPLIT == 1:
                by_column = turned(by_row, M)
            else:
                by_column = _shifted(
                    times(by_column, inverse),
                    delta,
                    amount,
                    everywhere,
                    part,
                    once,
                    1,
                    M,
                    M,
                    K,
                    PADDED,
                )
            rounds = ROUNDS[0]
            for k in tl.static_range(1, LEVELS):
                rounds = tl.where(level == k, ROUNDS[k], rounds)
            u, v = _rounds(
                by_row,
                by_column,
                u,
                v,
                rounds,
                level,
                OMEGA,
                M,
                K,
                SPLIT,
                UPPER,
                LOWER,
                AT_MOST,
                NETWORK,
                COMPUTE,
                BLOCKS,
            )
            words, row_counts, column_words, column_counts, fine, _near = _masks(
                by_row, by_column, u, v, part, N, M, K, SPLIT, PADDED, AT_MOST, BLOCKS
            )
            store_mask(
                mask,
                block_row,
                across,
                blocks_per_row,
                words,
                part,
                left,
                once,
                M,
                K,
                PADDED,
                WIDTH,
            )
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
                        U,
                        V,
                        u,
                        v,
                        block,
                        tl.cast(total, tl.int64),
                        part,
                        proven,
                        once,
                        M,
                        K,
                        PADDED,
                    )
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
