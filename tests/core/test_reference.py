"""The oracles agree with each other, and with what is known about them."""

import numpy as np
import pytest
from hypothesis import given

from reference import brute, flow, highs, loops
from tests.core.families import as_float, draw, family_names, magnitude, seeds


def test_numbers_of_masks():
    assert len(brute.blocks(2, 4)) == 90
    assert len(brute.blocks(2, 4, True)) == 7343
    assert len(brute.blocks(1, 4)) == 24
    assert len(brute.blocks(3, 4)) == 24
    assert len(brute.blocks(2, 5)) == 2040
    assert len(brute.groups(2, 4)) == 6


@pytest.mark.parametrize("at_most", [False, True])
@pytest.mark.parametrize(
    ("n", "m"), [(1, 1), (1, 2), (1, 3), (2, 3), (1, 4), (2, 4), (3, 4), (2, 5)]
)
@given(name=family_names, seed=seeds)
def test_oracles_agree(n, m, at_most, name, seed):
    if at_most and m > 3:
        n = 1
    S = magnitude(draw(name, seed, (1, m, m)))[0]
    S = S * np.random.default_rng(seed).choice([-1.0, 1.0], (m, m)) if at_most else S
    _, optimum = brute.optimum(S, n, at_most)
    size = float(np.abs(S).sum())
    mask, value = flow.optimum(S, n, at_most)
    assert loops.block_ok(mask, n, at_most)
    assert value == pytest.approx(optimum, rel=1e-15, abs=0)
    assert loops.objective(S, mask) == pytest.approx(value, rel=1e-15, abs=0)
    mask, value, u, v = highs.linear(S, n, at_most)
    assert loops.block_ok(mask, n, at_most)
    assert abs(value - optimum) <= 1e-7 * size
    assert -1e-15 * size <= loops.dual_bound(S, u, v, n) - optimum <= 1e-7 * size
    mask, value = highs.integer(S, n, at_most)
    assert loops.block_ok(mask, n, at_most)
    assert abs(value - optimum) <= 1e-7 * size


@pytest.mark.parametrize("at_most", [False, True])
@given(name=family_names, seed=seeds)
def test_select_is_the_best_group(at_most, name, seed):
    rng = np.random.default_rng(seed)
    m = int(rng.integers(1, 9))
    n = int(rng.integers(1, m + 1))
    group = as_float(draw(name, seed, (1, 1, m)))[0, 0]
    mask = loops.select(group, n, at_most)
    assert loops.group_ok(mask, n, at_most)
    # approx(..., abs=0) is exact for what a double holds exactly
    assert loops.objective(group, mask) == pytest.approx(
        brute.select(group, n, at_most)[1], rel=1e-15, abs=0
    )


def test_select_takes_the_lowest_index():
    assert loops.select([1, 2, 2, 2], 2).tolist() == [False, True, True, False]
    assert loops.select([-1, 0, 2, 0], 3, at_most=True).tolist() == [False, False, True, False]


def test_rules_differ():
    S = np.array([[3.0, 2.0], [2.0, 0.0]])
    assert loops.keep_greedy(S, 1).tolist() == [[True, False], [False, False]]
    assert loops.cover(S, 1).tolist() == [[True, False], [False, False]]
    S = np.array([[3.0, 2.0], [2.0, 1.5]])
    assert loops.keep_greedy(S, 1).tolist() == [[True, False], [False, True]]
    assert loops.cover(S, 1).tolist() == [[True, False], [False, False]]


def test_at_most_can_be_strictly_better():
    """The default is not a special case of at most, and the other way round."""
    gains = 0
    for seed in range(60):
        S = np.abs(np.random.default_rng(seed).standard_normal((4, 4)))
        exactly, fewer = flow.optimum(S, 2)[1], flow.optimum(S, 2, True)[1]
        assert fewer >= exactly
        gains += fewer > exactly
    assert gains > 0


def test_block_ok_counts_both_ways():
    rows_only = [[True, False], [True, False]]
    assert not loops.block_ok(rows_only, 1)
    assert not loops.block_ok(rows_only, 1, True)
    assert loops.block_ok([[True, False], [False, False]], 1, True)
    assert not loops.block_ok([[True, False], [False, False]], 1)
