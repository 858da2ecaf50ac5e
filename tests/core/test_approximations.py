"""Keep-greedy and cover: their guarantees against the optimum, and their rules against plain
loops.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import nmsolve
from reference import flow, loops
from tests.core.families import (
    as_float,
    best,
    draw,
    family_names,
    feasible,
    magnitude,
    matrix,
    parse,
    seeds,
    split,
)

PATTERNS = ("1:2T", "2:3T", "1:4T", "2:4T", "3:4T", "2:5T", "3:6T", "4:8T", "1:8T")
EITHER = [*PATTERNS, *("<=" + text for text in PATTERNS)]


def check_guarantee(W, text, method):
    pattern = parse(text)
    result = nmsolve.solve(W, text, method=method)
    S = magnitude(W)
    for block, mask in zip(
        split(S, pattern.m, pattern.m), split(result.mask, pattern.m, pattern.m), strict=True
    ):
        assert feasible(mask, pattern)
        optimum, kept, total = (
            best(block, pattern),
            loops.objective(block, mask),
            float(block.sum()),
        )
        slack = 1e-12 * total
        assert kept <= optimum + slack
        if method == "greedy":
            assert kept >= optimum / 2 - slack
        else:
            assert total - kept <= 2 * (total - optimum) + slack
    return result


@pytest.mark.parametrize("method", ["greedy", "cover"])
@pytest.mark.parametrize("text", EITHER)
@settings(max_examples=20)
@given(data=st.data())
def test_guarantee_on_adversarial_blocks(text, method, data):
    m = parse(text).m
    W = data.draw(
        arrays(
            np.float64,
            (m, m),
            elements=st.sampled_from([0.0, 1e-6, 0.5, 0.999, 1.0, 1.001, 2.0, 3.0, 100.0]),
        )
    )
    check_guarantee(W, text, method)


@pytest.mark.parametrize("method", ["greedy", "cover"])
@pytest.mark.parametrize("text", [*EITHER, "8:16T", "<=8:16T"])
@settings(max_examples=6)
@given(name=family_names, seed=seeds)
def test_guarantee_on_families(text, method, name, seed):
    m = parse(text).m
    result = check_guarantee(matrix(draw(name, seed, (4, m, m)), 2), text, method)
    assert result.status is nmsolve.Status.FEASIBLE
    assert result.gap is None or result.gap >= 0


def test_greedy_is_nearly_as_bad_as_its_guarantee_somewhere():
    """One heavy entry that blocks two nearly as heavy ones: the factor 1/2 is tight for at most
    n.
    """
    W = np.array([[1.0, 0.999], [0.999, 0.0]])
    result = check_guarantee(W, "<=1:2T", "greedy")
    assert result.objective == 1.0
    assert flow.optimum(W, 1, True)[1] == 1.998


@pytest.mark.parametrize(
    "text", ["<=1:2T", "<=2:3T", "<=1:4T", "<=2:4T", "<=3:4T", "<=2:5T", "<=4:8T", "<=8:16T"]
)
@pytest.mark.parametrize(
    ("method", "rule"), [("greedy", loops.keep_greedy), ("cover", loops.cover)]
)
@settings(max_examples=10)
@given(name=family_names, seed=seeds)
def test_rules(text, method, rule, name, seed):
    """At most n is what the rules themselves yield: bit for bit the loops' mask, ties by lowest
    index.
    """
    pattern = parse(text)
    W = matrix(draw(name, seed, (4, pattern.m, pattern.m)), 2)
    found = split(nmsolve.solve(W, text, method=method).mask, pattern.m, pattern.m)
    signed = split(nmsolve.solve(W, text, scores=W, method=method).mask, pattern.m, pattern.m)
    for block, mask, other in zip(
        split(as_float(W), pattern.m, pattern.m), found, signed, strict=True
    ):
        assert np.array_equal(mask, rule(np.abs(block), pattern.n, True))
        assert np.array_equal(other, rule(block, pattern.n, True))


@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize(
    ("method", "rule"), [("greedy", loops.keep_greedy), ("cover", loops.cover)]
)
@settings(max_examples=10)
@given(name=family_names, seed=seeds)
def test_a_rule_that_fills_every_line_is_left_alone(text, method, rule, name, seed):
    pattern = parse(text)
    W = matrix(draw(name, seed, (6, pattern.m, pattern.m)), 3)
    result = nmsolve.solve(W, text, method=method)
    complete = 0
    for block, mask in zip(
        split(magnitude(W), pattern.m, pattern.m),
        split(result.mask, pattern.m, pattern.m),
        strict=True,
    ):
        expected = rule(block, pattern.n, False)
        if loops.block_ok(expected, pattern.n):
            assert np.array_equal(mask, expected)
            complete += 1
        else:
            assert feasible(mask, pattern)
    assert result.stats["completed"] == 6 - complete


@pytest.mark.parametrize("method", ["greedy", "cover"])
@pytest.mark.parametrize("text", ["2:4T", "<=2:4T", "4:8T", "<=4:8T"])
@settings(max_examples=10)
@given(name=family_names, seed=seeds)
def test_exact_is_no_worse(text, method, name, seed):
    m = parse(text).m
    W = matrix(draw(name, seed, (8, m, m)), 4)
    exact, heuristic = nmsolve.solve(W, text), nmsolve.solve(W, text, method=method)
    assert exact.objective >= heuristic.objective * (1 - 1e-6)
    assert heuristic.bound is None or heuristic.bound >= exact.objective * (1 - 1e-13)


@pytest.mark.parametrize("method", ["greedy", "cover"])
@pytest.mark.parametrize("text", ["2:4T", "<=2:4T", "4:8T", "<=4:8T"])
@settings(max_examples=10)
@given(seed=seeds)
def test_signed_scores_have_no_guarantee_but_are_feasible(text, method, seed):
    pattern = parse(text)
    S = matrix(draw("normal64", seed, (4, pattern.m, pattern.m)), 2)
    result = nmsolve.solve(S, text, scores=S, method=method)
    assert nmsolve.verify(result.mask, text).ok
    assert result.bound is None
    assert result.gap is None
    assert result.status is nmsolve.Status.FEASIBLE
    assert result.objective <= nmsolve.solve(S, text, scores=S).objective + 1e-12 * np.abs(S).sum()
    assert result.verify(S, S).ok


def test_the_two_rules_are_two():
    """The 2021 code calls keep-greedy its 2-approximation; they are different algorithms."""
    W = np.random.default_rng(0).standard_normal((256, 256))
    for text in ("<=2:4T", "<=4:8T"):
        exact, greedy, cover = (
            nmsolve.solve(W, text, method=method).objective
            for method in ("exact", "greedy", "cover")
        )
        assert exact > greedy > cover


@pytest.mark.parametrize("text", ["2:4", "<=2:4", "4:8"])
def test_rowwise_every_method_is_the_selection(text):
    W = np.random.default_rng(0).integers(-3, 3, (16, 32))
    exact = nmsolve.solve(W, text)
    for method in ("greedy", "cover", "auto"):
        result = nmsolve.solve(W, text, method=method)
        assert np.array_equal(result.mask, exact.mask)
        assert result.status is nmsolve.Status.OPTIMAL
