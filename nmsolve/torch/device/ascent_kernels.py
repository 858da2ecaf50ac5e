"""Triton kernels of the dual ascent: blocks side by side, one a lane; see `ascent`. What they compute, `plain` computes.

Loops over lines are real loops whose entries are unrolled, so that selection networks live in registers while code stays
small; duals and scores of a block pass through the cache. Barriers separate half-steps: what one thread of a program stores another
may load.
"""

# mypy: ignore-errors
# ruff: noqa: RUF005  (Triton's language does not unpack into tuples)
import triton
import triton.language as tl

from nmsolve.torch.device.kernels import load, select


@triton.jit
def stage(
    X, S, total, a_row, blocks_a_batch, rows, cols, batch_stride, row_stride, col_stride,
    M: tl.constexpr, ABSOLUTE: tl.constexpr, COMPUTE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Blocks of X side by side: entry (i, j) of block b to S[(i M + j) total + b]."""
    block = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = block < total
    block_row = block // a_row
    batch = block_row // blocks_a_batch
    row = (block_row - batch * blocks_a_batch) * M
    col = (block - block_row * a_row) * M
    origin = batch.to(tl.int64) * batch_stride + row.to(tl.int64) * row_stride
    stride = tl.cast(total, tl.int64)
    for i in range(M):
        for j in tl.static_range(M):
            here = inside & (row + i < rows) & (col + j < cols)
            place = origin + tl.cast(i, tl.int64) * row_stride + (col + j).to(tl.int64) * col_stride
            tl.store(S + (i * M + j) * stride + block, load(X, place, here, ABSOLUTE, COMPUTE).to(S.dtype.element_ty), mask=inside)


@triton.jit
def write_masks(words, mask, total, a_row, units, M: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Words (M, total) to bytes: a lane writes WIDTH (4 or 1) entries of a row of mask (rows, a_row M) at once."""
    unit = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = unit < units
    a_line = a_row * (M // WIDTH)
    row = unit // a_line
    part = unit - row * a_line
    block = (row // M) * a_row + part // (M // WIDTH)
    first = (part % (M // WIDTH)) * WIDTH
    word = tl.load(words + (row % M) * tl.cast(total, tl.int64) + block, mask=inside, other=0)
    bits = (word >> first.to(word.dtype)).to(tl.int32)
    if WIDTH == 4:
        bits = bits & 15
        tl.store(mask + unit, (bits | (bits << 7) | (bits << 14) | (bits << 21)) & 0x01010101, mask=inside)
    else:
        tl.store(mask + unit, (bits & 1).to(tl.int8), mask=inside)


@triton.jit
def _line(source, first, ALONG: tl.constexpr, block, inside, stride, M: tl.constexpr, COMPUTE: tl.constexpr):
    """Entries first, first + ALONG, … of every block: a tuple of M."""
    values = ()
    for k in tl.static_range(M):
        values = values + (tl.load(source + (first + k * ALONG) * stride + block, mask=inside, other=0.0).to(COMPUTE),)
    return values


@triton.jit
def start(
    S, v, equal, zero, total, M: tl.constexpr, UPPER: tl.constexpr, LOWER: tl.constexpr, AT_MOST: tl.constexpr,
    NETWORK: tl.constexpr, COMPUTE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """v = half the column medians, and the number of lines whose medians are equal: not zero, and (columns) zero."""
    block = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = block < total
    stride = tl.cast(total, tl.int64)
    ties = tl.zeros((BLOCK,), tl.int32)
    zeros = tl.zeros((BLOCK,), tl.int32)
    for j in range(M):
        line = select(_line(S, j, M, block, inside, stride, M, COMPUTE), NETWORK)
        ties += ((line[UPPER] == line[LOWER]) & (line[UPPER] != 0)).to(tl.int32)
        zeros += ((line[UPPER] == line[LOWER]) & (line[UPPER] == 0)).to(tl.int32)
        half = (line[UPPER] + line[LOWER]) * 0.25
        if AT_MOST:
            half = tl.maximum(half, 0.0)
        tl.store(v + j * stride + block, half, mask=inside)
    for i in range(M):
        line = select(_line(S, i * M, 1, block, inside, stride, M, COMPUTE), NETWORK)
        ties += ((line[UPPER] == line[LOWER]) & (line[UPPER] != 0)).to(tl.int32)
    tl.store(equal + block, ties, mask=inside)
    tl.store(zero + block, zeros, mask=inside)


@triton.jit
def _half_step(
    A, mine, other, block, inside, stride, omega, ACROSS: tl.constexpr, ALONG: tl.constexpr, M: tl.constexpr,
    UPPER: tl.constexpr, LOWER: tl.constexpr, AT_MOST: tl.constexpr, NETWORK: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Move every dual of `mine` to, and beyond, the midpoint that is least for the bound. Lines lie ACROSS apart, entries ALONG."""
    fixed = _line(other, 0, 1, block, inside, stride, M, COMPUTE)
    for i in range(M):
        line = _line(A, i * ACROSS, ALONG, block, inside, stride, M, COMPUTE)
        rest = ()
        for k in tl.static_range(M):
            rest = rest + (line[k] - fixed[k],)
        rest = select(rest, NETWORK)
        old = tl.load(mine + i * stride + block, mask=inside, other=0.0)
        new = old + ((rest[UPPER] + rest[LOWER]) * 0.5 - old) * omega
        if AT_MOST:
            new = tl.maximum(new, 0.0)
        tl.store(mine + i * stride + block, new, mask=inside)
    tl.debug_barrier()


@triton.jit
def _judge(count, dual, N: tl.constexpr, AT_MOST: tl.constexpr):
    """Where a line keeps n, or at most: fewer at the dual 0."""
    fine = count == N
    if AT_MOST:
        fine = fine | ((count < N) & (dual == 0))
    return fine


@triton.jit
def _ascend(
    A, u, v, words, block, inside, stride, rounds, first_step, omega,
    N: tl.constexpr, M: tl.constexpr, UPPER: tl.constexpr, LOWER: tl.constexpr, AT_MOST: tl.constexpr,
    NETWORK: tl.constexpr, COMPUTE: tl.constexpr, WORD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rounds of the dual ascent; then the masks A − u − v > 0 as words, one a row. Returns which blocks they are feasible for."""
    for step in range(rounds):
        by = tl.where(step == 0, first_step, omega).to(COMPUTE)
        _half_step(A, u, v, block, inside, stride, by, M, 1, M, UPPER, LOWER, AT_MOST, NETWORK, COMPUTE)
        _half_step(A, v, u, block, inside, stride, by, 1, M, M, UPPER, LOWER, AT_MOST, NETWORK, COMPUTE)

    fine = inside
    columns = _line(v, 0, 1, block, inside, stride, M, COMPUTE)
    for i in range(M):
        line = _line(A, i * M, 1, block, inside, stride, M, COMPUTE)
        own = tl.load(u + i * stride + block, mask=inside, other=0.0)
        word = tl.zeros((BLOCK,), WORD)
        count = tl.zeros((BLOCK,), tl.int32)
        for k in tl.static_range(M):
            kept = (line[k] - own) - columns[k] > 0
            count += kept.to(tl.int32)
            word = word | (kept.to(WORD) << k)
        tl.store(words + i * stride + block, word, mask=inside)
        fine = fine & _judge(count, own, N, AT_MOST)
    rows = _line(u, 0, 1, block, inside, stride, M, COMPUTE)
    for j in range(M):
        line = _line(A, j, M, block, inside, stride, M, COMPUTE)
        own = tl.load(v + j * stride + block, mask=inside, other=0.0)
        count = tl.zeros((BLOCK,), tl.int32)
        for k in tl.static_range(M):
            count += ((line[k] - rows[k]) - own > 0).to(tl.int32)
        fine = fine & _judge(count, own, N, AT_MOST)
    tl.debug_barrier()
    return fine


@triton.jit
def ascend(
    A, u, v, words, good, total, rounds, first_step, omega,
    N: tl.constexpr, M: tl.constexpr, UPPER: tl.constexpr, LOWER: tl.constexpr, AT_MOST: tl.constexpr,
    NETWORK: tl.constexpr, COMPUTE: tl.constexpr, WORD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`_ascend` on every block."""
    block = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = block < total
    fine = _ascend(
        A, u, v, words, block, inside, tl.cast(total, tl.int64), rounds, first_step, omega,
        N, M, UPPER, LOWER, AT_MOST, NETWORK, COMPUTE, WORD, BLOCK,
    )  # fmt: skip
    tl.store(good + block, fine.to(tl.int8), mask=inside)


@triton.jit
def _count_row(words, i, block, inside, stride, M: tl.constexpr, BLOCK: tl.constexpr):
    word = tl.load(words + i * stride + block, mask=inside, other=0)
    count = tl.zeros((BLOCK,), tl.int32)
    for k in tl.static_range(M):
        count += ((word >> k) & 1).to(tl.int32)
    return count


@triton.jit
def _count_column(words, j, block, inside, stride, M: tl.constexpr, BLOCK: tl.constexpr):
    count = tl.zeros((BLOCK,), tl.int32)
    for k in tl.static_range(M):
        word = tl.load(words + k * stride + block, mask=inside, other=0)
        count += ((word >> j) & 1).to(tl.int32)
    return count


@triton.jit
def _relax_row(S, words, ru, rw, i, block, inside, stride, M: tl.constexpr, COMPUTE: tl.constexpr):
    """u_i = min(u_i, min over kept j of w_j + S_ij)."""
    best = tl.load(ru + i * stride + block, mask=inside, other=0.0)
    word = tl.load(words + i * stride + block, mask=inside, other=0)
    for k in tl.static_range(M):
        score = tl.load(S + (i * M + k) * stride + block, mask=inside, other=0.0).to(COMPUTE)
        column = tl.load(rw + k * stride + block, mask=inside, other=0.0)
        best = tl.minimum(best, tl.where((word >> k) & 1 == 1, column + score, float("inf")))
    tl.store(ru + i * stride + block, best, mask=inside)


@triton.jit
def _relax_column(S, words, ru, rw, j, block, inside, stride, M: tl.constexpr, COMPUTE: tl.constexpr):
    """w_j = min(w_j, min over pruned i of u_i − S_ij)."""
    best = tl.load(rw + j * stride + block, mask=inside, other=0.0)
    for k in tl.static_range(M):
        word = tl.load(words + k * stride + block, mask=inside, other=0)
        score = tl.load(S + (k * M + j) * stride + block, mask=inside, other=0.0).to(COMPUTE)
        row = tl.load(ru + k * stride + block, mask=inside, other=0.0)
        best = tl.minimum(best, tl.where((word >> j) & 1 == 1, float("inf"), row - score))
    tl.store(rw + j * stride + block, best, mask=inside)


@triton.jit
def _relax(
    S, words, u, v, ru, rw, few, power, block, inside, stride, sweeps, grain,
    N: tl.constexpr, M: tl.constexpr, AT_MOST: tl.constexpr, COMPUTE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Bellman–Ford relaxations; see plain.relax. ru, rw (M, total), few (2 M, total) are scratch."""
    if tl.max(inside.to(tl.int32), 0) > 0:
        z = tl.zeros((BLOCK,), COMPUTE)
        shift = tl.load(power + block, mask=inside, other=0.0) * tl.cast(grain, COMPUTE)
        for i in range(M):
            row = tl.load(u + i * stride + block, mask=inside, other=0.0)
            column = tl.load(v + i * stride + block, mask=inside, other=0.0)
            tl.store(ru + i * stride + block, row + shift - shift, mask=inside)
            tl.store(rw + i * stride + block, shift - (column + shift), mask=inside)
            if AT_MOST:
                lacks = _count_row(words, i, block, inside, stride, M, BLOCK) < N
                tl.store(few + i * stride + block, lacks.to(tl.int8), mask=inside)
                lacks = _count_column(words, i, block, inside, stride, M, BLOCK) < N
                tl.store(few + (M + i) * stride + block, lacks.to(tl.int8), mask=inside)
        tl.debug_barrier()
        for _ in range(sweeps):
            if AT_MOST:
                for i in range(M):
                    z = tl.minimum(z, tl.load(ru + i * stride + block, mask=inside, other=0.0))
                    lacks = tl.load(few + (M + i) * stride + block, mask=inside, other=0) != 0
                    column = tl.load(rw + i * stride + block, mask=inside, other=0.0)
                    z = tl.minimum(z, tl.where(lacks, column, float("inf")))
                tl.debug_barrier()
                for i in range(M):
                    column = tl.load(rw + i * stride + block, mask=inside, other=0.0)
                    tl.store(rw + i * stride + block, tl.minimum(column, z), mask=inside)
                    row = tl.load(ru + i * stride + block, mask=inside, other=0.0)
                    lacks = tl.load(few + i * stride + block, mask=inside, other=0) != 0
                    tl.store(ru + i * stride + block, tl.where(lacks, tl.minimum(row, z), row), mask=inside)
                tl.debug_barrier()
            for i in range(M):
                _relax_row(S, words, ru, rw, i, block, inside, stride, M, COMPUTE)
            tl.debug_barrier()
            for i in range(M):
                _relax_column(S, words, ru, rw, i, block, inside, stride, M, COMPUTE)
            tl.debug_barrier()
        for i in range(M):
            row = tl.load(ru + i * stride + block, mask=inside, other=0.0)
            column = tl.load(rw + i * stride + block, mask=inside, other=0.0)
            if AT_MOST:
                row = tl.maximum(row - z, 0.0)
                column = tl.minimum(column - z, 0.0)
            tl.store(u + i * stride + block, row, mask=inside)
            tl.store(v + i * stride + block, -column, mask=inside)
        tl.debug_barrier()


@triton.jit
def relax(
    S, words, u, v, ru, rw, few, chosen, power, total, sweeps, grain,
    N: tl.constexpr, M: tl.constexpr, AT_MOST: tl.constexpr, COMPUTE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`_relax` on the chosen blocks."""
    block = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = (block < total) & (tl.load(chosen + block, mask=block < total, other=0) != 0)
    stride = tl.cast(total, tl.int64)
    _relax(S, words, u, v, ru, rw, few, power, block, inside, stride, sweeps, grain, N, M, AT_MOST, COMPUTE, BLOCK)


@triton.jit
def _certify(
    S, words, u, v, block, inside, stride, rounding, N: tl.constexpr, M: tl.constexpr, AT_MOST: tl.constexpr, BLOCK: tl.constexpr
):
    """Kept score, its magnitude, bound − objective and its rounding of every block, in float64."""
    value = tl.zeros((BLOCK,), tl.float64)
    magnitude = tl.zeros((BLOCK,), tl.float64)
    loose = tl.zeros((BLOCK,), tl.float64)
    lost = tl.zeros((BLOCK,), tl.float64)
    for i in range(M):
        own = tl.load(u + i * stride + block, mask=inside, other=0.0).to(tl.float64)
        word = tl.load(words + i * stride + block, mask=inside, other=0)
        for k in tl.static_range(M):
            score = tl.load(S + (i * M + k) * stride + block, mask=inside, other=0.0).to(tl.float64)
            column = tl.load(v + k * stride + block, mask=inside, other=0.0).to(tl.float64)
            kept = (word >> k) & 1 == 1
            rest = score - own - column
            loose += tl.maximum(tl.where(kept, -rest, rest), 0.0)
            value += tl.where(kept, score, 0.0)
            magnitude += tl.where(kept, tl.abs(score), 0.0)
        column = tl.load(v + i * stride + block, mask=inside, other=0.0).to(tl.float64)
        lost += tl.abs(column)
        if AT_MOST:
            loose += own * (N - _count_row(words, i, block, inside, stride, M, BLOCK)).to(tl.float64)
            loose += column * (N - _count_column(words, i, block, inside, stride, M, BLOCK)).to(tl.float64)
    return value, magnitude, loose, lost * rounding * M


@triton.jit
def certify(
    S, words, u, v, objective, size, gap, slack, total, rounding,
    N: tl.constexpr, M: tl.constexpr, AT_MOST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`_certify` on every block."""
    block = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = block < total
    value, magnitude, loose, lost = _certify(
        S, words, u, v, block, inside, tl.cast(total, tl.int64), rounding, N, M, AT_MOST, BLOCK
    )
    tl.store(objective + block, value, mask=inside)
    tl.store(size + block, magnitude, mask=inside)
    tl.store(gap + block, loose, mask=inside)
    tl.store(slack + block, lost, mask=inside)


@triton.jit
def climb(
    S, A, delta, u, v, ru, rw, few, words, amount, power, level_of, objective, gap, total, rounds, sweeps, omega, grain,
    rounding, tolerance,
    N: tl.constexpr, M: tl.constexpr, UPPER: tl.constexpr, LOWER: tl.constexpr, AT_MOST: tl.constexpr, NETWORK: tl.constexpr,
    COMPUTE: tl.constexpr, WORD: tl.constexpr, LEVELS: tl.constexpr, SHRINK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Levels of the ascent one after the other, for so few blocks that launching the steps would take longer than they do.

    Every entry is shifted by its delta (M M,) times the block's amount. level_of becomes the level (from 1 on) that proved a
    block, 0 if none did. rounds (LEVELS,) int32. A (M M, total) is scratch, and so are those of `_relax`.
    """
    block = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    left = block < total
    stride = tl.cast(total, tl.int64)
    tl.store(level_of + block, tl.zeros((BLOCK,), tl.int32), mask=left)
    tl.debug_barrier()
    for level in range(LEVELS):
        if tl.max(left.to(tl.int32), 0) > 0:
            strength = tl.load(amount + block, mask=left, other=0.0)
            for k in range(M * M):
                score = tl.load(S + k * stride + block, mask=left, other=0.0).to(COMPUTE)
                tl.store(A + k * stride + block, score + tl.load(delta + k) * strength, mask=left)
            tl.debug_barrier()
            fine = _ascend(
                A, u, v, words, block, left, stride, tl.load(rounds + level), omega, omega,
                N, M, UPPER, LOWER, AT_MOST, NETWORK, COMPUTE, WORD, BLOCK,
            )  # fmt: skip
            _relax(S, words, u, v, ru, rw, few, power, block, left & fine, stride, sweeps, grain, N, M, AT_MOST, COMPUTE, BLOCK)
            value, magnitude, loose, lost = _certify(S, words, u, v, block, left, stride, rounding, N, M, AT_MOST, BLOCK)
            closed = left & fine & (loose + lost <= magnitude * tolerance)
            tl.store(objective + block, value, mask=closed)
            tl.store(gap + block, loose, mask=closed)
            tl.store(level_of + block, tl.zeros((BLOCK,), tl.int32) + level + 1, mask=closed)
            tl.store(amount + block, tl.where(fine, strength / SHRINK, strength), mask=left)
            tl.debug_barrier()
            left = left & ~closed
