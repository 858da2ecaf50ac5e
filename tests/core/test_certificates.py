"""Certificates: weak and strong duality, recomputed here, and results that were tampered with."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

import nmsolve
from nmsolve import SolverError, Status
from reference import loops
from tests.core.families import (
    assert_certified,
    assert_optimal,
    best,
    draw,
    family_names,
    magnitude,
    parse,
    seeds,
    tolerance,
    total_of,
)


def test_duals_of_a_batch_lie_with_their_blocks():
    W = np.random.default_rng(0).standard_normal((2, 3, 16, 24)).astype(np.float32)
    result = nmsolve.solve(W, "4:8T", duals=True)
    given = magnitude(W), parse("4:8T"), tolerance(W)
    assert_certified(result, *given, assert_optimal(result, *given))
    alone = nmsolve.solve(W[1, 2], "4:8T", duals=True)
    assert result.duals.rows.shape == (2, 3, 16, 3)
    assert np.array_equal(result.duals.rows[1, 2], alone.duals.rows)
    assert np.array_equal(result.duals.columns[1, 2], alone.duals.columns)


def test_no_duals_unless_asked_for():
    W = np.ones((8, 8), np.float32)
    assert nmsolve.solve(W, "4:8T").duals is None


@pytest.mark.parametrize("text", ["2:4T", "<=2:4T", "4:8T", "<=4:8T", "2:4", "1:4T"])
@settings(max_examples=10)
@given(name=family_names, seed=seeds)
def test_bounds_hold_for_any_duals(text, name, seed):
    """The check that the checks rest on: random potentials never bound an optimum from below."""
    pattern, rng = parse(text), np.random.default_rng(seed)
    S = magnitude(draw(name, seed, (1, pattern.rows, pattern.m)))[0]
    top = float(S.max())
    u, v = rng.uniform(-top, top, (2, pattern.m))
    if pattern.at_most:
        u, v = abs(u), abs(v)
    bound = (
        loops.dual_bound(S, u, v, pattern.n)
        if pattern.transposable
        else loops.group_bound(S[0], u[0], pattern.n)
    )
    assert bound >= best(S, pattern) * (1 - 1e-13)


CASES = [
    (text, duals, dtype)
    for text in ("2:4T", "<=2:4T", "4:8T", "<=4:8T", "2:4", "<=4:8")
    for duals in (False, True)
    for dtype in (np.float32, np.float64)
]


@pytest.fixture(
    params=CASES,
    ids=lambda case: f"{case[0]}-{'duals' if case[1] else 'bare'}-{np.dtype(case[2]).name}",
)
def solved(request):
    text, duals, dtype = request.param
    W = np.random.default_rng(7).standard_normal((16, 24)).astype(dtype)
    result = nmsolve.solve(W, text, duals=duals)
    assert result.verify(W).ok
    return W, result


@pytest.fixture(params=["2:4T", "<=2:4T", "4:8T", "<=4:8T", "2:4", "<=4:8"])
def certified(request):
    W = np.random.default_rng(7).standard_normal((16, 24)).astype(np.float32)
    return W, nmsolve.solve(W, request.param, duals=True)


def flipped(mask, i, j):
    other = mask.copy()
    other[i, j] = not other[i, j]
    return other


def test_a_flipped_entry_fails(solved):
    W, result = solved
    for i, j in ((0, 0), (5, 17), (15, 23)):
        with pytest.raises(SolverError):
            replace(result, mask=flipped(result.mask, i, j)).verify(W)


def test_a_swapped_pair_in_a_row_fails(solved):
    W, result = solved
    mask = result.mask.copy()
    m = result.pattern.m
    kept, pruned = np.flatnonzero(mask[3, :m])[0], np.flatnonzero(~mask[3, :m])[0]
    mask[3, [kept, pruned]] = mask[3, [pruned, kept]]
    with pytest.raises(SolverError):
        replace(result, mask=mask).verify(W)


def test_a_feasible_but_worse_mask_fails(solved):
    """Feasible, and its own objective claimed correctly: only the certificate can tell."""
    W, result = solved
    m, rows = result.pattern.m, result.pattern.rows
    mask = result.mask.copy()
    mask[:rows, :m] = mask[:rows, :m][:, ::-1]
    S = magnitude(W)
    assert nmsolve.verify(mask, result.pattern).ok
    value = loops.objective(S, mask)
    assert value < result.objective * (1 - 1e-4)
    with pytest.raises(SolverError):
        replace(result, mask=mask).verify(W)
    with pytest.raises(SolverError):
        replace(result, mask=mask, objective=value).verify(W)
    with pytest.raises(SolverError):
        replace(
            result, mask=mask, objective=value, gap=(result.bound - value) / result.bound
        ).verify(W)
    with pytest.raises(SolverError):
        replace(result, mask=mask, objective=value, bound=value, gap=0.0).verify(W)
    lie = replace(result, mask=mask, objective=value, bound=value, gap=0.0, duals=None)
    with pytest.raises(SolverError):
        lie.verify(W)
    with pytest.raises(SolverError):
        replace(lie, status=Status.FEASIBLE).verify(W)
    honest = replace(
        result,
        mask=mask,
        objective=value,
        gap=(result.bound - value) / result.bound,
        status=Status.FEASIBLE,
    )
    assert honest.verify(W).ok


def test_a_mask_of_another_shape_or_dtype_fails(solved):
    W, result = solved
    for mask in (
        result.mask[:8],
        result.mask.astype(np.uint8),
        result.mask.T.copy(),
        result.mask[None],
        np.ones_like(result.mask),
    ):
        with pytest.raises(SolverError):
            replace(result, mask=mask).verify(W)


@pytest.mark.parametrize(
    "factor", [1.0001, 0.9999, 1 + 1e-9, 1 - 1e-9, 2.0, 0.0, -1.0, math.nan, math.inf]
)
def test_another_objective_fails(solved, factor):
    W, result = solved
    with pytest.raises(SolverError):
        replace(result, objective=result.objective * factor).verify(W)
    moved = result.objective * factor
    with pytest.raises(SolverError):
        replace(result, objective=moved, bound=moved, gap=0.0).verify(W)


@pytest.mark.parametrize("factor", [1.0001, 0.9999, 2.0, 0.0, -1.0, math.nan, math.inf])
def test_another_bound_fails(solved, factor):
    W, result = solved
    bound = result.bound * factor
    with pytest.raises(SolverError):
        replace(result, bound=bound).verify(W)
    with pytest.raises(SolverError):
        replace(
            result, bound=bound, gap=(bound - result.objective) / bound if bound else 0.0
        ).verify(W)


@pytest.mark.parametrize("factor", [0.9999, 0.5, -1.0])
def test_a_bound_below_the_optimum_fails_for_a_feasible_result_too(solved, factor):
    W, result = solved
    bound = result.bound * factor
    with pytest.raises(SolverError):
        replace(
            result, bound=bound, gap=(bound - result.objective) / bound, status=Status.FEASIBLE
        ).verify(W)
    with pytest.raises(SolverError):
        replace(result, bound=bound, gap=0.0, status=Status.FEASIBLE).verify(W)


def test_a_bound_between_a_greedy_mask_and_the_optimum_fails():
    W = np.random.default_rng(7).standard_normal((16, 24)).astype(np.float32)
    result, best = nmsolve.solve(W, "2:4T", method="greedy"), nmsolve.solve(W, "2:4T")
    bound = (result.objective + best.objective) / 2
    assert result.objective < bound < best.objective
    with pytest.raises(SolverError, match="not an upper bound"):
        replace(result, bound=bound, gap=(bound - result.objective) / bound).verify(W)


def test_float64_is_held_to_a_tolerance_of_its_own():
    W = 1 + 1e-9 * np.random.default_rng(7).standard_normal((4, 4))
    best = nmsolve.solve(W, "2:4T")
    mask = np.roll(best.mask, 1, axis=0)
    objective = math.fsum(W[mask])
    worse = replace(best, mask=mask, objective=objective, gap=(best.bound - objective) / best.bound)
    assert 0 < best.objective - objective < 1e-8
    with pytest.raises(SolverError, match="status optimal is claimed"):
        worse.verify(W)
    assert replace(worse, status=Status.FEASIBLE).verify(W).ok


@pytest.mark.parametrize("gap", [1e-4, -1e-4, 1.0, math.nan, math.inf, None])
def test_another_gap_fails(solved, gap):
    W, result = solved
    with pytest.raises(SolverError):
        replace(result, gap=gap).verify(W)


def test_optimal_without_a_bound_fails(solved):
    W, result = solved
    with pytest.raises(SolverError):
        replace(result, bound=None, gap=None).verify(W)
    with pytest.raises(SolverError):
        replace(result, bound=None).verify(W)
    assert replace(result, bound=None, gap=None, duals=None, status=Status.FEASIBLE).verify(W).ok


def test_other_duals_fail(certified):
    """Duals that prove another bound than the one claimed. (Small moves may leave the bound as it
    is: duals are not unique.)
    """
    W, result = certified
    rows = result.duals.rows
    one = rows.copy()
    one[2, 1] += 10
    changed = [replace(result.duals, rows=other) for other in (rows + 10, rows - 10, rows * 3, one)]
    if result.duals.columns is not None:
        columns = result.duals.columns
        one = columns.copy()
        one[1, 7] += 10
        changed += [
            replace(result.duals, columns=other) for other in (columns + 10, columns - 10, one)
        ]
    for duals in changed:
        with pytest.raises(SolverError):
            replace(result, duals=duals).verify(W)


@pytest.mark.parametrize("far", [1e17, 1e20, 1e300])
def test_duals_that_are_shifted_far_away_prove_nothing(far):
    """Rows up and columns down by the same: S − u − v is what it was, but for what floating point
    loses of S.
    """
    W = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    result = nmsolve.solve(W, "2:4T", duals=True)
    worse = ~result.mask
    value = float(np.abs(W.astype(np.float64))[worse].sum())
    moved = nmsolve.Duals(
        rows=np.full_like(result.duals.rows, far), columns=np.full_like(result.duals.columns, -far)
    )
    lie = replace(result, mask=worse, objective=value, bound=value, gap=0.0, duals=moved)
    with pytest.raises(nmsolve.SolverError):
        lie.verify(W)


def test_a_bound_just_below_the_objective_fails():
    W = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    result = nmsolve.solve(W, "2:4")
    with pytest.raises(nmsolve.SolverError, match="below the objective"):
        replace(result, bound=result.objective * (1 - 9e-7), gap=0.0).verify(W)
    for field in ({"pattern": "2:4"}, {"pattern": None}, {"scored": "nonsense"}):
        with pytest.raises(nmsolve.SolverError, match="is not a Pattern"):
            replace(result, **field).verify(W)


def test_duals_of_another_shape_or_nan_fail(certified):
    W, result = certified
    rows = result.duals.rows
    changed = [
        replace(result.duals, rows=other)
        for other in (rows[:-1], rows.T, rows * math.nan, rows + math.inf)
    ]
    if result.duals.columns is not None:
        columns = result.duals.columns
        changed += [
            replace(result.duals, columns=other)
            for other in (None, columns[:-1], columns * math.nan)
        ]
    for duals in changed:
        with pytest.raises(SolverError):
            replace(result, duals=duals).verify(W)


def test_other_weights_fail(solved):
    W, result = solved
    other = W.copy()
    i, j = np.argwhere(result.mask)[0]
    other[i, j] *= 1.01
    with pytest.raises(SolverError):
        result.verify(other)
    pruned = W.copy()
    i, j = np.argwhere(~result.mask)[0]
    pruned[i, j] = 100.0
    with pytest.raises(SolverError):
        result.verify(pruned)


def test_a_heuristic_relabelled_optimal_fails():
    W = np.random.default_rng(3).standard_normal((64, 64)).astype(np.float32)
    for method in ("greedy", "cover"):
        for text in ("4:8T", "<=4:8T"):
            for duals in (False, True):
                result = nmsolve.solve(W, text, method=method, duals=duals)
                assert result.status is Status.FEASIBLE
                assert result.verify(W).ok
                with pytest.raises(SolverError):
                    replace(result, status=Status.OPTIMAL).verify(W)
                with pytest.raises(SolverError):
                    replace(result, status=Status.OPTIMAL, bound=result.objective, gap=0.0).verify(
                        W
                    )
                with pytest.raises(SolverError):
                    replace(
                        result, status=Status.OPTIMAL, bound=result.objective, gap=0.0, duals=None
                    ).verify(W)


def test_verify_needs_what_was_solved():
    W = np.random.default_rng(3).standard_normal((8, 8)).astype(np.float32)
    by_weights, by_scores = nmsolve.solve(W, "4:8T"), nmsolve.solve(W, "4:8T", scores=W)
    with pytest.raises(nmsolve.InputError, match="scores"):
        by_scores.verify(W)
    with pytest.raises(nmsolve.InputError, match="scores"):
        by_weights.verify(W, W)
    assert by_scores.verify(W, W).ok


def test_one_worse_block_among_many_fails():
    """A small loss in one block of 4096 is above the tolerance only if the certificate is looked at
    closely.
    """
    W = np.random.default_rng(5).standard_normal((256, 256))
    for duals in (False, True):
        result = nmsolve.solve(W, "2:4T", duals=duals)
        mask = result.mask.copy()
        S, current = magnitude(W), mask[128:132, 64:68]
        orders = [current[list(p)] for p in ((1, 0, 2, 3), (0, 2, 1, 3), (0, 1, 3, 2))]
        losses = [
            loops.objective(S[128:132, 64:68], current) - loops.objective(S[128:132, 64:68], o)
            for o in orders
        ]
        loss, other = min((x, k) for k, x in enumerate(losses) if x > 0)
        mask[128:132, 64:68] = orders[other]
        value = loops.objective(S, mask)
        assert 0 < loss < 0.01 * result.objective
        with pytest.raises(SolverError):
            replace(result, mask=mask, objective=value, bound=value, gap=0.0).verify(W)


def test_enumeration_is_optimal_only_if_its_bound_closes(monkeypatch):
    """A planted fault, a bound that allows for far too much rounding: the status must follow the
    numbers.
    """
    from nmsolve.solvers import enumeration

    W = np.random.default_rng(2).standard_normal((64, 64)).astype(np.float32)
    assert nmsolve.solve(W, "2:4T").status is nmsolve.Status.OPTIMAL
    monkeypatch.setattr(enumeration, "ROUNDINGS", 100)
    loose = nmsolve.solve(W, "2:4T")
    assert loose.gap > 1e-6
    assert loose.status is nmsolve.Status.FEASIBLE


@pytest.mark.parametrize("text", ["2:4T", "<=2:4T", "4:8T", "<=4:8T", "2:4", "<=2:4"])
@pytest.mark.parametrize("padding", ["error", "pad", "dense"])
@pytest.mark.parametrize("scored", ["weights", "scores"])
@pytest.mark.parametrize("duals", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_worse_mask_of_one_tiny_block_fails(text, padding, scored, duals, dtype):
    """Beside the whole matrix the loss is nothing, so that only a look at each block can tell; all
    else is stated consistently.
    """
    pattern = parse(text)
    m, rows = pattern.m, pattern.rows
    W = (
        np.random.default_rng(9)
        .standard_normal((3, 16, 24) if padding == "error" else (3, 21, 27))
        .astype(dtype)
    )
    W = abs(W) if scored == "scores" else W
    block = (2, slice(8, 8 + rows), slice(16, 16 + m))
    W[block] *= 1e-9 if dtype is np.float32 else 1e-14
    given = (W, W) if scored == "scores" else (W,)
    result = nmsolve.solve(
        W, text, scores=W if scored == "scores" else None, padding=padding, duals=duals
    )
    assert result.verify(*given).ok
    mask = result.mask.copy()
    mask[block] = mask[block][:, ::-1]
    values = [
        loops.objective(magnitude(W)[block], kept) for kept in (mask[block], result.mask[block])
    ]
    assert values[0] < 0.95 * values[1]
    value = total_of(magnitude(W), mask)
    assert result.bound - value <= tolerance(W) * value, "within the tolerance of the whole"
    lie = replace(
        result, mask=mask, objective=value, gap=max(0.0, (result.bound - value) / result.bound)
    )
    with pytest.raises(SolverError, match=r"optimal.*block at index \[2, 8, 16\]"):
        lie.verify(*given)
    assert replace(lie, status=Status.FEASIBLE).verify(*given).ok


def test_the_block_is_named_in_a_padded_batch():
    W = np.random.default_rng(3).standard_normal((2, 2, 10, 10))
    result = nmsolve.solve(W, "2:4T", padding="pad")
    mask = result.mask.copy()
    mask[1, 0, 4:8, 4:8] = ~mask[1, 0, 4:8, 4:8]
    value = total_of(magnitude(W), mask)
    lie = replace(result, mask=mask, objective=value, gap=(result.bound - value) / result.bound)
    with pytest.raises(SolverError, match=r"block at index \[1, 0, 4, 4\] keeps"):
        lie.verify(W)


@pytest.mark.parametrize("text", ["2:4", "2:4T", "4:8T"])
def test_an_edge_block_is_checked_too(text):
    """What padding keeps of it is not in the mask, and what it keeps itself still has a bound."""
    pattern = parse(text)
    W = np.random.default_rng(4).standard_normal((19, 23)).astype(np.float32)
    W[16:, :8] *= 1e-8
    result = nmsolve.solve(W, text, padding="pad")
    assert result.verify(W).ok
    mask = result.mask.copy()
    part = mask[16 : 16 + pattern.rows, : pattern.m]
    part[...] = np.roll(part, 1, axis=1)
    value = total_of(magnitude(W), mask)
    with pytest.raises(SolverError, match=r"block at index \[16, 0\]"):
        replace(
            result, mask=mask, objective=value, gap=(result.bound - value) / result.bound
        ).verify(W)


@pytest.mark.parametrize("duals", ["rows", "columns"])
@pytest.mark.parametrize("kind", [object, np.complex128, np.bool_, "U3"])
def test_duals_that_are_no_real_numbers_fail(duals, kind):
    W = np.random.default_rng(6).standard_normal((8, 8))
    result = nmsolve.solve(W, "2:4T", duals=True)
    other = replace(result.duals, **{duals: getattr(result.duals, duals).astype(kind)})
    with pytest.raises(SolverError, match="duals"):
        replace(result, duals=other).verify(W)


def test_a_task_says_what_is_open():
    from nmsolve.solvers import TaskResult

    with pytest.raises(TypeError, match="open"):
        TaskResult(objective=1.0, bound=1.0, stats={})


@pytest.fixture
def table(monkeypatch):
    """Return what makes a solver the only one there is, for a test."""
    from nmsolve import solvers

    def forget():
        solvers.serving.cache_clear()
        solvers.solver_for.cache_clear()

    def plant(solver):
        monkeypatch.setattr(solvers, "SOLVERS", (solver,))
        forget()

    yield plant
    monkeypatch.undo()
    forget()


def claiming(monkeypatch, still_open, bound):
    """Greedy's masks, of which a planted solver states this and that."""
    from nmsolve.solvers import TaskResult, greedy

    def make(*arguments):
        run = honest(*arguments)

        def claim(*task):
            value = run(*task).objective
            return TaskResult(value, None if bound is None else bound * value, still_open, {})

        return claim

    honest = greedy.make
    monkeypatch.setattr(greedy, "make", make)


