"""Parts of the solvers on their own: arrays in and arrays out."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nmsolve
from nmsolve.solvers.augment import augment
from nmsolve.solvers.block_masks import classes, row_patterns
from nmsolve.solvers.complete import complete, relaxed_optimum
from nmsolve.solvers.cover import prune_lightest
from nmsolve.solvers.greedy import keep_heaviest
from nmsolve.solvers.network import select_ranks, selection_network
from nmsolve.solvers.ties import offsets
from reference import brute, flow, loops
from tests.core.families import draw, family_names, magnitude, matrix, parse, seeds, split


@pytest.mark.parametrize("m", range(1, 65))
def test_selection_network_against_sorting(m):
    """The n-th largest alone, and with the next one, for every n; ties, infinities and both zeros
    among the values.
    """
    rng = np.random.default_rng(m)
    samples = np.stack(
        [
            rng.standard_normal(m),
            rng.integers(-2, 3, m),
            rng.permutation(m),
            np.arange(m),
            -np.arange(m),
            np.zeros(m),
        ]
    )
    samples[0, rng.integers(m)] = math.inf
    ordered = -np.sort(-samples, axis=1)
    for n in range(1, m + 1):
        for ranks in ((n - 1,), (n - 1, min(n, m - 1))):
            found = select_ranks(list(samples.T), ranks, np.maximum, np.minimum)
            for rank, values in zip(ranks, found, strict=True):
                assert np.array_equal(values, ordered[:, rank])


@settings(max_examples=100)
@given(values=st.lists(st.integers(-5, 5), min_size=1, max_size=64), data=st.data())
def test_selection_network_on_python_numbers(values, data):
    rank = data.draw(st.integers(0, len(values) - 1))
    assert select_ranks(values, (rank,), max, min) == [sorted(values, reverse=True)[rank]]
    assert select_ranks(values, tuple(range(len(values))), max, min) == sorted(values, reverse=True)


@pytest.mark.parametrize("m", range(1, 11))
def test_selection_network_by_the_zero_one_principle(m):
    """A comparator network that selects correctly from every 0/1 input selects from every input."""
    inputs = (np.arange(2**m)[:, None] >> np.arange(m)) & 1
    ordered = -np.sort(-inputs, axis=1)
    for n in range(1, m + 1):
        upper, lower = select_ranks(list(inputs.T), (n - 1, min(n, m - 1)), np.maximum, np.minimum)
        assert np.array_equal(upper, ordered[:, n - 1])
        assert np.array_equal(lower, ordered[:, min(n, m - 1)])


def test_selection_network_sizes():
    sizes = {m: len(selection_network(m, (m // 2 - 1, m // 2))) for m in (4, 8, 16, 32)}
    assert sizes == {4: 5, 8: 17, 16: 53, 32: 157}


def run_augment(S, n, at_most, u, v, function=augment):
    m, size = len(S), 2 * len(S) + 1
    u, v, X = np.array(u, float), np.array(v, float), np.empty((m, m), np.uint8)
    paths = function(
        S, u, v, n, at_most, X, np.empty(m, np.int64), np.empty(m, np.int64),
        np.empty(size, np.int64), np.empty(size),
        np.empty(size, np.int64), np.empty(size, np.int64),
    )  # fmt: skip
    return paths, X, u, v


def check_augment(S, n, at_most, u, v, function=augment):
    start = float(np.abs(u).sum() + np.abs(v).sum())
    paths, X, u, v = run_augment(S, n, at_most, u, v, function)
    size = float(np.abs(S).sum() + n * start)
    assert paths >= 0
    assert loops.block_ok(X, n, at_most)
    optimum = flow.optimum(S, n, at_most)[1]
    assert abs(loops.objective(S, X) - optimum) <= 1e-13 * size
    if at_most:
        assert (u >= 0).all()
        assert (v >= 0).all()
    assert abs(loops.dual_bound(S, u, v, n) - optimum) <= 1e-12 * size
    return paths


@pytest.mark.parametrize("at_most", [False, True])
@pytest.mark.parametrize(
    ("n", "m"), [(1, 1), (1, 2), (2, 3), (2, 4), (4, 4), (3, 6), (4, 8), (7, 8), (5, 12)]
)
@settings(max_examples=12)
@given(name=family_names, seed=seeds)
def test_augment_from_any_duals(n, m, at_most, name, seed):
    rng = np.random.default_rng(seed)
    S = magnitude(draw(name, seed, (1, m, m)))[0]
    top = float(S.max())
    if top == 0 or not 1e-200 < top < 1e200:
        S = np.round(3 * rng.standard_normal((m, m)))
        top = 3.0
    check_augment(S, n, at_most, np.zeros(m), np.zeros(m))
    check_augment(S, n, at_most, *rng.uniform(-top, top, (2, m)))
    signed = S * rng.choice([-1.0, 1.0], S.shape)
    check_augment(signed, n, at_most, np.zeros(m), np.zeros(m))
    check_augment(signed, n, at_most, *rng.uniform(-top, top, (2, m)))


@pytest.mark.parametrize("at_most", [False, True])
@settings(max_examples=10)
@given(seed=seeds)
def test_augment_as_python(at_most, seed):
    S = np.random.default_rng(seed).integers(-3, 4, (5, 5)).astype(float)
    compiled = run_augment(S, 2, at_most, np.zeros(5), np.zeros(5))
    plain = run_augment(S, 2, at_most, np.zeros(5), np.zeros(5), augment.py_func)
    check_augment(S, 2, at_most, np.zeros(5), np.zeros(5), augment.py_func)
    for a, b in zip(compiled, plain, strict=True):
        assert np.array_equal(a, b)


def test_augment_from_optimal_duals_needs_no_path():
    S = np.random.default_rng(0).standard_normal((8, 8))
    _, _, u, v = run_augment(S, 4, False, np.zeros(8), np.zeros(8))
    paths, *_ = run_augment(S, 4, False, u, v)
    assert paths <= 8 * 4
    assert check_augment(S + 1e-3, 4, False, u, v) >= 0


@pytest.mark.parametrize(
    "text", ["2:4", "<=2:4", "1:4", "3:4", "4:8", "<=4:8", "3:5", "8:16", "<=7:20", "1:1", "4:4"]
)
@settings(max_examples=10)
@given(name=family_names, seed=seeds)
def test_rowwise_ties_go_to_the_lowest_index(text, name, seed):
    """Row-wise the mask itself is fixed, not only its objective."""
    pattern = parse(text)
    W = matrix(draw(name, seed, (34, 1, pattern.m)), 17)
    found = split(nmsolve.solve(W, text).mask, 1, pattern.m)
    for group, mask in zip(split(magnitude(W), 1, pattern.m), found, strict=True):
        assert np.array_equal(mask[0], loops.select(group[0], pattern.n, pattern.at_most))


@pytest.mark.parametrize("text", ["2:4", "<=2:4", "4:8", "<=7:20"])
@settings(max_examples=20)
@given(seed=seeds)
def test_rowwise_ties_of_signed_scores(text, seed):
    pattern = parse(text)
    S = matrix(draw("int64_ties", seed, (20, 1, pattern.m)), 20)
    for dtype in (np.int64, np.float32, np.float64, np.float16):
        found = split(nmsolve.solve(S, text, scores=S.astype(dtype)).mask, 1, pattern.m)
        for group, mask in zip(split(S, 1, pattern.m), found, strict=True):
            assert np.array_equal(mask[0], loops.select(group[0], pattern.n, pattern.at_most))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_classes_of_the_enumeration_are_all_masks(n):
    """Every mask of a 4 × 4 block is an upper pair and a lower pair of one class, and of one
    only.
    """
    patterns = row_patterns(n)
    masks = set()
    for upper, lower in classes(n):
        for high in upper:
            for low in lower:
                rows = [patterns[k] for k in (*high, *low)]
                mask = tuple(tuple(j in row for j in range(4)) for row in rows)
                assert mask not in masks
                masks.add(mask)
    assert masks == {tuple(map(tuple, mask.tolist())) for mask in brute.blocks(n, 4)}
    if n == 2:
        assert sorted(len(upper) for upper, _ in classes(2)) == [1] * 6 + [2] * 12 + [6]


def test_offsets():
    for m in (2, 5, 8, 16, 64):
        values = offsets(m)
        assert values.shape == (m * m,)
        assert values.dtype == np.float64
        assert (values > 0).all()
        assert (values < 1).all()
        assert len(set(values.tolist())) > 0.99 * m * m
        assert np.array_equal(values.astype(np.float32).astype(np.float64), values), (
            "exact in float32"
        )
        assert np.array_equal(values[:4], offsets(2)[:4])
    assert abs(offsets(64).mean() - 0.5) < 0.02


def splitmix64(index):
    mask = 2**64 - 1
    z = (index + 1) * 0x9E3779B97F4A7C15 & mask
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
    return z ^ z >> 31


def test_offsets_are_fixed_for_ever():
    """Masks of tied scores depend on them."""
    assert splitmix64(0) == 0xE220A8397B1DCDAF, "the first output of splitmix64 with seed 0"
    assert offsets(8).tolist() == [((splitmix64(k) >> 44) + 0.5) / 2**20 for k in range(64)]


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 3), (2, 4), (3, 6), (4, 8)])
@settings(max_examples=15)
@given(name=family_names, seed=seeds)
def test_complete_fills_every_line(n, m, name, seed):
    S = magnitude(draw(name, seed, (1, m, m)))[0]
    for rule, oracle in ((keep_heaviest, loops.keep_greedy), (prune_lightest, loops.cover)):
        kept = np.empty((m, m), np.uint8)
        rule(S, n, False, kept)
        assert np.array_equal(kept, oracle(S, n, False))
        missing = n * m - int(kept.sum())
        assert complete(S, kept, n) == missing
        assert loops.block_ok(kept, n)
    assert relaxed_optimum(S, n) >= flow.optimum(S, n)[1] * (1 - 1e-13)
