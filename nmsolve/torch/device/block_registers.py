"""Blocks in registers: reading scores, writing masks and duals, and the exchange between lanes that
share a block.

SPLIT lanes share a block. Each holds K = ⌈m / SPLIT⌉ rows and as many columns of it, so that either
half-step of the ascent finds its lines in its own registers, and only duals pass between lanes
(`shared`). With SPLIT = 1 the columns are the rows' registers in another order. Values of a lane
are tensors (BLOCKS, SPLIT), those of a block (BLOCKS, 1); tuples hold one value per entry, line by
line. The last lanes of a block own lines beyond m where SPLIT does not divide m (PADDED): scores 0,
duals anything.
"""

# mypy: ignore-errors
# ruff: noqa: RUF005  (Triton's language does not unpack into tuples)
import triton
import triton.language as tl


@triton.jit
def read(pointers, masks, once, OTHER: tl.constexpr):
    """Load what lies at pointers, where masks allow; once is 1, and the compiler must not know.

    For every access whose pointer was computed Triton's pass that coalesces walks all that the
    access is connected with, which here is the whole program, hundreds of times: minutes. A pointer
    that a loop hands on was not computed.
    """
    values = ()
    for k in tl.static_range(len(pointers)):
        values = values + (tl.full(pointers[k].shape, OTHER, pointers[k].dtype.element_ty),)
    for _ in range(once):
        values = ()
        moved = ()
        for k in tl.static_range(len(pointers)):
            values = values + (tl.load(pointers[k], mask=masks[k], other=OTHER),)
            moved = moved + (pointers[k] + once,)
        pointers = moved
    return values


@triton.jit
def write(pointers, values, masks, once):
    """Values to pointers, where masks allow; see `read`."""
    for _ in range(once):
        moved = ()
        for k in tl.static_range(len(pointers)):
            tl.store(pointers[k], values[k], mask=masks[k])
            moved = moved + (pointers[k] + once,)
        pointers = moved


