"""Score families, patterns and the plain checks that several test files use. Shares nothing with
nmsolve but its dtype name.
"""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st

import nmsolve
from reference import flow, loops


def rare(*texts):
    """Cases that show nothing which the others do not, and cost kernels of their own."""
    return tuple(pytest.param(text, marks=pytest.mark.long) for text in texts)


RARE_SMALL = rare("1:2T", "2:3T", "3:4T", "3:6T", "1:8T")
RARE_MIDDLE = rare("5:12T", "<=8:16T")
RARE_LARGE = rare("10:20T", "16:32T")
WHOLE = ("1:1T", "3:3T", "<=3:3T", "<=8:8T")
#: Groups in every network that selects them: of 1, of n from m − n on, of m that is no power of
#: two, of more than 16.
ROWWISE = ("1:1", "1:4", "2:4", "3:4", "<=2:4", "3:5", "4:8", "<=4:8", "<=7:20", "32:64")
RARE_ROWWISE = rare("1:2", "2:3", "4:4", "8:16")
HALF = ("2:4", "4:8", "<=4:8", "1:4T", "2:4T", "4:8T")

seeds = st.integers(0, 2**32 - 1)


def parse(text):
    return nmsolve.Pattern.parse(text)


def _normal(dtype):
    return lambda rng, shape: rng.standard_normal(shape).astype(dtype)


def _integers(low, high, dtype):
    return lambda rng, shape: rng.integers(low, high, shape, endpoint=True).astype(dtype)


def _zeros(share):
    return lambda rng, shape: np.where(
        rng.random(shape) < share, 0, rng.standard_normal(shape)
    ).astype(np.float32)


def _constant(rng, shape):
    return np.full(shape, np.float32(rng.choice([0.1, 1.0, 3.0])))


def _rank_one(rng, shape):
    return (
        rng.standard_normal((*shape[:-1], 1)) * rng.standard_normal((shape[0], 1, shape[2]))
    ).astype(np.float32)


def _column_scaled(rng, shape):
    return (
        rng.standard_normal(shape) * np.exp(3 * rng.standard_normal((shape[0], 1, shape[2])))
    ).astype(np.float32)


def _scaled(factor, dtype):
    return lambda rng, shape: (rng.standard_normal(shape) * factor).astype(dtype)


def _int8(rng, shape):
    return rng.choice(np.array([-128, -127, -1, 0, 1, 64, 127], np.int8), shape)


def _bf16_rounded(rng, shape):
    return rng.standard_normal(shape).astype(ml_dtypes.bfloat16).astype(np.float32)


def _bf16_bits(rng, shape):
    return (
        rng.standard_normal(shape).astype(ml_dtypes.bfloat16).view(np.uint16).view(nmsolve.bfloat16)
    )


def _heavy_tail(rng, shape):
    return rng.standard_t(2, shape).astype(np.float32)


def _denormal32(rng, shape):
    return (rng.integers(-7, 7, shape, endpoint=True) * np.float64(2.0**-149)).astype(np.float32)


def _denormal64(rng, shape):
    return rng.integers(-7, 7, shape, endpoint=True) * 5e-324


def _nearly_equal(rng, shape):
    return (1 + 2.0**-23 * rng.integers(0, 4, shape)).astype(np.float32)


def _nearly_equal64(rng, shape):
    return 1 + 2.0**-52 * rng.integers(0, 4, shape)


def _magnitudes(rng, shape):
    return (rng.standard_normal(shape) * 10.0 ** rng.uniform(-30, 30, (shape[0], 1, 1))).astype(
        np.float32
    )


def _one_large(rng, shape):
    W = rng.standard_normal(shape)
    W[:, 0, 0] = 1e9
    return W.astype(np.float32)


#: name → (rng, (blocks, rows, cols)) → blocks
FAMILIES = {
    "normal32": _normal(np.float32),
    "normal64": _normal(np.float64),
    "integers": _integers(0, 7, np.float32),
    "signed_integers": _integers(-7, 7, np.float64),
    "binary": _integers(0, 1, np.float32),
    "int8": _int8,
    "int32": _integers(-(10**6), 10**6, np.int32),
    "uint8": _integers(0, 255, np.uint8),
    "int64_ties": _integers(-2, 2, np.int64),
    "zeros60": _zeros(0.60),
    "zeros95": _zeros(0.95),
    "constant": _constant,
    "all_zero": lambda rng, shape: np.zeros(shape, np.float32),
    "rank_one": _rank_one,
    "column_scaled": _column_scaled,
    "large32": _scaled(1e20, np.float32),
    "small32": _scaled(1e-20, np.float32),
    "denormal32": _denormal32,
    "tiny32": _scaled(1e-42, np.float32),
    "large64": _scaled(1e300, np.float64),
    "small64": _scaled(1e-300, np.float64),
    "denormal64": _denormal64,
    "heavy_tail": _heavy_tail,
    "bf16_rounded": _bf16_rounded,
    "nearly_equal32": _nearly_equal,
    "nearly_equal64": _nearly_equal64,
    "magnitudes": _magnitudes,
    "one_large": _one_large,
}
#: Stored in 16 bits, which some solvers read with kernels of their own.
HALF_FAMILIES = {
    "float16": _normal(np.float16),
    "bfloat16": _normal(ml_dtypes.bfloat16),
    "bfloat16_bits": _bf16_bits,
    "float16_integers": _integers(-3, 3, np.float16),
}
NARROW = tuple(
    name
    for name in FAMILIES
    if FAMILIES[name](np.random.default_rng(0), (1, 2, 2)).dtype == np.float32
)
family_names = st.sampled_from(sorted(FAMILIES))


