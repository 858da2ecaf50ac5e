"""What must not change a mask or an objective, and how objectives of related problems compare."""

import math
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings

import nmsolve
from tests.core.families import (
    FAMILIES,
    NARROW,
    as_float,
    draw,
    family_names,
    magnitude,
    matrix,
    parse,
    seeds,
    tolerance,
)
from tests.kernels import SMALL

SHARED = ("2:4T", "<=2:4T", "2:5T", "4:8T", "<=4:8T", "2:4", "<=4:8")
BLOCKS = ("2:4T", "<=2:4T", "2:5T", "4:8T", "<=4:8T")
TIES = (
    "normal32",
    "integers",
    "zeros60",
    "int8",
    "constant",
    "all_zero",
    "nearly_equal32",
    "binary",
)


def blocks_of(text, name, seed, high=2, wide=18):
    pattern = parse(text)
    return matrix(draw(name, seed, (high * wide, pattern.m, pattern.m)), wide)


def close(a, b, relative):
    return abs(a - b) <= relative * max(abs(a), abs(b))


def same(a, b):
    return np.array_equal(a.mask, b.mask) and a.objective == b.objective


@pytest.mark.parametrize("text", BLOCKS)
@given(name=family_names, seed=seeds)
def test_transpose(text, name, seed):
    W = blocks_of(text, name, seed)
    assert close(nmsolve.solve(W.T, text).objective, nmsolve.solve(W, text).objective, tolerance(W))


@pytest.mark.parametrize("text", BLOCKS)
@settings(max_examples=10)
@given(seed=seeds)
def test_transpose_of_integers_is_exact(text, seed):
    W = blocks_of(text, "integers", seed)
    assert nmsolve.solve(W.T, text).objective == nmsolve.solve(W, text).objective


@pytest.mark.parametrize("text", SHARED)
@given(name=family_names, seed=seeds)
def test_row_and_column_permutation_of_blocks(text, name, seed):
    m, rng = parse(text).m, np.random.default_rng(seed)
    W = blocks_of(text, name, seed)
    by_row = W[np.concatenate([start + rng.permutation(m) for start in range(0, W.shape[0], m)])]
    by_column = W[
        :, np.concatenate([start + rng.permutation(m) for start in range(0, W.shape[1], m)])
    ]
    objective = nmsolve.solve(W, text).objective
    assert close(nmsolve.solve(by_row, text).objective, objective, tolerance(W))
    assert close(nmsolve.solve(by_column, text).objective, objective, tolerance(W))


@pytest.mark.parametrize("text", SHARED)
@given(name=family_names, seed=seeds)
def test_signs_do_not_matter(text, name, seed):
    W = as_float(blocks_of(text, name, seed))
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], W.shape)
    assert same(nmsolve.solve(W * signs, text), nmsolve.solve(W, text))


@pytest.mark.parametrize("text", SHARED)
@given(seed=seeds)
def test_positive_scaling(text, seed):
    name = ("normal32", "integers", "zeros60", "column_scaled")[seed % 4]
    W = blocks_of(text, name, seed)
    objective = nmsolve.solve(W, text).objective
    for exponent in (-90, -60, -3, 1, 17, 60, 90):
        scaled = np.ldexp(W, exponent)
        assert close(nmsolve.solve(scaled, text).objective, math.ldexp(objective, exponent), 1e-6)
    for exponent in (-900, -500, 500, 900):
        scaled = np.ldexp(W.astype(np.float64), exponent)
        assert close(nmsolve.solve(scaled, text).objective, math.ldexp(objective, exponent), 1e-6)
    factor = float(np.exp(np.random.default_rng(seed).normal(0, 5)))
    assert close(
        nmsolve.solve(W.astype(np.float64) * factor, text).objective, objective * factor, 1e-6
    )


@pytest.mark.parametrize(
    "name", ["normal32", "normal64", "integers", "zeros60", "rank_one", "constant"]
)
@settings(max_examples=4)
@given(seed=seeds)
def test_monotone_in_n(name, seed):
    for texts in (
        ("1:4T", "2:4T"),
        ("4:8T", "8:8T"),
        ("1:4", "2:4", "3:4", "4:4"),
        ("<=2:4", "<=3:4"),
    ):
        m = parse(texts[0]).m
        W = matrix(draw(name, seed, (17, m, m)), 17)
        objectives = [nmsolve.solve(W, text).objective for text in texts]
        assert all(a <= b * (1 + 1e-6) for a, b in pairwise(objectives))


