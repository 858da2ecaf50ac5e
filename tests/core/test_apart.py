"""Scores that lie far apart: huge penalties, and weights beside which the others are nothing; these
are decided all the same.
"""

from fractions import Fraction

import numpy as np
import pytest
import torch

import nmsolve
from nmsolve.solvers.apart import add, bound_above, enumerate_exactly, is_apart
from nmsolve.solvers.block_masks import codes
from reference import brute, flow
from tests.core.families import as_float, best, feasible, parse, rare, split
from tests.tensors.engines import on_every_place, solve, tensor

PENALIZED = ("2:4T", "<=2:4T", "1:4T", *rare("3:4T"), "4:8T", "<=4:8T")


def penalized(text, seed, share, penalty, blocks=24, dtype=np.float32):
    """Integers 1 … 99 in blocks, some of them penalties. A penalty is None: one in every block."""
    m = parse(text).m
    rng = np.random.default_rng(seed)
    S = rng.integers(1, 100, (m, blocks * m)).astype(dtype)
    if share is None:
        S[rng.integers(0, m, blocks), np.arange(blocks) * m + rng.integers(0, m, blocks)] = penalty
    else:
        S[rng.random(S.shape) < share] = penalty
    return S


def decided(S, pattern):
    """The optimum of a block with penalties: as few of them as possible, and of the others as
    much.
    """
    high = np.abs(S[np.abs(S) < 1e6]).max(initial=1.0)
    clipped = np.maximum(S, -4.0 * pattern.n * pattern.m * high)
    return flow.optimum(clipped, pattern.n, pattern.at_most)[0].astype(bool)


def check_penalized(result, S, text):
    pattern = parse(text)
    assert result.status is nmsolve.Status.OPTIMAL
    for block, mask in zip(
        split(as_float(S), pattern.m, pattern.m),
        split(np.asarray(result.mask), pattern.m, pattern.m),
        strict=True,
    ):
        assert feasible(mask, pattern)
        known = decided(block, pattern)
        huge = np.abs(block) >= 1e6
        assert (mask & huge).sum() == (known & huge).sum()
        assert block[mask & ~huge].sum() == block[known & ~huge].sum()