@pytest.mark.parametrize(("still_open", "bound", "status"), [
    (1, 1.0, Status.FEASIBLE),
    (0, 1.0, Status.OPTIMAL),
    (0, None, Status.FEASIBLE),
    (0, 1.001, Status.FEASIBLE),
])  # fmt: skip
def test_optimal_is_what_a_solver_says_and_sums_do_not_contradict(
    still_open, bound, status, monkeypatch, table
):
    from nmsolve import solvers

    claiming(monkeypatch, still_open, bound)
    proving = replace(solvers.GREEDY, exact=True, proves=True)
    table(proving)
    W = np.random.default_rng(8).standard_normal((32, 32)).astype(np.float32)
    result = nmsolve.solve(W, "2:4T", method="greedy")
    assert result.status is status
    assert result.stats["unproven"] == still_open
    if status is Status.OPTIMAL:  # the claim is the planted solver's; verify does not believe it
        with pytest.raises(SolverError, match="bound"):
            result.verify(W)


@pytest.mark.parametrize("duals", [False, True])
@pytest.mark.parametrize("method", ["greedy", "cover"])
def test_a_solver_that_does_not_prove_is_never_optimal(method, duals, monkeypatch):
    """Neither where the mask happens to be optimal nor where its runs say so."""
    claiming(monkeypatch, 0, 1.0)
    W = np.kron(np.ones((4, 4)), np.eye(4, dtype=np.float32))
    result = nmsolve.solve(W, "1:4T", method=method, duals=duals)
    assert result.objective == result.bound == 64
    assert result.status is Status.FEASIBLE
    assert "unproven" not in result.stats
    assert result.verify(W).ok


def test_what_claims_the_optimum_without_proving_it_is_proven_by_duals(monkeypatch, table):
    """Greedy, described as min-cost flow is: its own counts are not believed."""
    from nmsolve import solvers

    claiming(monkeypatch, 0, 1.0)
    table(replace(solvers.GREEDY, exact=True))
    W = np.random.default_rng(8).standard_normal((32, 32)).astype(np.float32)
    result = nmsolve.solve(W, "2:4T", method="greedy")
    assert result.status is Status.FEASIBLE
    assert result.stats["unproven"] > 0
    assert result.bound > result.objective
    assert result.verify(W).ok


def test_min_cost_flow_is_proven_block_by_block():
    W = np.random.default_rng(8).standard_normal((8, 16)).astype(np.float32)
    result = nmsolve.solve(W, "2:4T", method="min_cost_flow")
    assert (result.status, result.stats["unproven"]) == (Status.OPTIMAL, 0)
    for method in ("greedy", "cover"):
        heuristic = nmsolve.solve(W, "2:4T", method=method)
        assert heuristic.status is Status.FEASIBLE
        assert "unproven" not in heuristic.stats
