"""The proofs of a block in registers: duals by Bellman–Ford relaxations, and certificates in
float64.
"""

# mypy: ignore-errors
# ruff: noqa: RUF005  (Triton's language does not unpack into tuples)
import triton
import triton.language as tl

from nmsolve.torch.device.block_registers import least_of, most_of, shared, total_of


@triton.jit
def relax(
    rows, columns, u, v, words, turned, row_counts, column_counts, power, part, sweeps, grain,
    N: tl.constexpr, M: tl.constexpr, K: tl.constexpr, SPLIT: tl.constexpr, PADDED: tl.constexpr,
    AT_MOST: tl.constexpr,
    BLOCKS: tl.constexpr,
):  # fmt: skip
    """Bellman–Ford relaxations from u and w = −v; see torch_engine.relax.

    words, turned: the mask by rows and by columns.
    """
    shift = power * grain
    z = tl.zeros_like(power)
    ru = ()
    rw = ()
    for k in tl.static_range(K):
        ru = ru + (u[k] + shift - shift,)
        rw = rw + (shift - (v[k] + shift),)
    for _ in range(sweeps):
        if AT_MOST:
            low = tl.full(part.shape, float("inf"), power.dtype)
            for k in tl.static_range(K):
                reach = tl.minimum(ru[k], tl.where(column_counts[k] < N, rw[k], float("inf")))
                if PADDED:
                    reach = tl.where(part * K + k < M, reach, float("inf"))
                low = tl.minimum(low, reach)
            z = tl.minimum(z, least_of(low, SPLIT))
            capped_u = ()
            capped_w = ()
            for k in tl.static_range(K):
                capped_w = capped_w + (tl.minimum(rw[k], z),)
                capped_u = capped_u + (tl.where(row_counts[k] < N, tl.minimum(ru[k], z), ru[k]),)
            ru = capped_u
            rw = capped_w
        other = shared(rw, M, K, SPLIT, BLOCKS)
        relaxed = ()
        for k in tl.static_range(K):
            best = ru[k]
            for j in tl.static_range(M):
                best = tl.minimum(
                    best,
                    tl.where((words[k] >> j) & 1 == 1, other[j] + rows[k * M + j], float("inf")),
                )
            relaxed = relaxed + (best,)
        ru = relaxed
        other = shared(ru, M, K, SPLIT, BLOCKS)
        relaxed = ()
        for k in tl.static_range(K):
            best = rw[k]
            for i in tl.static_range(M):
                best = tl.minimum(
                    best,
                    tl.where(
                        (turned[k] >> i) & 1 == 1, float("inf"), other[i] - columns[k * M + i]
                    ),
                )
            relaxed = relaxed + (best,)
        rw = relaxed
    new_u = ()
    new_v = ()
    for k in tl.static_range(K):
        if AT_MOST:
            new_u = new_u + (tl.maximum(ru[k] - z, 0.0),)
            new_v = new_v + (tl.maximum(z - rw[k], 0.0),)
        else:
            new_u = new_u + (ru[k],)
            new_v = new_v + (-rw[k],)
    return new_u, new_v


@triton.jit
def kept_sum(rows, words, M: tl.constexpr, K: tl.constexpr, SPLIT: tl.constexpr):
    """The kept scores of a block, summed in float64."""
    value = tl.zeros(words[0].shape, tl.float64)
    for k in tl.static_range(K):
        for j in tl.static_range(M):
            value += tl.where((words[k] >> j) & 1 == 1, rows[k * M + j], 0.0).to(tl.float64)
    return total_of(value, SPLIT)


@triton.jit
def certify(
    rows, u, v, words, row_counts, column_counts, power, part, rounding, tolerance,
    APART: tl.constexpr, TIGHT: tl.constexpr,
    N: tl.constexpr, M: tl.constexpr, K: tl.constexpr, SPLIT: tl.constexpr, PADDED: tl.constexpr,
    AT_MOST: tl.constexpr,
    BLOCKS: tl.constexpr,
):  # fmt: skip
    """Kept score and bound − objective of a block in float64, and whether that, and what rounding
    may hide, is within tolerance.

    Of the magnitude kept, or of the least score that is not zero if that is more; within TIGHT if
    the block is apart (nmsolve.solvers.APART).
    """
    limit = power.to(tl.float64) * APART
    apart = tl.zeros(words[0].shape, tl.int32)
    value = tl.zeros(words[0].shape, tl.float64)
    magnitude = tl.zeros(words[0].shape, tl.float64)
    loose = tl.zeros(words[0].shape, tl.float64)
    lost = tl.zeros(words[0].shape, tl.float64)
    least = tl.full(words[0].shape, float("inf"), tl.float64)
    columns = shared(v, M, K, SPLIT, BLOCKS)
    for k in tl.static_range(K):
        own = u[k].to(tl.float64)
        amiss = tl.zeros(words[0].shape, tl.float64)
        in_row = tl.zeros(words[0].shape, tl.float64)
        for j in tl.static_range(M):
            score = rows[k * M + j].to(tl.float64)
            kept = (words[k] >> j) & 1 == 1
            rest = score - own - columns[j].to(tl.float64)
            amiss += tl.maximum(tl.where(kept, -rest, rest), 0.0)
            value += tl.where(kept, score, 0.0)
            size = tl.abs(score)
            in_row += tl.where(kept, size, 0.0)
            least = tl.minimum(least, tl.where(size > 0, size, float("inf")))
        magnitude += in_row
        apart = apart | ((in_row > 0) & (in_row < limit)).to(tl.int32)
        other = v[k].to(tl.float64)
        size = tl.abs(other)
        if AT_MOST:
            amiss += own * (N - row_counts[k]).to(tl.float64)
            amiss += other * (N - column_counts[k]).to(tl.float64)
        if PADDED:  # duals of lines that are not there are anything
            amiss = tl.where(part * K + k < M, amiss, 0.0)
            size = tl.where(part * K + k < M, size, 0.0)
        loose += amiss
        lost += size
    loose = total_of(loose, SPLIT)
    slack = loose + total_of(lost, SPLIT) * rounding * M
    most = tl.maximum(total_of(magnitude, SPLIT), least_of(least, SPLIT))
    proven = (slack <= tolerance * most) & ((most_of(apart, SPLIT) == 0) | (slack <= TIGHT * most))
    return total_of(value, SPLIT), loose, proven