@pytest.mark.parametrize("text", PENALIZED)
@pytest.mark.parametrize(
    ("share", "penalty"), [(0.02, -1e30), (0.02, -1e12), (None, -1e30), (0.3, -1e30)]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_huge_penalties(text, share, penalty, dtype):
    S = penalized(text, 1, share, penalty, dtype=dtype)
    result = nmsolve.solve(S, text, scores=S)
    check_penalized(result, S, text)
    assert result.verify(S, S).ok


@pytest.mark.parametrize("text", ["1:4T", "2:4T", "<=2:4T", *rare("3:4T", "<=1:4T", "<=3:4T")])
@pytest.mark.parametrize("penalty", [-10.0, -1e3, -1e5])
def test_modest_penalties_are_proven(text, penalty):
    """No optimal mask of a 4 × 4 block is called anything else."""
    pattern = parse(text)
    rng = np.random.default_rng(2)
    S = rng.standard_normal((160, 160))
    S[rng.random(S.shape) < 0.2] = penalty
    for dtype in (np.float32, np.float64):
        scores = S.astype(dtype)
        result = nmsolve.solve(scores, text, scores=scores)
        assert result.status is nmsolve.Status.OPTIMAL
        assert result.verify(scores, scores).ok
        for block, mask in list(
            zip(split(as_float(scores), 4, 4), split(result.mask, 4, 4), strict=True)
        )[::7]:
            assert block[mask].sum() >= best(block, pattern) - 1e-12 * (
                np.abs(block[mask]).sum() + 1
            )


def test_penalties_of_two_sizes():
    """Both avoided; both in the way: first as few as can be of the larger, then of the smaller."""
    rng = np.random.default_rng(3)
    for trial in range(60):
        S = rng.integers(1, 100, (4, 4)).astype(float)
        S[rng.random((4, 4)) < (0.15, 0.4, 0.7)[trial % 3]] = -1e12
        S[rng.random((4, 4)) < (0.1, 0.3, 0.5)[trial % 3]] = -1e30
        result = nmsolve.solve(S, "2:4T", scores=S)
        result.verify(S, S)
        found, most = exact(S, result.mask), max(exact(S, mask) for mask in brute.blocks(2, 4))
        if result.status is nmsolve.Status.OPTIMAL:
            assert most - found <= Fraction(1e-12) * Fraction(float(np.abs(S[result.mask]).sum()))
        for size in (-1e30, -1e12):
            if (S[result.mask] == -1e30).any() and size == -1e12:
                continue
            fewest = min(
                (S[mask.astype(bool)] == size).sum()
                for mask in brute.blocks(2, 4)
                if exact(S, mask) == most
            )
            assert (S[result.mask] == size).sum() == fewest


@pytest.mark.parametrize("text", ["<=2:4T", "4:8T", "<=4:8T"])
@pytest.mark.parametrize("exponent", [40, 60, 120])
def test_wide_ranges_verify(text, exponent):
    """What lies apart is told by scores as they are given, by solver and verify alike, with duals
    and without.
    """
    rng = np.random.default_rng(exponent)
    W = (
        rng.standard_normal((8, 1024)) * 2.0 ** rng.uniform(-exponent, exponent, (8, 1024))
    ).astype(np.float32)
    W[rng.random(W.shape) < 0.1] = np.finfo(np.float32).max
    W[rng.random(W.shape) < 0.1] = 0
    with_duals, without = nmsolve.solve(W, text, duals=True), nmsolve.solve(W, text)
    assert with_duals.verify(W).ok
    assert without.verify(W).ok
    if text == "<=2:4T" and without.status is nmsolve.Status.OPTIMAL:
        masks = [mask for mask in every_mask() if mask.sum(0).max() <= 2 and mask.sum(1).max() <= 2]
        for block, mask in list(
            zip(split(as_float(np.abs(W)), 4, 4), split(without.mask, 4, 4), strict=True)
        )[::50]:
            top = max(exact(block, other) for other in masks)
            assert top - exact(block, mask) <= Fraction(1e-12) * exact(block, mask)


def every_mask():
    """All 4 × 4 masks of at most two in a row."""
    rows = [bits for bits in range(16) if bits.bit_count() <= 2]
    lines = {bits: np.array([bits >> j & 1 for j in range(4)], bool) for bits in rows}
    return [
        np.array([lines[a], lines[b], lines[c], lines[d]])
        for a in rows
        for b in rows
        for c in rows
        for d in rows
    ]


def exact(S, mask):
    return sum((Fraction(float(x)) for x in S[np.asarray(mask, bool)]), Fraction(0))


def test_scores_that_scaling_would_lose():
    """Beyond 2^500 blocks are divided by a power of two, which takes what is far below; clipped
    ones are not that large.
    """
    S = np.random.default_rng(4).integers(1, 100, (8, 32)).astype(float)
    S[2, 5] = S[7, 20] = -1.7e308
    for scale in (1.0, 1e-200):
        scores = np.where(S < 0, S, S * scale)
        for text in ("2:4T", "4:8T", "<=4:8T"):
            result = nmsolve.solve(scores, text, scores=scores)
            assert result.status is nmsolve.Status.OPTIMAL
            assert result.verify(scores, scores).ok
            clipped = np.maximum(scores, -1e6 * scale)
            assert (
                abs(result.objective - nmsolve.solve(clipped, text, scores=clipped).objective)
                <= 1e-12 * result.objective
            )


@on_every_place
@pytest.mark.parametrize("text", ["2:4T", "4:8T", "<=4:8T"])
@pytest.mark.parametrize("penalty", [pytest.param(-1e12, marks=pytest.mark.long), -1e30])
def test_huge_penalties_on_devices(place, text, penalty):
    S = penalized(text, 5, 0.02, penalty, blocks=16)
    result = solve(place, torch.zeros(S.shape), text, scores=tensor(S))
    assert result.verify(torch.zeros(S.shape), tensor(S))
    result = type("View", (), {"status": result.status, "mask": result.mask.cpu().numpy()})
    check_penalized(result, S, text)


def with_large(text, how, factor, dtype, seed=6, blocks=40):
    """N(0, 1) blocks with one entry, a row, a column or a permutation of entries `factor` times as
    large.
    """
    m = parse(text).m
    rng = np.random.default_rng(seed)
    S = np.abs(rng.standard_normal((blocks, m, m)))
    for block in S:
        if how == "entry":
            block[rng.integers(m), rng.integers(m)] *= factor
        elif how == "row":
            block[rng.integers(m)] *= factor
        else:
            block[:, rng.integers(m)] *= factor
    return S.astype(dtype)


def check_rest(S, masks, text, limit):
    """What is kept of the others is the most that masks with the same large entries keep of
    them.
    """
    pattern = parse(text)
    for block, mask in zip(S.astype(np.float64), masks, strict=True):
        large = block > limit
        forced = np.where(large, np.where(mask, 1e3, -1e3), block)
        optimum = flow.optimum(forced, pattern.n, pattern.at_most)[0].astype(bool)
        assert (mask & large).sum() == (optimum & large).sum()
        assert (
            block[optimum & ~large].sum() - block[mask & ~large].sum()
            <= 1e-6 * block[optimum & ~large].sum()
        )


@pytest.mark.parametrize("text", ["2:4T", "1:4T", *rare("3:4T"), "<=2:4T", "4:8T", "<=4:8T", "2:4"])
@pytest.mark.parametrize("how", ["entry", "row", "column"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_rest_of_a_block_is_optimal_for_itself(text, how, dtype):
    pattern = parse(text)
    if not pattern.transposable:
        W = np.random.default_rng(6).standard_normal((40, 4)).astype(dtype)
        W[:, 1] *= 1e7
        result = nmsolve.solve(W, text)
        assert np.array_equal(result.mask, np.sort(np.abs(W), axis=1)[:, 2:3] <= np.abs(W))
        return
    S = with_large(text, how, 1e7, dtype)
    W = np.concatenate(list(S), axis=1)
    result = nmsolve.solve(W, text)
    assert result.status is nmsolve.Status.OPTIMAL
    assert result.verify(W).ok
    check_rest(S, split(result.mask, pattern.m, pattern.m), text, 1e3)


def test_integers_beside_one_large_entry():
    """Ties are separated by offsets that are a share of the largest score, here of one that hides
    all the others.
    """
    rng = np.random.default_rng(7)
    S = rng.integers(1, 100, (40, 8, 8)).astype(np.float32)
    for block in S:
        block[rng.integers(8), rng.integers(8)] = 1e9
    W = np.concatenate(list(S), axis=1)
    result = nmsolve.solve(W, "4:8T")
    assert result.status is nmsolve.Status.OPTIMAL
    check_rest(np.where(S == 1e9, 1e9, S / 100), split(result.mask, 8, 8), "4:8T", 1e3)


@on_every_place
@pytest.mark.parametrize("text", ["2:4T", "<=2:4T", "4:8T"])
@pytest.mark.parametrize("how", ["entry", "column"])
def test_the_rest_is_optimal_on_devices(place, text, how):
    m = parse(text).m
    S = with_large(text, how, 1e7, np.float32, blocks=20)
    W = np.concatenate(list(S), axis=1)
    result = solve(place, tensor(W), text)
    assert result.status is nmsolve.Status.OPTIMAL
    assert result.verify(tensor(W))
    check_rest(S, split(result.mask.cpu().numpy(), m, m), text, 1e3)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_enumerating_exactly(n):
    rng = np.random.default_rng(n)
    masks = list(brute.blocks(n, 4))
    assert len(codes(n, 4)) == len(masks)
    assert len(codes(n, 8)) == 0
    for trial in range(20):
        S = (
            rng.choice([-1, 1], (4, 4)) * 10.0 ** rng.uniform(-9, 9, (4, 4))
            if trial % 2
            else rng.integers(-3, 9, (4, 4)) * 1.0
        )
        S[rng.integers(4), rng.integers(4)] *= 10.0 ** (trial % 10)
        kept = np.zeros((4, 4), np.uint8)
        enumerate_exactly(S, codes(n, 4), kept)
        most = max(exact(S, mask) for mask in masks)
        assert most - exact(S, kept) <= abs(most) * Fraction(2.0**-95)


def test_sums_in_twice_the_precision():
    values = [1e30, 3.0, -1e30, 2.0**-40, 7.0, 1e15]
    high, low = 0.0, 0.0
    for value in values:
        high, low = add.py_func(high, low, value)
    assert Fraction(high) + Fraction(low) == sum(map(Fraction, values))


def test_what_is_clipped():
    S = np.array([[1.0, 2, 3, 4], [5, 6, 7, 8], [9, 8, 7, 6], [5, 4, 3, 2]])
    assert bound_above(S, 2, False, 0.0) == np.inf
    assert bound_above(S, 2, True, 0.0) == np.inf
    S[1, 2] = 1e7
    assert 16 * 9 <= bound_above(S, 2, False, 0.0) < 1e7
    S[1, 0] = S[1, 1] = 2e7
    assert bound_above(S, 2, False, 0.0) == np.inf, (
        "three in a row, of different sizes: one has to go"
    )
    S[1, :3] = 1e7
    assert bound_above(S, 2, False, 0.0) < 1e7
    S[1, :3] = -1e7
    assert bound_above(S, 2, True, 0.0) < 1e7
    S = 1 + np.arange(16.0).reshape(4, 4) / 100
    S[0, 0] = 1e-9
    assert bound_above(S, 2, False, 0.0) == np.inf, "it is the others that are ordinary"


def test_what_is_apart():
    S = np.ones((4, 4))
    mask = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]], np.uint8)
    assert not is_apart(S, mask)
    S[0, 0] = 1e7
    assert is_apart(S, mask)
    S[1:] = 0
    assert not is_apart(S, mask), "nothing is not small"
    assert not is_apart(np.zeros((4, 4)), mask)
