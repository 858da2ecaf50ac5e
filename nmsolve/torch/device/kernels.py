"""Triton kernels for groups and for 4 × 4 blocks: one of them per lane, masks written at once.
They compute what `torch_engine` computes.

Tuples hold one value per entry, so selection networks and sums are straight-line code in registers.
"""

# mypy: ignore-errors

# Triton's language is a subset, without unpacking into tuples; its constants are upper case.
# ruff: noqa: RUF005, SIM300
import triton
import triton.language as tl


@triton.jit
def wide(batch_stride, row_stride, col_stride):
    """Strides as 64-bit numbers: a few times one of them may be beyond 32 bits."""
    return (
        tl.cast(batch_stride, tl.int64),
        tl.cast(row_stride, tl.int64),
        tl.cast(col_stride, tl.int64),
    )


@triton.jit
def load(X, place, inside, ABSOLUTE: tl.constexpr, COMPUTE: tl.constexpr):
    score = tl.load(X + place, mask=inside, other=0.0).to(COMPUTE)
    if ABSOLUTE:
        score = tl.abs(score)
    return score


@triton.jit
def _load_four(X, place, inside, ABSOLUTE: tl.constexpr, ELEMENT: tl.constexpr):
    """Four 16-bit scores of a row from one 64-bit word of it."""
    word = tl.load(X + place, mask=inside, other=0)
    values = ()
    for k in tl.static_range(4):
        score = (word >> (16 * k)).to(tl.int16).to(ELEMENT, bitcast=True).to(tl.float32)
        if ABSOLUTE:
            score = tl.abs(score)
        values = values + (score,)
    return values


@triton.jit
def magnitude_bits(score, COMPUTE: tl.constexpr):
    """|score| as an integer that orders like it, with infinity and NaN above all numbers."""
    if COMPUTE == tl.float64:
        bits = score.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF
    else:
        bits = score.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return bits


@triton.jit
def _store_totals(sums, objective, bound, largest, INFINITE: tl.constexpr):
    """Of a program's row of sums (programs, 4): objective, bound, 1 if a score is not finite.
    Returns where the fourth goes.
    """
    row = sums + 4 * tl.program_id(0)
    tl.store(row, tl.sum(objective, 0))
    tl.store(row + 1, tl.sum(bound, 0))
    top = tl.max(largest, 0)
    tl.store(row + 2, (top >= INFINITE).to(tl.float64))
    return row + 3


@triton.jit
def select(places, NETWORK: tl.constexpr):
    """Run a selection network on a tuple of values."""
    for k in tl.static_range(len(NETWORK)):
        high = tl.maximum(places[NETWORK[k][0]], places[NETWORK[k][1]])
        low = tl.minimum(places[NETWORK[k][0]], places[NETWORK[k][1]])
        places = (
            places[: NETWORK[k][0]]
            + (high,)
            + places[NETWORK[k][0] + 1 : NETWORK[k][1]]
            + (low,)
            + places[NETWORK[k][1] + 1 :]
        )
    return places


@triton.jit
def _ordered(score, ABSOLUTE: tl.constexpr):
    """A 16-bit float, widened, as an int32 that orders like it, its five lowest bits 0."""
    bits = (score + 0.0).to(tl.int32, bitcast=True)  # −0 is 0
    if not ABSOLUTE:
        bits = (bits ^ ((bits >> 31) & 0x7FFFFFFF)) & -32
    return bits