@triton.jit
def _line_pointers(
    X, place, room, inside, col_stride, COUNT: tl.constexpr, PACK: tl.constexpr, EDGES: tl.constexpr
):  # fmt: skip
    """Where COUNT scores of a row of X lie from `place` on, PACK of them per word, and which
    of them are there.
    """
    pointers = ()
    masks = ()
    for w in tl.static_range(COUNT // PACK):
        here = inside
        if EDGES:
            here = inside & (w * PACK < room)
        pointers = pointers + (X + (place // PACK + w * col_stride),)
        masks = masks + (here,)
    return pointers, masks


@triton.jit
def _scores(
    loaded, PACK: tl.constexpr, ELEMENT: tl.constexpr, ABSOLUTE: tl.constexpr, COMPUTE: tl.constexpr
):
    """Scores from what was loaded: PACK ELEMENTs per 64-bit word."""
    scores = ()
    for w in tl.static_range(len(loaded)):
        for k in tl.static_range(PACK):
            if PACK == 4:
                value = (loaded[w] >> (16 * k)).to(tl.int16).to(ELEMENT, bitcast=True).to(COMPUTE)
            elif PACK == 2:
                value = (loaded[w] >> (32 * k)).to(tl.int32).to(ELEMENT, bitcast=True).to(COMPUTE)
            else:
                value = loaded[w].to(COMPUTE)
            if ABSOLUTE:
                value = tl.abs(value)
            scores = scores + (value,)
    return scores


@triton.jit
def turned(rows, M: tl.constexpr):
    """The columns of a block whose rows one lane holds."""
    columns = ()
    for j in tl.static_range(M):
        for i in tl.static_range(M):
            columns = columns + (rows[i * M + j],)
    return columns


@triton.jit
def load_block(
    X, words, origin, row, col, rows, cols, row_stride, col_stride, part, inside, once,
    M: tl.constexpr, K: tl.constexpr,
    SPLIT: tl.constexpr, PADDED: tl.constexpr, PACK: tl.constexpr, ELEMENT: tl.constexpr,
    EDGES: tl.constexpr,
    ABSOLUTE: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """A lane's rows and columns of its block, K M scores each. origin: where the block begins in X,
    at row, col.

    words: the same memory in words of PACK scores, contiguous.
    """
    source = X
    step = col_stride
    if PACK > 1:
        source = words
        step = 1
    pointers = ()
    masks = ()
    for k in tl.static_range(K):
        i = part * K + k
        here = inside
        if PADDED:
            here = here & (i < M)
        if EDGES:
            here = here & (row + i < rows)
        place = origin + i * row_stride
        more, where = _line_pointers(source, place, cols - col, here, step, M, PACK, EDGES)
        pointers = pointers + more
        masks = masks + where
    by_row = _scores(read(pointers, masks, once, 0), PACK, ELEMENT, ABSOLUTE, COMPUTE)
    if SPLIT == 1:
        by_column = turned(by_row, M)
    else:
        FEW: tl.constexpr = PACK if K % PACK == 0 else 1
        source = X
        step = col_stride
        if FEW > 1:
            source = words
            step = 1
        pointers = ()
        masks = ()
        for i in tl.static_range(M):
            j = part * K
            here = inside
            room = M - j  # lines beyond m, and what lies beyond the matrix
            if EDGES:
                here = here & (row + i < rows)
                room = tl.minimum(room, cols - col - j)
            place = origin + i * row_stride + j * col_stride
            more, where = _line_pointers(source, place, room, here, step, K, FEW, EDGES or PADDED)
            pointers = pointers + more
            masks = masks + where
        lines = _scores(read(pointers, masks, once, 0), FEW, ELEMENT, ABSOLUTE, COMPUTE)
        by_column = ()
        for k in tl.static_range(K):
            for i in tl.static_range(M):
                by_column = by_column + (lines[i * K + k],)
    return by_row, by_column


@triton.jit
def times(values, factor):
    scaled = ()
    for k in tl.static_range(len(values)):
        scaled = scaled + (values[k] * factor,)
    return scaled


@triton.jit
def store_mask(
    mask, block_row, batch_col, blocks_per_row, words, part, inside, once, M: tl.constexpr,
    K: tl.constexpr,
    PADDED: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """A lane's rows of the mask as bytes, WIDTH of them (8, 4 or 1) per store. mask: (rows,
    blocks_per_row M) of such units.
    """
    pointers = ()
    values = ()
    masks = ()
    for k in tl.static_range(K):
        i = part * K + k
        here = inside
        if PADDED:
            here = here & (i < M)
        unit = ((block_row * M + i).to(tl.int64) * blocks_per_row + batch_col) * (M // WIDTH)
        for q in tl.static_range(M // WIDTH):
            bits = words[k] >> (q * WIDTH)
            value = (bits & 1).to(tl.int8)
            if WIDTH > 1:
                low = bits & 15
                value = (low | (low << 7) | (low << 14) | (low << 21)) & 0x01010101
            if WIDTH == 8:
                high = (bits >> 4) & 15
                high = (high | (high << 7) | (high << 14) | (high << 21)) & 0x01010101
                value = value.to(tl.int64) | (high.to(tl.int64) << 32)
            pointers = pointers + (mask + (unit + q),)
            values = values + (value,)
            masks = masks + (here,)
    write(pointers, values, masks, once)


@triton.jit
def store_duals(
    U,
    V,
    u,
    v,
    block,
    stride,
    part,
    inside,
    once,
    M: tl.constexpr,
    K: tl.constexpr,
    PADDED: tl.constexpr,
):
    """A lane's duals to U, V (m, total)."""
    pointers = ()
    values = ()
    masks = ()
    for k in tl.static_range(K):
        i = part * K + k
        here = inside & (part >= 0)
        if PADDED:
            here = here & (i < M)
        pointers = pointers + (U + (i * stride + block), V + (i * stride + block))
        values = values + (u[k], v[k])
        masks = masks + (here, here)
    write(pointers, values, masks, once)


@triton.jit
def place_of(
    block, blocks_per_row, blocks_a_batch, batch_stride, row_stride, col_stride, M: tl.constexpr
):  # fmt: skip
    """Of a block: its block row, batches below each other, its number there, row and column in its
    batch, and where X has it.
    """
    block_row = block // blocks_per_row
    across = block - block_row * blocks_per_row
    batch = block_row // blocks_a_batch
    row = (block_row - batch * blocks_a_batch) * M
    col = across.to(tl.int64) * M
    origin = batch * batch_stride + row * row_stride + col * col_stride
    return block_row, across, row, col, origin


@triton.jit
def shared(own, M: tl.constexpr, K: tl.constexpr, SPLIT: tl.constexpr, BLOCKS: tl.constexpr):
    """The M values of which every lane of a block holds K, to all of them."""
    if SPLIT == 1:
        values = own
    else:
        values = ()
        for i in tl.static_range(M):
            values = values + (
                tl.gather(own[i % K], tl.full((BLOCKS, SPLIT), i // K, tl.int32), 1),
            )
    return values


@triton.jit
def total_of(value, SPLIT: tl.constexpr):
    """The sum over the lanes of a block."""
    if SPLIT > 1:
        value = tl.expand_dims(tl.sum(value, 1), 1)
    return value


@triton.jit
def least_of(value, SPLIT: tl.constexpr):
    if SPLIT > 1:
        value = tl.expand_dims(tl.min(value, 1), 1)
    return value


@triton.jit
def most_of(value, SPLIT: tl.constexpr):
    if SPLIT > 1:
        value = tl.expand_dims(tl.max(value, 1), 1)
    return value


@triton.jit
def any_of(flags):
    """Return whether a flag of the program is set: a branch that all of its lanes take or none."""
    return tl.max(tl.max(flags.to(tl.int32), 1), 0) > 0


@triton.jit
def sum_of(value):
    """Over a program's blocks."""
    return tl.sum(tl.sum(value, 1), 0)
