"""Signed scores with penalties far larger than what matters: what is called optimal is, and
verifies.
"""

import numpy as np
import pytest

import nmsolve
from reference import flow


@pytest.mark.parametrize("penalty", [-1e4, -1e8, -1e20])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("text", ["<=2:4T", "2:4T", "4:8T", "<=4:8T"])
def test_optimal_beside_penalties(text, dtype, penalty):
    pattern = nmsolve.Pattern.parse(text)
    m = pattern.m
    rng = np.random.default_rng(21)
    optimal = 0
    for trial in range(8):
        S = (
            rng.integers(-2, 3, (m, m)).astype(dtype)
            if trial % 2
            else rng.standard_normal((m, m)).astype(dtype)
        )
        S[rng.random((m, m)) < (0.1 if trial % 4 < 2 else 0.4)] = penalty
        result = nmsolve.solve(S, pattern, scores=S)
        result.verify(S, S)
        _, best = flow.optimum(S.astype(np.float64), pattern.n, pattern.at_most)
        size = float(np.abs(S[result.mask].astype(np.float64)).sum())
        tolerance = (1e-6 if dtype is np.float32 else 1e-12) * size + 1e-12
        assert result.bound >= best - tolerance
        if result.status is nmsolve.Status.OPTIMAL:
            optimal += 1
            assert result.objective >= best - tolerance
    assert optimal >= 1


def test_penalties_that_broke_it():
    B = -1e8
    S = np.array([[-2, B, B, B], [-2, -1, 0, 0], [B, -2, -2, B], [-2, B, 0, B]], np.float32)
    result = nmsolve.solve(S, "<=2:4T", scores=S)
    result.verify(S, S)
    assert result.objective == 0

    S = np.random.default_rng(0).integers(-2, 3, (8, 8)) * 1.0
    S[0, 0] = S[3, 4] = -1e20
    result = nmsolve.solve(S, "4:8T", scores=S)
    result.verify(S, S)
    assert result.bound >= 26
    assert result.objective == 26 or result.status is nmsolve.Status.FEASIBLE


@pytest.mark.parametrize("value", [None, "optimal", 1])
def test_a_forged_status_fails(value):
    from dataclasses import replace

    W = np.random.default_rng(1).standard_normal((8, 8))
    result = nmsolve.solve(W, "2:4T")
    with pytest.raises(nmsolve.SolverError, match="status"):
        replace(result, status=value).verify(W)
    for field in ("objective", "bound", "gap"):
        with pytest.raises(nmsolve.SolverError, match=field):
            replace(result, **{field: "x"}).verify(W)
    with pytest.raises(nmsolve.SolverError, match="duals"):
        replace(result, duals="x").verify(W)