@pytest.mark.parametrize("text", ["2:4T", "4:8T", "2:4"])
@given(name=family_names, seed=seeds)
def test_at_most_is_at_least_exactly(text, name, seed):
    W = blocks_of(text, name, seed)
    exactly, fewer = nmsolve.solve(W, text), nmsolve.solve(W, text, at_most=True)
    assert str(fewer.pattern) == "<=" + text
    assert fewer.objective >= exactly.objective * (1 - tolerance(W))
    S = as_float(W)
    exactly, fewer = (
        nmsolve.solve(W, text, scores=S),
        nmsolve.solve(W, text, scores=S, at_most=True),
    )
    assert fewer.objective >= exactly.objective - 1e-12 * np.abs(S).sum()


def test_at_most_is_strictly_better_somewhere():
    W = np.random.default_rng(0).standard_normal((64, 64))
    assert nmsolve.solve(W, "<=2:4T").objective > nmsolve.solve(W, "2:4T").objective
    assert nmsolve.solve(W, "<=2:4T").objective == nmsolve.solve(W, "2:4T", at_most=True).objective
    assert nmsolve.solve(W, "<=2:4T", at_most=False).objective == nmsolve.solve(W, "2:4T").objective


@pytest.mark.parametrize("method", ["exact", "greedy", "cover"])
@pytest.mark.parametrize("name", TIES)
@pytest.mark.parametrize("text", SHARED)
def test_a_mask_depends_on_its_block_alone(text, name, method):
    """Alone, in a row, in a column, among other blocks at any place: bit for bit the same mask."""
    pattern = parse(text)
    rng = np.random.default_rng(11)
    blocks = draw(name, 11, (160, pattern.m, pattern.m))
    alone = [nmsolve.solve(block, text, method=method).mask for block in blocks]
    for blocks_per_row in (1, 5, 8, 20, 160):
        order = rng.permutation(160)
        result = nmsolve.solve(matrix(blocks[order], blocks_per_row), text, method=method)
        expected = matrix(np.array([alone[k] for k in order]), blocks_per_row)
        assert np.array_equal(result.mask, expected), f"{blocks_per_row} blocks a row"
    strangers = draw("column_scaled", 5, (160, pattern.m, pattern.m)).astype(blocks.dtype)
    mixed = np.stack([blocks, strangers], axis=1).reshape(320, pattern.m, pattern.m)
    found = nmsolve.solve(matrix(mixed, 20), text, method=method).mask
    expected = nmsolve.solve(matrix(blocks, 10), text, method=method).mask
    width, m = found.shape[1], pattern.m
    picked = found.reshape(found.shape[0], width // m, m)[:, ::2].reshape(
        found.shape[0], width // 2
    )
    assert np.array_equal(picked, expected)


@pytest.mark.parametrize("method", ["exact", "greedy", "cover"])
@pytest.mark.parametrize("text", SHARED)
@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 1), (2, 1, 3), (1,)])
def test_batches_equal_loops(text, method, shape):
    m = parse(text).m
    W = np.random.default_rng(1).integers(-4, 4, (*shape, 2 * m, 3 * m)).astype(np.float32)
    result = nmsolve.solve(W, text, method=method)
    assert result.mask.shape == W.shape
    total = 0.0
    for index in np.ndindex(shape):
        alone = nmsolve.solve(W[index], text, method=method)
        assert np.array_equal(result.mask[index], alone.mask)
        total += alone.objective
    assert result.objective == total
    assert result.verify(W).ok


def strided(W):
    """The same values in other memory layouts."""
    rows, cols = W.shape
    yield "fortran", np.asfortranarray(W)
    yield "transposed", np.ascontiguousarray(W.T).T
    yield "reversed rows", np.ascontiguousarray(W[::-1])[::-1]
    yield "reversed columns", np.ascontiguousarray(W[:, ::-1])[:, ::-1]
    yield "reversed both", np.ascontiguousarray(W[::-1, ::-1])[::-1, ::-1]
    wide = np.zeros((2 * rows, 3 * cols), W.dtype)
    wide[::2, 1::3] = W
    yield "every third column", wide[::2, 1::3]
    wide = np.zeros((rows + 3, cols + 5), W.dtype)
    wide[2:-1, 3:-2] = W
    yield "a window", wide[2:-1, 3:-2]
    deep = np.zeros((rows, cols, 2), W.dtype)
    deep[..., 1] = W
    yield "last axis of another", deep[..., 1]
    if W.dtype.names is None and W.dtype.isbuiltin == 1:
        yield "other byte order", W.astype(W.dtype.newbyteorder())
    shifted = np.zeros(W.nbytes + 1, np.uint8)
    unaligned = shifted[1:].view(W.dtype).reshape(W.shape)
    unaligned[...] = W
    assert W.itemsize == 1 or W.dtype.names or not unaligned.flags.aligned
    yield "unaligned", unaligned
    record = np.zeros(W.shape, [("pad", np.uint8), ("value", W.dtype)])
    record["value"] = W
    yield "a field of a packed record", record["value"]
    fixed = W.copy()
    fixed.setflags(write=False)
    yield "read-only", fixed