def draw(name, seed, shape):
    """Blocks (blocks, rows, cols) of a family."""
    return {**FAMILIES, **HALF_FAMILIES}[name](np.random.default_rng(seed), shape)


def matrix(blocks, blocks_per_row):
    """Blocks (blocks, rows, m) side by side, `blocks_per_row` of them in a row: one matrix."""
    count, rows, m = blocks.shape
    return np.ascontiguousarray(
        blocks.reshape(count // blocks_per_row, blocks_per_row, rows, m).swapaxes(1, 2)
    ).reshape(count // blocks_per_row * rows, blocks_per_row * m)


def split(array, rows, m):
    """The blocks (blocks, rows, m) of a matrix or a batch of matrices, in order."""
    array = np.asarray(array).reshape(-1, array.shape[-1])
    high, wide = array.shape[0] // rows, array.shape[1] // m
    return array.reshape(high, rows, wide, m).swapaxes(1, 2).reshape(-1, rows, m)


def as_float(array):
    """The values in float64, whatever stores them."""
    if array.dtype == nmsolve.bfloat16:
        array = array.view(ml_dtypes.bfloat16)
    return array.astype(np.float64)


def magnitude(array):
    """|weights| in float64: |−128| is 128."""
    return np.abs(as_float(array))


def tolerance(array):
    """The relative gap that the contract allows."""
    return 1e-6 if array.dtype.itemsize <= 4 and array.dtype.kind not in "iu" else 1e-12


def feasible(mask, pattern):
    """Whether a block or a group (1, m) keeps what the pattern says, counted in loops."""
    if pattern.transposable:
        return loops.block_ok(mask.tolist(), pattern.n, pattern.at_most)
    return all(loops.group_ok(row, pattern.n, pattern.at_most) for row in mask.tolist())


def best(block, pattern):
    """The optimum of one block or group (1, m), by the oracles."""
    if pattern.transposable:
        return flow.optimum(block, pattern.n, pattern.at_most)[1]
    return loops.objective(block[0], loops.select(block[0], pattern.n, pattern.at_most))


def total_of(S, mask):
    return math.fsum(S[mask].tolist())


def assert_optimal(result, S, pattern, relative):
    """Every block of the result is feasible and as good as the oracle's; the objective is the sum.
    S float64 scores. Returns the oracle's optima.
    """
    assert result.mask.shape == S.shape
    assert result.mask.dtype == np.bool_
    blocks, masks = split(S, pattern.rows, pattern.m), split(result.mask, pattern.rows, pattern.m)
    optima = [best(block, pattern) for block in blocks]
    for block, mask, optimum in zip(blocks, masks, optima, strict=True):
        assert feasible(mask, pattern)
        found = loops.objective(block, mask)
        size = max(abs(optimum), float(np.abs(block).max()))
        assert optimum - found <= relative * size, (
            f"{found!r} found, {optimum!r} is possible in {block!r}"
        )
        assert found - optimum <= 1e-15 * float(np.abs(block).sum())
    assert abs(result.objective - total_of(S, result.mask)) <= 1e-13 * float(np.abs(S).sum())
    return optima


def block_bounds(S, duals, pattern):
    """The bound that duals prove for every block, from the formula, in loops."""
    m = pattern.m
    if not pattern.transposable:
        assert duals.columns is None
        assert duals.rows.shape == (*S.shape[:-1], S.shape[-1] // m)
        return [
            loops.group_bound(g[0], u, pattern.n)
            for g, u in zip(split(S, 1, m), duals.rows.ravel(), strict=True)
        ]
    assert duals.rows.shape == (*S.shape[:-1], S.shape[-1] // m)
    assert duals.columns.shape == (*S.shape[:-2], S.shape[-2] // m, S.shape[-1])
    if pattern.at_most:
        assert (duals.rows >= 0).all()
        assert (duals.columns >= 0).all()
    rows, columns = split(duals.rows, m, 1)[..., 0], split(duals.columns, 1, m)[:, 0]
    return [
        loops.dual_bound(b, u, v, pattern.n)
        for b, u, v in zip(split(S, m, m), rows, columns, strict=True)
    ]


def assert_certified(result, S, pattern, relative, optima):
    """The duals of every block bound the oracle's optimum, and come as near to what is kept as the
    contract says; the bound is their sum. S float64 scores.
    """
    bounds = block_bounds(S, result.duals, pattern)
    blocks, masks = split(S, pattern.rows, pattern.m), split(result.mask, pattern.rows, pattern.m)
    # Duals are doubles: among denormal scores their own rounding is the limit.
    tiny = 5e-324 * pattern.m * (pattern.n + pattern.m)
    for block, mask, bound, optimum in zip(blocks, masks, bounds, optima, strict=True):
        assert bound >= optimum - 1e-13 * float(np.abs(block).sum()), "weak duality"
        slack = relative * max(abs(optimum), float(np.abs(block).max())) + tiny
        assert bound - loops.objective(block, mask) <= slack, "strong duality"
    assert abs(result.bound - math.fsum(bounds)) <= 1e-12 * float(np.abs(S).sum())
    assert result.bound >= result.objective
    assert result.status is nmsolve.Status.OPTIMAL
    assert result.gap >= 0
    if (S >= 0).all():
        assert result.bound - result.objective <= relative * result.bound + len(bounds) * tiny
