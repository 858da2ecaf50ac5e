"""`MaskResult.stats`: its keys are the documented ones, and its seconds are those of solving."""

import re
import time

import numpy as np
import pytest

import nmsolve
from nmsolve import solvers
from nmsolve.solvers import ascent, greedy

ALWAYS = {"threads", "seconds", "weights_per_second"}
LEVELS = {f"proven_at_level_{level}" for level in range(ascent.LEVELS)}
BY_SOLVER = {
    solvers.ROWWISE: {"groups", "unproven"},
    solvers.ENUMERATION: {"enumerated", "unproven"},
    solvers.ASCENT: {*LEVELS, "augmented", "paths", "unproven"},
    solvers.GREEDY: {"blocks", "completed", "solved_exactly"},
    solvers.COVER: {"blocks", "completed", "solved_exactly"},
    solvers.MIN_COST_FLOW: {"blocks", "scaling_error", "unproven"},
}
W = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)


def documented():
    """The keys in the Attributes of `MaskResult`: those in `backticks` at the start of a line or
    after a semicolon.
    """
    text = nmsolve.MaskResult.__doc__.partition("    stats : ")[2].partition("    pattern : ")[0]
    keys = set(re.findall(r"`(\w+)`(?:: | to |\.$)", text, re.MULTILINE)) | {"threads"}
    return (keys - {"proven_at_level_0", "proven_at_level_3"}) | LEVELS


@pytest.mark.parametrize(("text", "method", "scored", "solver"), [
    ("2:4", "exact", False, solvers.ROWWISE),
    ("2:4", "greedy", False, solvers.ROWWISE),
    ("2:4T", "exact", False, solvers.ENUMERATION),
    ("4:8T", "auto", False, solvers.ASCENT),
    ("2:4T", "exact", True, solvers.ASCENT),
    ("4:8T", "greedy", False, solvers.GREEDY),
    ("4:8T", "cover", False, solvers.COVER),
    ("4:8T", "min_cost_flow", False, solvers.MIN_COST_FLOW),
])  # fmt: skip
@pytest.mark.parametrize("duals", [False, True])
def test_keys_of_every_method(text, method, scored, solver, duals):
    if method == "min_cost_flow":
        pytest.importorskip("ortools")
    scores = -abs(W) if scored else None
    result = nmsolve.solve(W, text, scores, method=method, duals=duals)
    assert set(result.stats) == ALWAYS | BY_SOLVER[solver]
    assert all(isinstance(value, (int, float)) for value in result.stats.values())
    assert result.stats["weights_per_second"] == W.size / result.stats["seconds"]


def test_keys_are_documented():
    on_a_device = {"solved_on_host"}
    assert documented() == ALWAYS.union(on_a_device, *BY_SOLVER.values())


@pytest.mark.parametrize("duals", [False, True])
def test_seconds_are_without_the_compiling_of_kernels(duals, monkeypatch):
    """With a clock that only compiling moves fast: a tick at each look, an hour a compilation."""
    now = 0.0

    def look():
        nonlocal now
        now += 1e-3
        return now

    def slow(make):
        def compiling(*arguments):
            nonlocal now
            now += 3600.0
            return make(*arguments)

        return compiling

    monkeypatch.setattr(time, "perf_counter", look)
    monkeypatch.setattr(greedy, "make", slow(greedy.make))
    monkeypatch.setattr(ascent, "make", slow(ascent.make))
    result = nmsolve.solve(W, "4:8T", method="greedy", duals=duals)
    assert now > 3600 * (2 if duals else 1)
    assert 0 < result.stats["seconds"] < 1
