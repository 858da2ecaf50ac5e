"""Every method against the oracles in `reference/`, which share nothing with it."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import nmsolve
from reference import brute, highs, loops
from tests.core.families import (
    FAMILIES,
    HALF,
    HALF_FAMILIES,
    RARE_LARGE,
    RARE_MIDDLE,
    RARE_ROWWISE,
    RARE_SMALL,
    ROWWISE,
    WHOLE,
    as_float,
    assert_certified,
    assert_optimal,
    best,
    draw,
    family_names,
    feasible,
    magnitude,
    matrix,
    parse,
    rare,
    seeds,
    split,
    tolerance,
)
from tests.kernels import LARGE, MIDDLE, SMALL

#: 17 side by side, two such rows: full groups of 16 lanes, of one row and across, and a remainder.
A_ROW, ROWS = 17, 2


def assert_solved(result, S, pattern, relative):
    """The optimum, block by block, and the duals that prove it."""
    assert_certified(result, S, pattern, relative, assert_optimal(result, S, pattern, relative))


def solve_family(pattern, name, seed, rows=ROWS):
    """With duals, and the same without."""
    W = matrix(draw(name, seed, (A_ROW * rows, pattern.rows, pattern.m)), A_ROW)
    result = nmsolve.solve(W, pattern, duals=True)
    assert_solved(result, magnitude(W), pattern, tolerance(W))
    assert result.verify(W).ok
    bare = nmsolve.solve(W, pattern)
    assert bare.status is nmsolve.Status.OPTIMAL
    assert np.array_equal(bare.mask, result.mask)
    assert bare.objective == result.objective
    assert bare.verify(W).ok


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("text", [*SMALL, *RARE_SMALL, *WHOLE])
@settings(max_examples=1)
@given(seed=seeds)
def test_exact_is_the_optimum(text, name, seed):
    solve_family(parse(text), name, seed)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("text", [*MIDDLE, *RARE_MIDDLE])
@settings(max_examples=1)
@given(seed=seeds)
def test_exact_is_the_optimum_of_middle_blocks(text, name, seed):
    solve_family(parse(text), name, seed)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("text", [*ROWWISE, *RARE_ROWWISE])
@settings(max_examples=1)
@given(seed=seeds)
def test_rowwise_is_the_optimum(text, name, seed):
    solve_family(parse(text), name, seed, rows=3)


@pytest.mark.parametrize("name", HALF_FAMILIES)
@pytest.mark.parametrize("text", HALF)
@settings(max_examples=2)
@given(seed=seeds)
def test_sixteen_bits(text, name, seed):
    solve_family(parse(text), name, seed)


@pytest.mark.parametrize(
    "name",
    [
        "normal32",
        "integers",
        "zeros60",
        "constant",
        "column_scaled",
        "bf16_rounded",
        "rank_one",
        "heavy_tail",
        "denormal32",
    ],
)
@pytest.mark.parametrize("text", [*LARGE, *RARE_LARGE])
@settings(max_examples=1)
@given(seed=seeds)
def test_large_blocks_against_the_linear_program(text, name, seed):
    pattern = parse(text)
    W = matrix(draw(name, seed, (3, pattern.m, pattern.m)), 3)
    result = nmsolve.solve(W, pattern)
    assert result.status is nmsolve.Status.OPTIMAL
    for block, mask in zip(
        split(magnitude(W), pattern.m, pattern.m),
        split(result.mask, pattern.m, pattern.m),
        strict=True,
    ):
        assert feasible(mask, pattern)
        _, optimum, u, v = highs.linear(block, pattern.n, pattern.at_most)
        found = loops.objective(block, mask)
        assert found >= optimum * (1 - 1e-6)
        assert found <= loops.dual_bound(block, u, v, pattern.n) * (1 + 1e-13)


@pytest.mark.parametrize("text", [t for t in SMALL if parse(t).m <= 5])
@given(seed=seeds, name=family_names)
@settings(max_examples=8)
def test_exact_against_every_mask(text, seed, name):
    pattern = parse(text)
    W = matrix(draw(name, seed, (2, pattern.m, pattern.m)), 2)
    result = nmsolve.solve(W, pattern)
    for block, mask in zip(
        split(magnitude(W), pattern.m, pattern.m),
        split(result.mask, pattern.m, pattern.m),
        strict=True,
    ):
        if pattern.at_most:
            assert any(np.array_equal(mask, m) for m in brute.blocks(pattern.n, pattern.m, True))
        best = brute.optimum(block, pattern.n, pattern.at_most)[1]
        assert loops.objective(block, mask) >= best * (1 - tolerance(W))


@pytest.mark.parametrize("text", [*SMALL, *RARE_SMALL, *RARE_MIDDLE, *WHOLE, *ROWWISE])
@pytest.mark.parametrize(
    "name",
    [
        "normal32",
        "normal64",
        "signed_integers",
        "zeros60",
        "column_scaled",
        "int64_ties",
        "constant",
    ],
)
@settings(max_examples=1)
@given(seed=seeds)
def test_signed_scores(text, name, seed):
    """scores= are maximised as they are: a negative score is a loss, and at most n leaves it
    out.
    """
    pattern = parse(text)
    S = matrix(draw(name, seed, (A_ROW * ROWS, pattern.rows, pattern.m)), A_ROW)
    S = -S if name == "constant" else S
    weights = np.ones(S.shape, np.float32)
    result = nmsolve.solve(weights, pattern, scores=S, duals=True)
    assert_solved(result, as_float(S), pattern, tolerance(S))
    assert result.verify(weights, S).ok
    bare = nmsolve.solve(weights, pattern, scores=S)
    assert bare.status is nmsolve.Status.OPTIMAL
    assert np.array_equal(bare.mask, result.mask)
    assert bare.verify(weights, S).ok
    if pattern.at_most:
        assert not np.any(result.mask & (S < 0))


@pytest.mark.parametrize("text", ["2:4T", "<=2:4T", "2:5T", "4:8T", "<=4:8T"])
@settings(max_examples=25)
@given(data=st.data())
def test_small_numbers_by_hypothesis(text, data):
    """Ties in every arrangement that Hypothesis comes up with, and shrinks."""
    pattern = parse(text)
    S = data.draw(arrays(np.int8, (pattern.m, pattern.m), elements=st.integers(-3, 3)))
    assert_optimal(nmsolve.solve(S, pattern), magnitude(S), pattern, 1e-12)
    assert_optimal(nmsolve.solve(S, pattern, scores=S), as_float(S), pattern, 1e-12)
    assert_optimal(
        nmsolve.solve(S, pattern, scores=S.astype(np.float32)), as_float(S), pattern, 1e-6
    )


@pytest.mark.parametrize(
    ("text", "method"),
    [(t, method) for t in (*SMALL, *WHOLE, "2:4", "<=2:4") for method in nmsolve.methods(t)],
)
@settings(max_examples=4)
@given(name=st.sampled_from(sorted(set(FAMILIES) - {"large64"})), seed=seeds)
def test_every_method(text, method, name, seed):
    """Feasible, what it says it is, no better than the optimum and no worse than its status; bound
    above the optimum.
    """
    pattern = parse(text)
    W = matrix(draw(name, seed, (5, pattern.rows, pattern.m)), 5)
    result = nmsolve.solve(W, pattern, method=method)
    S = magnitude(W)
    blocks, masks = split(S, pattern.rows, pattern.m), split(result.mask, pattern.rows, pattern.m)
    assert all(feasible(mask, pattern) for mask in masks)
    optimum = math.fsum(best(block, pattern) for block in blocks)
    assert result.objective <= optimum * (1 + 1e-13)
    assert result.bound >= optimum * (1 - 1e-13)
    assert result.gap == pytest.approx(
        (result.bound - result.objective) / result.bound if result.bound else 0.0, abs=1e-15
    )
    assert result.method == ("exact" if method == "auto" else method)
    if result.status is nmsolve.Status.OPTIMAL:
        assert result.objective >= optimum * (1 - tolerance(W))
        least = 4 * W.size * 5e-324  # what sums of subnormal duals are rounded by
        assert result.bound - result.objective <= tolerance(W) * result.bound + least
    if method == "min_cost_flow":
        assert result.objective >= optimum * (1 - 2.0**-46 * pattern.n * pattern.m)
        assert result.stats["scaling_error"] >= 0
    assert result.verify(W).ok


def test_auto_is_exact_and_methods_are_named():
    assert set(nmsolve.methods("4:8T")) == {"auto", "exact", "greedy", "cover", "min_cost_flow"}
    assert "min_cost_flow" not in nmsolve.methods("4:8")
    assert all(nmsolve.methods("4:8T").values())


@pytest.mark.parametrize("text", ["1:4", "3:4", "1:4T", *rare("3:4T")])
def test_n_is_what_is_kept(text):
    """2:4 hides a confusion of kept and pruned; these do not."""
    pattern = parse(text)
    W = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    result = nmsolve.solve(W, pattern)
    assert result.mask.mean() == pattern.n / pattern.m
    kept, pruned = np.abs(W)[result.mask].mean(), np.abs(W)[~result.mask].mean()
    assert kept > pruned


def test_signed_weights_are_scored_by_magnitude():
    W = np.array([[-9.0, 1.0, 2.0, -8.0]], np.float32)
    assert nmsolve.solve(W, "2:4").mask.tolist() == [[True, False, False, True]]
    assert nmsolve.solve(W, "2:4", scores=W).mask.tolist() == [[False, True, True, False]]


def test_int8_minimum_does_not_overflow():
    W = np.array([[-128, 127, 3, 2]], np.int8)
    result = nmsolve.solve(W, "1:4")
    assert result.mask.tolist() == [[True, False, False, False]]
    assert result.objective == 128.0
    W = np.full((4, 4), -128, np.int8)
    assert nmsolve.solve(W, "2:4T").objective == 8 * 128
    assert nmsolve.solve(W, "<=2:4T").objective == 8 * 128


@pytest.mark.parametrize("text", ["2:4T", "<=2:4T", "4:8T", "2:4", "<=4:8"])
@pytest.mark.parametrize("method", ["exact", "greedy", "cover"])
def test_all_zero(text, method):
    result = nmsolve.solve(np.zeros((16, 16), np.float32), text, method=method)
    assert (result.objective, result.bound, result.gap) == (0.0, 0.0, 0.0)
    assert result.verify(np.zeros((16, 16), np.float32)).ok