@pytest.mark.parametrize("method", ["exact", "greedy"])
@pytest.mark.parametrize(
    "dtype",
    [
        np.float32,
        np.float64,
        np.float16,
        ml_dtypes.bfloat16,
        nmsolve.bfloat16,
        np.int8,
        np.int32,
        np.uint16,
    ],
    ids=lambda d: "bits" if d is nmsolve.bfloat16 else np.dtype(d).name,
)
@pytest.mark.parametrize("text", ["2:4T", "<=4:8T", "4:8T", "2:4", "<=4:8"])
def test_strides(text, dtype, method):
    m = parse(text).m
    values = np.random.default_rng(2).integers(0, 90, (4 * m, 18 * m))
    if dtype is nmsolve.bfloat16:
        W = values.astype(ml_dtypes.bfloat16).view(np.uint16).view(nmsolve.bfloat16)
    else:
        W = values.astype(dtype)
    plain = nmsolve.solve(W, text, method=method)
    before = W.tobytes()
    for what, other in strided(W):
        result = nmsolve.solve(other, text, method=method)
        assert same(result, plain), what
        assert result.mask.shape == W.shape
        if what in ("reversed both", "other byte order", "unaligned", "fortran"):
            assert result.verify(other).ok, what
    assert W.tobytes() == before, "the input was written to"


@pytest.mark.parametrize("text", ["2:4T", "4:8T", "2:4"])
def test_strides_of_batches(text):
    m = parse(text).m
    W = np.random.default_rng(2).standard_normal((4, 3, 2 * m, 2 * m)).astype(np.float32)
    cube = np.zeros((3, 2 * m, 4, 2 * m), np.float32)
    cube[...] = W.transpose(1, 2, 0, 3)
    views = [
        (W[::-1], W[::-1].copy()),
        (W[:, ::2], W[:, ::2].copy()),
        (W.swapaxes(0, 1), W.swapaxes(0, 1).copy()),
        (W.swapaxes(2, 3), W.swapaxes(2, 3).copy()),
        (cube.transpose(2, 0, 1, 3), W),
        (np.broadcast_to(W[0, 0], (2, 2, 2 * m, 2 * m)), np.tile(W[0, 0], (2, 2, 1, 1))),
        (np.broadcast_to(W[0, 0, :1], (2 * m, 2 * m)), np.repeat(W[0, 0, :1], 2 * m, 0)),
        (np.broadcast_to(W[0, 0, :, :1], (2 * m, 2 * m)), np.repeat(W[0, 0, :, :1], 2 * m, 1)),
    ]
    for view, copy in views:
        assert np.array_equal(view, copy)
        result = nmsolve.solve(view, text)
        assert same(result, nmsolve.solve(copy, text))
        assert result.verify(view).ok


def test_lists_are_arrays():
    assert nmsolve.solve([[1, 2, 3, 4]], "2:4").mask.tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("name", ["normal32", "integers", "zeros60", "constant", "normal64"])
@pytest.mark.parametrize("text", SHARED)
@pytest.mark.parametrize("method", ["exact", "greedy"])
def test_threads(text, name, method):
    """Narrow and tall: many tasks of few weights."""
    m = parse(text).m
    rng = np.random.default_rng(3)
    part = draw(name, 3, (64, m, m))
    W = matrix(part[rng.integers(0, 64, 3 * 1100)], 3)
    first = nmsolve.solve(W, text, method=method, threads=1)
    for threads in (1, 2, 3, 7, None):
        other = nmsolve.solve(W, text, method=method, threads=threads)
        assert same(first, other)
        assert (first.bound, first.gap, first.status) == (other.bound, other.gap, other.status)
    if text == "2:4T" and name == "integers":
        assert nmsolve.solve(W, text, threads=3).stats["threads"] == 3


