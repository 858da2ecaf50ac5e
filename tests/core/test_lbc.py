"""LBC's candidates, their removal and the survivors' mask, against plain Python."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nmsolve


@given(m=st.integers(1, 10), data=st.data())
def test_candidates_are_lexicographic(m, data):
    n = data.draw(st.integers(1, m))
    table = nmsolve.combinations(nmsolve.Pattern(n, m))
    assert table.dtype == np.bool_
    assert [tuple(np.flatnonzero(row)) for row in table] == list(
        itertools.combinations(range(m), n)
    )


def test_paper_example():
    assert [tuple(np.flatnonzero(row)) for row in nmsolve.combinations("2:4")] == [
        (0, 1),
        (0, 2),
        (0, 3),
        (1, 2),
        (1, 3),
        (2, 3),
    ]


@pytest.mark.parametrize(
    ("pattern", "figure"), [("32:64", "1,832,624,140,942,590,534"), ("16:32", "601,080,390")]
)
def test_what_cannot_fit_is_refused_with_the_figure(pattern, figure):
    with pytest.raises(nmsolve.PatternError, match=figure):
        nmsolve.combinations(pattern)


@pytest.mark.parametrize("pattern", ["2:4T", "<=2:4"])
def test_patterns_without_candidates(pattern):
    with pytest.raises(nmsolve.PatternError, match="exactly n"):
        nmsolve.combinations(pattern)


@given(st.integers(1, 100), st.integers(0, 20), st.integers(1, 60), st.floats(0.5, 6))
def test_schedule(candidates, start, length, power):
    end = start + length
    removed = [
        nmsolve.removed_by(candidates, t, start=start, end=end, power=power)
        for t in range(start - 2, end + 3)
    ]
    assert removed == sorted(removed)
    assert removed[:3] == [0, 0, 0]
    assert removed[-3:] == [candidates - 1] * 3


def test_schedule_is_equation_6():
    for t in range(1, 61):
        exact = 5 * (1 - (1 - t / 60) ** 3)
        assert nmsolve.removed_by(6, t, start=0, end=60) == math.ceil(exact - 1e-9)
    # (C - 1) * (1 - (1 - 1/2)^3) = 8 * 7/8 is whole: no ulp may push it to 8.
    assert nmsolve.removed_by(9, 1, start=0, end=2) == 7


def plain_removal(scores, alive, removed):
    """Alg. 1, lines 7 and 8: of equal scores the later candidate goes first."""
    left = scores.shape[1] - removed
    after = alive.copy()
    for g in range(len(scores)):
        order = sorted(
            (c for c in range(scores.shape[1]) if alive[g, c]), key=lambda c: (scores[g, c], -c)
        )
        for c in order[: max(0, len(order) - left)]:
            after[g, c] = False
    return after


@given(
    seed=st.integers(0, 2**32 - 1),
    candidates=st.integers(1, 20),
    groups=st.integers(1, 6),
    levels=st.integers(1, 5),
    data=st.data(),
)
def test_removal_against_plain_python(seed, candidates, groups, levels, data):
    rng = np.random.default_rng(seed)
    dtype = data.draw(st.sampled_from([np.float32, np.float64, np.float16]))
    alive = np.ones((groups, candidates), bool)
    for removed in sorted(data.draw(st.lists(st.integers(0, candidates - 1), max_size=4))):
        scores = rng.integers(-levels, levels, (groups, candidates)).astype(dtype)
        before = alive.copy()
        expected = plain_removal(scores, alive, removed)
        assert nmsolve.remove_lowest(scores, alive, removed) is alive
        assert np.array_equal(alive, expected)
        assert not (alive & ~before).any(), "what was removed came back"
        assert (alive.sum(1) == np.minimum(before.sum(1), candidates - removed)).all()


@given(
    seed=st.integers(0, 2**32 - 1), m=st.integers(1, 8), groups=st.integers(1, 5), data=st.data()
)
def test_survivor_mask(seed, m, groups, data):
    n = data.draw(st.integers(1, m))
    table = nmsolve.combinations(nmsolve.Pattern(n, m))
    alive = np.random.default_rng(seed).random((groups, len(table))) < 0.5
    mask = nmsolve.survivor_mask(alive, table)
    for g in range(groups):
        kept = set().union(
            *(set(np.flatnonzero(table[c])) for c in range(len(table)) if alive[g, c]), set()
        )
        assert set(np.flatnonzero(mask[g])) == kept


def test_a_whole_run_ends_feasible():
    """From all candidates to one: the last mask is the highest-scored candidate, and exactly
    n:m.
    """
    rng = np.random.default_rng(3)
    table = nmsolve.combinations("3:6")
    scores = rng.standard_normal((50, len(table))).astype(np.float32)
    alive = np.ones(scores.shape, bool)
    for t in range(31):
        nmsolve.remove_lowest(scores, alive, nmsolve.removed_by(len(table), t, start=0, end=30))
    assert np.array_equal(np.flatnonzero(alive) % len(table), scores.argmax(1))
    assert nmsolve.verify(nmsolve.survivor_mask(alive, table), "3:6").ok


@pytest.mark.parametrize(
    ("scores", "alive", "removed", "message"),
    [
        (np.ones((2, 6)), np.ones((2, 5), bool), 1, "shape"),
        (np.ones((2, 6), int), np.ones((2, 6), bool), 1, "float"),
        (np.ones((2, 6)), np.ones((2, 6), np.uint8), 1, "bool"),
        (np.ones((2, 6)), np.ones((2, 6), bool), 6, "0 to 5"),
        (np.ones((2, 6)), np.ones((2, 6), bool), -1, "0 to 5"),
        (np.array([[1.0, np.nan]]), np.ones((1, 2), bool), 1, r"scores\[0, 1\] is nan"),
    ],
)
def test_bad_removals(scores, alive, removed, message):
    with pytest.raises(nmsolve.InputError, match=message):
        nmsolve.remove_lowest(scores, alive, removed)


def test_scores_of_the_dead_do_not_matter():
    alive = np.array([[True, False, True]])
    nmsolve.remove_lowest(np.array([[0.0, np.nan, 1.0]]), alive, 2)
    assert alive.tolist() == [[False, False, True]]


def test_bad_schedules_and_tables():
    with pytest.raises(nmsolve.InputError, match="start < end"):
        nmsolve.removed_by(6, 1, start=5, end=5)
    with pytest.raises(nmsolve.InputError, match="6"):
        nmsolve.survivor_mask(np.ones((1, 5), bool), nmsolve.combinations("2:4"))


@pytest.mark.parametrize("name", ["start", "end", "power"])
def test_numbers_too_large_for_a_schedule_are_named(name):
    sign = -1 if name == "start" else 1
    for value in (sign * 10**400, sign * 1e308, sign * math.inf):
        with pytest.raises(nmsolve.InputError, match=f"1e300 or less, got .* for {name}"):
            nmsolve.removed_by(6, 1, **({"start": 0, "end": 4, "power": 3} | {name: value}))


def test_large_schedules_are_exact():
    assert nmsolve.removed_by(6, 10**400, start=0, end=4) == 5
    assert nmsolve.removed_by(6, -(10**400), start=0, end=4) == 0
    assert nmsolve.removed_by(6, 0.0, start=-8e299, end=8e299) == nmsolve.removed_by(
        6, 2, start=0, end=4
    )
    assert nmsolve.removed_by(10**400, 4 - 1e-9, start=0, end=4) == 10**400 - 1
    assert 0 < nmsolve.removed_by(2**60, 3.9999999, start=0, end=4) < 2**60
