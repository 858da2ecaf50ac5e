"""`choose`: agreement with every choice there is and with SciPy's branch and bound, bounds, limits,
and every path to a proof.
"""

import builtins
import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nmsolve import InputError, MissingDependencyError, Status
from nmsolve.torch.allocation import knapsack
from nmsolve.torch.allocation.knapsack import choose
from reference import knapsack as oracle

#: Few values make ties and dominated candidates; wide ones make every sum another.
LOSSES = st.one_of(st.integers(0, 5).map(float), st.floats(0, 100), st.floats(-5, 5))
WHOLE = st.one_of(
    st.integers(0, 6), st.integers(0, 10**12), st.integers(0, 20).map(lambda k: 4096 * k)
)
DECIMAL = st.one_of(st.integers(0, 30).map(lambda k: k / 10), st.floats(0, 1), st.floats(0, 1e-5))


@st.composite
def problems(draw, costs):
    layers = draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    loss = [draw(st.lists(LOSSES, min_size=k, max_size=k)) for k in layers]
    cost = [draw(st.lists(costs, min_size=k, max_size=k)) for k in layers]
    low, high = (math.fsum(map(pick, cost)) for pick in (min, max))
    reachable = math.fsum(row[draw(st.integers(0, len(row) - 1))] for row in cost)
    limit = draw(
        st.sampled_from(
            [low, high, reachable, low + 0.5 * (high - low), math.nextafter(reachable, math.inf)]
        )
    )
    return loss, cost, limit


def total(rows, choices):
    return math.fsum(row[j] for row, j in zip(rows, choices, strict=True))


def check(found, losses, costs, limit, optimum, rounding=0.0):
    """What is always true of an answer."""
    size = math.fsum(max(map(abs, row)) for row in losses)
    assert total(costs, found.choices) <= limit + rounding
    assert found.objective == total(losses, found.choices)
    assert found.bound <= found.objective
    assert found.objective >= optimum
    assert found.bound <= optimum + 1e-14 * size
    closed = found.objective - found.bound <= 1e-9 * abs(found.objective)
    assert (found.status is Status.OPTIMAL) == closed


@settings(max_examples=300, deadline=None)
@given(problems(WHOLE))
@example(([[0.0, 1.0]], [[0, 0]], 0.0))
@example(([[1.0, 5e-324], [1.0, 0.0]], [[0, 10**12], [0, 1]], 10**12))
def test_every_choice_there_is(problem):
    losses, costs, limit = problem
    found = choose(losses, costs, limit)
    _, optimum = oracle.brute(losses, costs, limit)
    check(found, losses, costs, limit, optimum)
    assert found.objective <= optimum + 1e-9 * abs(optimum) + 1e-13 * math.fsum(
        max(map(abs, row)) for row in losses
    )


@settings(max_examples=300, deadline=None)
@given(problems(DECIMAL))
def test_every_choice_there_is_with_costs_in_decimals(problem):
    losses, costs, limit = problem
    rounding = len(costs) * 2.0**-50 * math.fsum(map(max, costs))
    strict, loose = (oracle.brute(losses, costs, limit + more) for more in (0.0, rounding))
    if loose is None:
        with pytest.raises(InputError, match="below the smallest cost"):
            choose(losses, costs, limit)
        return
    if strict is None:
        return
    found = choose(losses, costs, limit)
    check(found, losses, costs, limit, loose[1], rounding)
    assert found.objective <= strict[1] + 1e-9 * abs(strict[1]) + 1e-13 * math.fsum(
        max(map(abs, row)) for row in losses
    )


@settings(max_examples=300, deadline=None)
@given(problems(st.integers(0, 30)), st.sampled_from([1e-6, 1e-3, 0.1, 1 / 3, 7.3]))
@example(([[9.0, 5.0, 0.0]] * 4, [[2, 5, 10]] * 4, 30), 1e-6)
@example(([[9.0, 5.0, 0.0]] * 3, [[3, 6, 9]] * 3, 18), 1e-3)
@example(([[0.0, 0.0, 0.0, 0.5, -1.0]], [[1, 1, 1, 0, 2]], 1.0), 1e-6)
def test_the_unit_of_costs_does_not_matter(problem, unit):
    losses, costs, limit = problem
    limit = math.floor(limit)
    expected = choose(losses, costs, limit)
    found = choose(losses, [[unit * cost for cost in row] for row in costs], unit * limit)
    size = math.fsum(max(map(abs, row)) for row in losses)
    assert found.objective == pytest.approx(expected.objective, rel=1e-9, abs=1e-13 * size)
    if abs(expected.objective) > 1e-4 * size:  # rounding moves bounds by 1e-14 of the losses
        assert found.status is expected.status