@triton.jit
def _from_ordered(order, ABSOLUTE: tl.constexpr):
    """The inverse of `_ordered`, whatever the five lowest bits are."""
    bits = order & -32
    if not ABSOLUTE:
        bits = (bits ^ ((bits >> 31) & 0x7FFFFFFF)) & -32
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def keep_groups(
    X, mask, thresholds, sums, total, blocks_per_row, rows_a_batch, cols, batch_stride, row_stride,
    col_stride,
    N: tl.constexpr, M: tl.constexpr, AT_MOST: tl.constexpr, ABSOLUTE: tl.constexpr,
    NETWORK: tl.constexpr,
    FLAT: tl.constexpr, ELEMENT: tl.constexpr, WORDS: tl.constexpr, COLLECT: tl.constexpr,
    INFINITE: tl.constexpr,
    COMPUTE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Row-wise n:m, one group a lane. FLAT: groups lie one after the other; WORDS: mask is int32,
    four entries a word.

    ELEMENT: None, or the 16-bit float that X stores. Such scores are compared as integers whose
    lowest bits count down along the group, so that no two are equal and the lowest index wins. If X
    is int64, a word of it is four of them.
    """
    batch_stride, row_stride, col_stride = wide(batch_stride, row_stride, col_stride)
    group = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = group < total
    largest = magnitude_bits(tl.zeros((BLOCK,), COMPUTE), COMPUTE)
    values = ()
    if X.dtype.element_ty == tl.int64:
        for j in tl.static_range(M // 4):
            values = values + _load_four(
                X, group.to(tl.int64) * (M // 4) + j, inside, ABSOLUTE, ELEMENT
            )
    else:
        for j in tl.static_range(M):
            if FLAT:
                score = load(X, group.to(tl.int64) * M + j, inside, ABSOLUTE, COMPUTE)
            else:
                row = group // blocks_per_row
                col = (group - row * blocks_per_row).to(tl.int64) * M + j
                batch = row // rows_a_batch
                place = (
                    batch.to(tl.int64) * batch_stride
                    + (row - batch * rows_a_batch).to(tl.int64) * row_stride
                )
                score = load(X, place + col * col_stride, inside & (col < cols), ABSOLUTE, COMPUTE)
            values = values + (score,)
    for j in tl.static_range(M):
        largest = tl.maximum(largest, magnitude_bits(values[j], COMPUTE))
    if ELEMENT is None:
        threshold = select(values, NETWORK)[N - 1]
        room = tl.full((BLOCK,), N, tl.int32)
        for j in tl.static_range(M):
            room -= (values[j] > threshold).to(tl.int32)
    else:
        keys = ()
        for j in tl.static_range(M):
            keys = keys + (_ordered(values[j], ABSOLUTE) | (31 - j),)
        least = select(keys, NETWORK)[N - 1]
        threshold = _from_ordered(least, ABSOLUTE)

    kept_sum = tl.zeros((BLOCK,), tl.float64)
    word = tl.zeros((BLOCK,), tl.int32)
    for j in tl.static_range(M):
        if ELEMENT is None:
            tied = values[j] == threshold
            kept = (values[j] > threshold) | (tied & (room > 0))
            room -= tied.to(tl.int32)
        else:
            kept = keys[j] >= least
        if AT_MOST:
            kept = kept & (values[j] > 0)
        kept_sum += tl.where(kept, values[j], 0.0).to(tl.float64)
        if WORDS:
            word = word | (kept.to(tl.int32) << (8 * (j % 4)))
            if j % 4 == 3:
                tl.store(mask + group.to(tl.int64) * (M // 4) + j // 4, word, mask=inside)
                word = tl.zeros((BLOCK,), tl.int32)
        else:
            tl.store(mask + group.to(tl.int64) * M + j, kept.to(tl.int8), mask=inside)
    if COLLECT:
        tl.store(thresholds + group, threshold, mask=inside)
    kept_sum = tl.where(inside, kept_sum, 0.0)
    tl.store(_store_totals(sums, kept_sum, kept_sum, largest, INFINITE), 0.0)


@triton.jit
def _best_pair(upper, lower, PAIRS: tl.constexpr, BEGIN: tl.constexpr, END: tl.constexpr):
    """Value and code of the best of the pairs (above, below, code) BEGIN … END − 1."""
    value = upper[PAIRS[BEGIN][0]] + lower[PAIRS[BEGIN][1]]
    code = tl.full(value.shape, PAIRS[BEGIN][2], tl.int32)
    for k in tl.static_range(BEGIN + 1, END):
        rival = upper[PAIRS[k][0]] + lower[PAIRS[k][1]]
        code = tl.where(rival > value, PAIRS[k][2], code)
        value = tl.maximum(rival, value)
    return value, code


@triton.jit
def _lost(a, b, total):
    """The part that rounding took from total = a + b, exactly (Knuth, The Art of Computer
    Programming, vol. 2, 4.2.2, Theorem B).
    """
    second = total - a
    return (a - (total - second)) + (b - second)


@triton.jit
def _kept_of_row(scores, bits, i: tl.constexpr, N: tl.constexpr):
    """The sum of a row's N kept scores, added from left to right as its pattern's was, and what
    rounding took from it.
    """
    first = scores[4 * i + 3 - N + 1]
    for j in tl.static_range(3 - N, -1, -1):
        first = tl.where((bits >> j) & 1 == 1, scores[4 * i + j], first)
    lost = tl.zeros_like(first)
    total = first
    if N == 3:
        middle = tl.where(bits & 3 == 3, scores[4 * i + 1], scores[4 * i + 2])
        total = first + middle
        lost = _lost(first, middle, total)
    if N > 1:
        last = scores[4 * i + N - 1]
        for j in tl.static_range(N, 4):
            last = tl.where((bits >> j) & 1 == 1, scores[4 * i + j], last)
        before = total
        total = before + last
        lost += _lost(before, last, total)
    return total, lost


@triton.jit
def _lost_of_block(scores, code, N: tl.constexpr):
    """The part that roundings took from the value of a mask of a 4 × 4 block: its sum of rows,
    halves and both, as they were added.

    And the least row that is not zero, as an integer that orders like it, less 1: without a sign 0
    is the largest.
    """
    first, lost = _kept_of_row(scores, code, 0, N)
    second, more = _kept_of_row(scores, code >> 4, 1, N)
    high = first + second
    lost += more + _lost(first, second, high)
    least = tl.minimum(_below(first), _below(second))
    first, more = _kept_of_row(scores, code >> 8, 2, N)
    lost += more
    second, more = _kept_of_row(scores, code >> 12, 3, N)
    low = first + second
    lost += more + _lost(first, second, low)
    least = tl.minimum(least, tl.minimum(_below(first), _below(second)))
    return lost + _lost(high, low, high + low), least


@triton.jit
def _below(score):
    """The bits of a score ≥ 0, less 1, as an integer without sign."""
    if score.dtype == tl.float64:
        bits = (score.to(tl.int64, bitcast=True) - 1).to(tl.uint64, bitcast=True)
    else:
        bits = (score.to(tl.int32, bitcast=True) - 1).to(tl.uint32, bitcast=True)
    return bits


@triton.jit
def enumerate_blocks(
    X, mask, OPEN, sums, total, blocks_per_row, blocks_a_batch, rows, cols, batch_stride,
    row_stride,
    col_stride,
    PATTERNS: tl.constexpr, PAIRS: tl.constexpr, FIRST: tl.constexpr, EDGES: tl.constexpr,
    NARROW: tl.constexpr,
    AGAIN: tl.constexpr, INFINITE: tl.constexpr, HUGE: tl.constexpr, APART: tl.constexpr,
    ABSOLUTE: tl.constexpr,
    ELEMENT: tl.constexpr, COMPUTE: tl.constexpr, TILES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Transposable n:4, one block a lane, as a two-stage maximum. mask is int32, a row of a block
    in a word.

    Part 2 c of PAIRS are those of class c in the upper rows, part 2 c + 1 in the lower; FIRST says
    where parts begin. EDGES: X ends inside blocks. NARROW: a block row has fewer than BLOCK blocks.
    AGAIN: blocks of huge scores, whose sums would overflow, are scaled first, and those that are
    apart are marked in OPEN (total,) int8 and not added up. If X is int64, a word of it is four
    ELEMENTs.
    """
    batch_stride, row_stride, col_stride = wide(batch_stride, row_stride, col_stride)
    kept_sum = tl.zeros((BLOCK,), tl.float64)
    best_sum = tl.zeros((BLOCK,), tl.float64)
    largest = magnitude_bits(tl.zeros((BLOCK,), COMPUTE), COMPUTE)
    again = tl.zeros((BLOCK,), tl.int32)
    block = tl.program_id(0) * TILES * BLOCK + tl.arange(0, BLOCK)
    block_row = block // blocks_per_row
    across = block - block_row * blocks_per_row
    batch = block_row // blocks_a_batch
    down = block_row - batch * blocks_a_batch
    for _ in range(TILES):
        inside = block < total
        row = down * 4
        col = across.to(tl.int64) * 4
        origin = batch.to(tl.int64) * batch_stride + row.to(tl.int64) * row_stride
        grid = ()
        for i in tl.static_range(4):
            if X.dtype.element_ty == tl.int64:
                grid = grid + _load_four(
                    X, origin + i * row_stride + col // 4, inside, ABSOLUTE, ELEMENT
                )
            else:
                for j in tl.static_range(4):
                    here = inside
                    if EDGES:
                        here = inside & (row + i < rows) & (col + j < cols)
                    place = origin + i * row_stride + (col + j) * col_stride
                    grid = grid + (load(X, place, here, ABSOLUTE, COMPUTE),)
        top = magnitude_bits(grid[0], COMPUTE)
        for k in tl.static_range(1, 16):
            top = tl.maximum(top, magnitude_bits(grid[k], COMPUTE))
        largest = tl.maximum(largest, top)
        scores = grid
        if AGAIN:
            scores = ()
            for k in tl.static_range(16):
                scores = scores + (grid[k] * tl.where(top > HUGE, 0.00390625, 1.0).to(COMPUTE),)

        lines = ()
        for i in tl.static_range(4):
            line = ()
            for p in tl.static_range(len(PATTERNS)):
                value = scores[4 * i + PATTERNS[p][0]]
                for k in tl.static_range(1, len(PATTERNS[p])):
                    value += scores[4 * i + PATTERNS[p][k]]
                line = line + (value,)
            lines = lines + (line,)
        best, code = _best_pair(lines[0], lines[1], PAIRS, FIRST[0], FIRST[1])
        low, low_code = _best_pair(lines[2], lines[3], PAIRS, FIRST[1], FIRST[2])
        best += low
        code = code | low_code
        for c in tl.static_range(1, len(FIRST) // 2):
            high, high_code = _best_pair(lines[0], lines[1], PAIRS, FIRST[2 * c], FIRST[2 * c + 1])
            low, low_code = _best_pair(
                lines[2], lines[3], PAIRS, FIRST[2 * c + 1], FIRST[2 * c + 2]
            )
            code = tl.where(high + low > best, high_code | low_code, code)
            best = tl.maximum(high + low, best)

        # A mask's value and what its additions lost are the sum of its scores: two conversions to
        # float64 in place of sixteen.
        value = best.to(tl.float64)
        lost, least = _lost_of_block(scores, code, len(PATTERNS[0]))
        lost = lost.to(tl.float64)
        if COMPUTE == tl.float64:
            power = (top & 0x7FF0000000000000).to(tl.float64, bitcast=True)
        else:
            power = (top & 0x7F800000).to(tl.float32, bitcast=True)
        if AGAIN:
            power = power * tl.where(top > HUGE, 0.00390625, 1.0).to(COMPUTE)
        apart = least < _below(power * APART)
        again = again | (apart | (top > HUGE)).to(tl.int32)
        if AGAIN:
            back = tl.where(top > HUGE, 256.0, 1.0).to(tl.float64)
            value = tl.where(apart, 0.0, value * back)
            lost = tl.where(apart, 0.0, lost * back)
            tl.store(OPEN + block, apart.to(tl.int8), mask=inside)
        best_sum += value
        kept_sum += value + lost
        for i in tl.static_range(4):
            nibble = (code >> (4 * i)) & 15
            word = (nibble | (nibble << 7) | (nibble << 14) | (nibble << 21)) & 0x01010101
            tl.store(
                mask + (block_row * 4 + i).to(tl.int64) * blocks_per_row + across, word, mask=inside
            )
        block += BLOCK
        if NARROW:
            block_row = block // blocks_per_row
            across = block - block_row * blocks_per_row
            batch = block_row // blocks_a_batch
            down = block_row - batch * blocks_a_batch
        else:  # at most one block row further, which spares the divisions
            over = across + BLOCK >= blocks_per_row
            across += tl.where(over, BLOCK - blocks_per_row, BLOCK)
            block_row += over.to(tl.int32)
            down += over.to(tl.int32)
            over = down == blocks_a_batch
            down = tl.where(over, 0, down)
            batch += over.to(tl.int32)
    tl.store(
        _store_totals(sums, kept_sum, best_sum, largest, INFINITE), tl.max(again, 0).to(tl.float64)
    )