@pytest.mark.parametrize("text", SHARED)
@pytest.mark.parametrize("name", TIES)
def test_two_runs_are_the_same(text, name):
    W = blocks_of(text, name, 8)
    a, b = nmsolve.solve(W, text, duals=True), nmsolve.solve(W.copy(), text, duals=True)
    assert same(a, b)
    assert np.array_equal(a.duals.rows, b.duals.rows)


@pytest.mark.parametrize(
    ("text", "method"),
    [(text, method) for text in SHARED for method in nmsolve.methods(text) if method != "auto"],
)
@settings(max_examples=5)
@given(seed=seeds)
def test_dtypes_with_the_same_integers(text, method, seed):
    m = parse(text).m
    W = np.random.default_rng(seed).integers(0, 100, (m, 18 * m))
    objectives = {}
    for dtype in (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64):
        objectives[np.dtype(dtype).name] = nmsolve.solve(
            W.astype(dtype), text, method=method
        ).objective
    for dtype in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16):
        objectives[np.dtype(dtype).name] = nmsolve.solve(
            W.astype(dtype), text, method=method
        ).objective
    bits = W.astype(ml_dtypes.bfloat16).view(np.uint16).view(nmsolve.bfloat16)
    objectives["bits"] = nmsolve.solve(bits, text, method=method).objective
    assert len(set(objectives.values())) == 1, objectives


@pytest.mark.parametrize("text", SHARED)
@given(seed=seeds)
def test_dtypes_with_the_same_fractions(text, seed):
    m = parse(text).m
    narrow = np.random.default_rng(seed).standard_normal((m, 18 * m)).astype(ml_dtypes.bfloat16)
    exact = nmsolve.solve(narrow.astype(np.float64), text).objective
    assert exact > 0
    half = narrow.astype(np.float16)
    for W in (narrow, narrow.view(np.uint16).view(nmsolve.bfloat16), narrow.astype(np.float32)):
        assert close(nmsolve.solve(W, text).objective, exact, 1e-6)
        assert close(
            nmsolve.solve(W, text, scores=W).objective,
            nmsolve.solve(W, text, scores=as_float(W)).objective,
            1e-6,
        )
    assert close(
        nmsolve.solve(half, text).objective,
        nmsolve.solve(half.astype(np.float64), text).objective,
        1e-6,
    )


def test_extreme_values_of_every_dtype():
    for dtype in (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint64):
        info = np.iinfo(dtype)
        low = info.min or info.max
        W = np.array([[info.max, low, 1, 0], [1, 0, info.max, low]] * 2, dtype)
        for text in ("2:4", "2:4T", "<=2:4T"):
            result = nmsolve.solve(W, text)
            assert result.objective == pytest.approx(
                float(np.sort(magnitude(W), axis=1)[:, 2:].sum()), rel=1e-15
            )
            assert result.verify(W).ok
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float32):
        top = float(ml_dtypes.finfo(dtype).max)
        W = np.full((8, 8), top, dtype)
        for text in ("2:4", "2:4T", "<=2:4T", "4:8T", "<=4:8T", "1:4T"):
            result = nmsolve.solve(W, text)
            assert result.objective == parse(text).density * 64 * top
            assert result.status is nmsolve.Status.OPTIMAL
            assert result.verify(W).ok


@pytest.mark.parametrize("text", ["2:4T", "4:8T", "<=4:8T", "2:4", "1:4T"])
def test_negative_zero_is_zero(text):
    W = np.random.default_rng(4).integers(0, 2, (8, 64)).astype(np.float32)
    negative = np.where(W == 0, np.float32(-0.0), W)
    assert np.signbit(negative).any()
    assert same(nmsolve.solve(W, text), nmsolve.solve(negative, text))
    a, b = nmsolve.solve(W, text, scores=W), nmsolve.solve(W, text, scores=negative)
    assert a.objective == b.objective


@pytest.mark.parametrize("text", SMALL)
@pytest.mark.parametrize("name", ["normal32", "integers", "zeros95"])
def test_a_large_matrix_is_proven_block_by_block(text, name):
    """Thousands of blocks through every queue of the solver; the certificate is the check."""
    W = np.random.default_rng(6)
    m = parse(text).m
    W = FAMILIES[name](np.random.default_rng(6), (1, 40 * m, 50 * m))[0]
    result = nmsolve.solve(W, text, duals=True)
    assert result.status is nmsolve.Status.OPTIMAL
    assert result.gap <= 1e-6
    assert result.verify(W).ok


def test_narrow_families_are_narrow():
    assert "normal32" in NARROW
    assert "normal64" not in NARROW