def rows(rng, layers, candidates, kind):
    """Losses and costs of layers: convex and falling as masks lose, independent, or almost
    proportional.
    """
    sizes = rng.choice([48, 96, 160, 464], (layers, 1)) * 64
    kept = np.arange(1, candidates + 1) / candidates
    if kind == "masks":
        losses = (
            sizes
            * rng.lognormal(-3, 0.5, (layers, 1))
            * (1 - kept) ** 2
            * rng.uniform(0.99, 1.01, (layers, candidates))
        )
        costs = np.rint(sizes * kept)
    elif kind == "random":
        losses, costs = (
            rng.random((layers, candidates)),
            rng.integers(0, 10**6, (layers, candidates)),
        )
    else:
        costs = np.sort(rng.integers(1, 10**6, (layers, candidates)))
        losses = 2 - costs / 1e6 + 1e-3 * rng.random((layers, candidates))
    return losses.tolist(), costs.tolist()


@pytest.mark.parametrize("kind", ["masks", "random", "proportional"])
@pytest.mark.parametrize("seed", range(4))
def test_scipys_branch_and_bound(kind, seed):
    rng = np.random.default_rng(seed)
    losses, costs = rows(rng, 12, 8, kind)
    low, high = (sum(map(pick, costs)) for pick in (min, max))
    limit = int(low + rng.uniform(0.1, 0.9) * (high - low))
    found = choose(losses, costs, limit)
    _, optimum = oracle.integer(losses, costs, limit)
    assert found.status is Status.OPTIMAL
    assert total(costs, found.choices) <= limit
    assert found.objective == pytest.approx(optimum, rel=1e-7)
    assert found.objective <= optimum * (
        1 + 1e-9
    )  # HiGHS may be a little past the limit, or short of the optimum; never this


@pytest.mark.parametrize("kind", ["masks", "proportional"])
@pytest.mark.parametrize("widths", [(), (4,), (1, 64)], ids=str)
def test_what_the_dynamic_program_does_not_prove_or_tools_does(kind, widths, monkeypatch):
    losses, costs = rows(np.random.default_rng(5), 10, 6, kind)
    limit = int(0.6 * sum(map(max, costs)))
    whole = choose(losses, costs, limit)
    called = []
    hand_over = knapsack.Core.hand_over
    monkeypatch.setattr(
        knapsack.Core,
        "hand_over",
        lambda core, deadline: (called.append(core), hand_over(core, deadline)),
    )
    monkeypatch.setattr(knapsack, "WIDTHS", widths)
    found = choose(losses, costs, limit)
    assert called or widths == (1, 64)
    assert whole.status is found.status is Status.OPTIMAL
    assert found.objective == pytest.approx(whole.objective, rel=1e-9)
    assert found.bound <= whole.objective


@pytest.mark.parametrize("width", [1, 2, 5, 30])
@pytest.mark.parametrize("kind", ["masks", "random", "proportional"])
def test_dropped_pairs_leave_a_bound_that_is_true(width, kind, monkeypatch):
    monkeypatch.setattr(knapsack, "WIDTHS", (width,))
    monkeypatch.setattr(knapsack.Core, "hand_over", lambda core, deadline: None)
    for seed in range(20):
        losses, costs = rows(np.random.default_rng(seed), 5, 5, kind)
        limit = int((0.2 + 0.03 * seed) * sum(map(max, costs)) + sum(map(min, costs)))
        check(
            choose(losses, costs, limit),
            losses,
            costs,
            limit,
            oracle.brute(losses, costs, limit)[1],
        )


