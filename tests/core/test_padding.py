"""Shapes that blocks do not tile, against padding done here."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nmsolve
from tests.core.families import (
    as_float,
    best,
    draw,
    family_names,
    magnitude,
    parse,
    seeds,
    split,
    total_of,
)

PATTERNS = ("2:4T", "<=2:4T", "2:5T", "4:8T", "<=4:8T", "2:4", "<=4:8", "3:5")


def padded(W, pattern):
    rows, cols = W.shape[-2:]
    extra = [(0, 0)] * (W.ndim - 2) + [(0, -rows % pattern.rows), (0, -cols % pattern.m)]
    return np.pad(W, extra)


def ragged(text, name, seed, batch=()):
    rng = np.random.default_rng(seed)
    m = parse(text).m
    rows, cols = (int(x) for x in rng.integers(1, 3 * m, 2))
    count = int(np.prod(batch, dtype=int))
    return draw(name, seed, (count, rows, cols)).reshape(*batch, rows, cols)


batches = st.sampled_from([(), (1,), (3,), (2, 2)])


@pytest.mark.parametrize("method", ["exact", "greedy", "cover"])
@pytest.mark.parametrize("text", PATTERNS)
@settings(max_examples=12)
@given(name=family_names, seed=seeds, batch=batches)
def test_pad_is_the_padded_matrix_cropped(text, method, name, seed, batch):
    pattern = parse(text)
    W = ragged(text, name, seed, batch)
    result = nmsolve.solve(W, text, padding="pad", method=method)
    whole = nmsolve.solve(padded(W, pattern), text, method=method)
    assert result.mask.shape == W.shape
    assert np.array_equal(result.mask, whole.mask[..., : W.shape[-2], : W.shape[-1]])
    assert abs(result.objective - whole.objective) <= 1e-13 * magnitude(W).sum()
    assert abs(result.objective - total_of(magnitude(W), result.mask)) <= 1e-13 * magnitude(W).sum()
    assert result.padding == "pad"
    assert result.verify(W).ok
    assert nmsolve.verify(result.mask, text, padding="pad").ok


@pytest.mark.parametrize("text", PATTERNS)
@settings(max_examples=12)
@given(name=family_names, seed=seeds)
def test_pad_is_the_optimum_of_the_padded_matrix(text, name, seed):
    pattern = parse(text)
    W = ragged(text, name, seed)
    result = nmsolve.solve(W, text, padding="pad", duals=True)
    blocks = split(padded(magnitude(W), pattern), pattern.rows, pattern.m)
    optimum = sum(best(block, pattern) for block in blocks)
    assert result.status is nmsolve.Status.OPTIMAL
    assert abs(result.objective - optimum) <= 1e-6 * optimum
    assert result.bound >= optimum * (1 - 1e-13)
    assert result.verify(W).ok


@pytest.mark.parametrize("method", ["exact", "greedy", "cover"])
@pytest.mark.parametrize("text", PATTERNS)
@settings(max_examples=12)
@given(name=family_names, seed=seeds, batch=batches)
def test_dense_keeps_the_remainder(text, method, name, seed, batch):
    pattern = parse(text)
    W = ragged(text, name, seed, batch)
    result = nmsolve.solve(W, text, padding="dense", method=method)
    rows, cols = W.shape[-2] - W.shape[-2] % pattern.rows, W.shape[-1] - W.shape[-1] % pattern.m
    assert result.mask[..., rows:, :].all()
    assert result.mask[..., :, cols:].all()
    if rows and cols:
        core = nmsolve.solve(W[..., :rows, :cols], text, method=method)
        assert np.array_equal(result.mask[..., :rows, :cols], core.mask)
    S = magnitude(W)
    assert abs(result.objective - total_of(S, result.mask)) <= 1e-13 * S.sum()
    assert result.bound is None or result.bound >= result.objective
    assert result.verify(W).ok
    assert nmsolve.verify(result.mask, text, padding="dense").ok


@pytest.mark.parametrize("padding", ["pad", "dense"])
@pytest.mark.parametrize("text", PATTERNS)
@settings(max_examples=6)
@given(seed=seeds)
def test_signed_scores(text, padding, seed):
    W = ragged(text, "normal64", seed)
    result = nmsolve.solve(W, text, scores=W, padding=padding, duals=True)
    assert abs(result.objective - total_of(as_float(W), result.mask)) <= 1e-13 * np.abs(W).sum()
    assert result.status is nmsolve.Status.OPTIMAL
    assert result.verify(W, W).ok


@pytest.mark.parametrize("text", PATTERNS)
def test_padding_that_is_not_needed_changes_nothing(text):
    m = parse(text).m
    W = np.random.default_rng(0).standard_normal((2 * m, 3 * m)).astype(np.float32)
    plain = nmsolve.solve(W, text)
    for padding in ("pad", "dense", "error"):
        result = nmsolve.solve(W, text, padding=padding)
        assert np.array_equal(result.mask, plain.mask)
        assert result.objective == plain.objective


def test_rows_of_a_rowwise_pattern_need_no_padding():
    W = np.random.default_rng(0).standard_normal((7, 8))
    assert nmsolve.solve(W, "2:4").mask.sum() == 7 * 4


def test_a_matrix_smaller_than_a_block():
    W = np.array([[5.0, -1.0, 2.0]])
    assert nmsolve.solve(W, "4:8T", padding="dense").mask.all()
    assert nmsolve.solve(W, "1:4T", padding="pad").objective == 5.0
    result = nmsolve.solve(W, "4:8T", padding="dense", duals=True)
    assert (result.objective, result.bound) == (8.0, 8.0)
    assert result.verify(W).ok


@pytest.mark.parametrize("kind", [np.float16, nmsolve.bfloat16, np.int8, ">f4"], ids=str)
@pytest.mark.parametrize("padding", ["pad", "dense"])
@pytest.mark.parametrize("text", ["2:4T", "4:8T", "2:4"])
def test_dtypes(text, padding, kind):
    values = np.random.default_rng(1).integers(-9, 9, (13, 19))
    if kind is nmsolve.bfloat16:
        W = (
            (values.astype(np.float32).view(np.uint32) >> 16)
            .astype(np.uint16)
            .view(nmsolve.bfloat16)
        )
    else:
        W = values.astype(kind)
    result, wide = (
        nmsolve.solve(W, text, padding=padding),
        nmsolve.solve(values.astype(np.float64), text, padding=padding),
    )
    assert result.objective == wide.objective
    assert result.verify(W).ok
