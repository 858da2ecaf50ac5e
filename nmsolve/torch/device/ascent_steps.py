"""Triton: the steps of the dual ascent on blocks in registers (`block_registers`)."""

# mypy: ignore-errors

# Triton's language is a subset, without unpacking into tuples; its constants are upper case.
# ruff: noqa: RUF005, SIM300
import triton
import triton.language as tl

from nmsolve.torch.device.block_registers import (
    least_of,
    most_of,
    read,
    shared,
    total_of,
)
from nmsolve.torch.device.kernels import (
    magnitude_bits,
    select,
)


@triton.jit
def power_of_two(bits, COMPUTE: tl.constexpr):
    """The largest power of two no larger than the magnitude of these bits; the least normal one of
    subnormals, 1 of 0.
    """
    if COMPUTE == tl.float64:
        power = tl.maximum((bits & 0x7FF0000000000000).to(tl.float64, bitcast=True), 2.0**-1022)
    else:
        power = tl.maximum((bits & 0x7F800000).to(tl.float32, bitcast=True), 2.0**-126)
    return tl.where(bits == 0, 1.0, power)


@triton.jit
def medians(
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
def half_step(
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
def judge(count, dual, N: tl.constexpr, AT_MOST: tl.constexpr):
    """Where a line keeps n, or at most: fewer at the dual 0."""
    fine = count == N
    if AT_MOST:
        fine = fine | ((count < N) & (dual == 0))
    return fine


@triton.jit
def signs(
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
        good = judge(count, own[k], N, AT_MOST)
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
def magnitude(
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
    power = power_of_two(top, COMPUTE)
    extreme = (power > LIMIT) | (power < 1.0 / LIMIT)
    scale = tl.where(extreme, power, 1.0)
    # A subnormal maximum is scaled too little to reach 1.
    scaled = magnitude_bits(top.to(COMPUTE, bitcast=True) * (1.0 / scale), COMPUTE)
    return tl.where(extreme, power_of_two(scaled, COMPUTE), power), scale, wrong


@triton.jit
def lossy(by_row, scale, SPLIT: tl.constexpr):
    """Return whether scores of a block are so far apart that dividing by its scale loses some: then
    nothing is proven of it here.
    """
    changed = tl.zeros(by_row[0].shape, tl.int32)
    for k in tl.static_range(len(by_row)):
        changed = changed | ((by_row[k] * (1.0 / scale)) * scale != by_row[k]).to(tl.int32)
    return most_of(changed, SPLIT) > 0


@triton.jit
def start(
    by_column, M: tl.constexpr, K: tl.constexpr, UPPER: tl.constexpr, LOWER: tl.constexpr,
    AT_MOST: tl.constexpr,
    NETWORK: tl.constexpr,
):  # fmt: skip
    """First duals of a lane's lines: u = 0, v half the column medians."""
    u = ()
    v = ()
    for k in tl.static_range(K):
        upper, lower = medians(by_column, k, M, UPPER, LOWER, NETWORK)
        half = (upper + lower) * 0.25
        if AT_MOST:
            half = tl.maximum(half, 0.0)
        u = u + (tl.zeros_like(half),)
        v = v + (half,)
    return u, v


@triton.jit
def find_ties(
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
        upper, lower = medians(by_column, k, M, UPPER, LOWER, NETWORK)
        tied = upper == lower
        if PADDED:
            tied = tied & (part * K + k < M)
        equal += (tied & (upper != 0)).to(tl.int32)
        zero += (tied & (upper == 0)).to(tl.int32)
        upper, lower = medians(by_row, k, M, UPPER, LOWER, NETWORK)
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
def shifted(
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
def run_rounds(
    by_row, by_column, u, v, rounds, level, OMEGA: tl.constexpr, M: tl.constexpr, K: tl.constexpr,
    SPLIT: tl.constexpr,
    UPPER: tl.constexpr, LOWER: tl.constexpr, AT_MOST: tl.constexpr, NETWORK: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCKS: tl.constexpr,
):  # fmt: skip
    """Rounds of the ascent; the very first is not over-relaxed."""
    for step in range(rounds):
        by = tl.where(level + step == 0, tl.full((), 1.0, COMPUTE), tl.full((), OMEGA, COMPUTE))
        u = half_step(
            by_row, u, shared(v, M, K, SPLIT, BLOCKS), by, M, K, UPPER, LOWER, AT_MOST, NETWORK
        )
        v = half_step(
            by_column, v, shared(u, M, K, SPLIT, BLOCKS), by, M, K, UPPER, LOWER, AT_MOST, NETWORK
        )
    return u, v


@triton.jit
def signed_masks(
    by_row, by_column, u, v, part, N: tl.constexpr, M: tl.constexpr, K: tl.constexpr,
    SPLIT: tl.constexpr,
    PADDED: tl.constexpr, AT_MOST: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """`signs` of a lane's rows and columns, and of a block: whether its mask is feasible, and its
    least |S − u − v|.
    """
    words, row_counts, fine_rows, near = signs(
        by_row, u, shared(v, M, K, SPLIT, BLOCKS), part, True, N, M, K, PADDED, AT_MOST
    )
    column_words, column_counts, fine_columns, _near = signs(
        by_column, v, shared(u, M, K, SPLIT, BLOCKS), part, False, N, M, K, PADDED, AT_MOST
    )
    fine = least_of((fine_rows & fine_columns).to(tl.int32), SPLIT) > 0
    return words, row_counts, column_words, column_counts, fine, least_of(near, SPLIT)