@pytest.mark.parametrize("ticks", [0, 1, 2, 5, 9, 30])
def test_no_time_means_the_best_so_far_and_its_bound(ticks, monkeypatch):
    losses, costs = rows(np.random.default_rng(0), 60, 12, "proportional")
    limit = int(0.5 * sum(map(max, costs)))
    whole = choose(losses, costs, limit)
    clock = itertools.count()
    monkeypatch.setattr(knapsack.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(knapsack, "WIDTHS", (2**14,))
    monkeypatch.setattr(knapsack.Core, "hand_over", lambda core, deadline: None)
    found = choose(losses, costs, limit, time_limit=ticks)
    assert (whole.status, found.status) == (Status.OPTIMAL, Status.FEASIBLE)
    assert total(costs, found.choices) <= limit
    assert found.bound <= whole.objective <= found.objective


def test_or_tools_stopped_early_leaves_a_bound_that_is_true(monkeypatch):
    losses, costs = rows(np.random.default_rng(1), 100, 12, "proportional")
    limit = int(0.5 * sum(map(max, costs)) + 0.5 * sum(map(min, costs)))
    whole = choose(losses, costs, limit)
    monkeypatch.setattr(knapsack, "WIDTHS", ())
    found = choose(losses, costs, limit, time_limit=1.0)
    assert total(costs, found.choices) <= limit
    assert found.bound <= whole.objective <= found.objective
    assert (found.status is Status.OPTIMAL) == (
        found.objective - found.bound <= 1e-9 * found.objective
    )


def test_the_same_twice_and_the_first_of_equals():
    losses, costs = rows(np.random.default_rng(1), 100, 16, "masks")
    limit = int(0.5 * sum(map(max, costs)))
    assert choose(losses, costs, limit) == choose(losses, costs, limit)
    assert choose([[1.0, 1.0, 2.0, 1.0]], [[3, 2, 1, 2]], 3).choices == (1,)
    assert choose([], [], 1.0).objective == 0


def test_rounding_is_not_above_the_limit():
    for limit in (0.3, 0.1 + 0.2, 0.3 - 1e-17):
        found = choose([[0.0, 1.0], [0.0, 1.0]], [[0.1, 0.0], [0.2, 0.0]], limit)
        assert (found.objective, found.bound, found.status) == (0, 0, Status.OPTIMAL)
    assert choose([[0.0, 1.0], [0.0, 1.0]], [[0.1, 0.0], [0.2, 0.0]], 0.3 - 1e-14).objective == 1


def test_more_room_than_needed_is_exact():
    found = choose([[3.0, 0.1], [4.0, 0.2]], [[1, 5], [1, 5]], 1e30)
    assert (found.choices, found.objective, found.bound) == (
        (1, 1),
        math.fsum([0.1, 0.2]),
        math.fsum([0.1, 0.2]),
    )


def two_sizes():
    """Layers as in large language models: costs come in two sizes, and linear relaxations do not
    close.
    """
    kept = np.arange(1, 17)
    scale = np.random.default_rng(0).lognormal(0, 0.5, 60)
    losses = [(s * t * (1 - kept / 16) ** 2).tolist() for t in scale for s in (1.0, 2.6875)]
    costs = [(4096 * 256 * kept).tolist(), (11008 * 256 * kept).tolist()] * 60
    return losses, costs, int(0.47 * sum(map(max, costs)))


def test_counts_as_in_large_models():
    losses, costs, limit = two_sizes()
    found = choose(losses, costs, limit)
    assert found.status is Status.OPTIMAL
    assert total(costs, found.choices) <= limit
    assert found.objective - found.bound <= 1e-9 * found.objective


def test_errors(monkeypatch):
    with pytest.raises(InputError, match=r"limit 3 is below the smallest cost there is, 4\.0"):
        choose([[1.0], [1.0, 2.0]], [[1], [3, 4]], 3)
    for losses, costs in ([[]], [[]]), ([[1.0, 2.0]], [[1.0]]):
        with pytest.raises(InputError, match="every layer needs a candidate"):
            choose(losses, costs, 3)
    load = builtins.__import__

    def without(name, *rest):
        if name.startswith("ortools"):
            raise ImportError(name)
        return load(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr(knapsack, "WIDTHS", ())
    losses, costs = rows(np.random.default_rng(5), 10, 6, "masks")
    with pytest.raises(MissingDependencyError, match=r"pip install 'nmsolve\[ortools\]'"):
        choose(losses, costs, 0.6 * sum(map(max, costs)))
