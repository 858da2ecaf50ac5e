"""Matrices of several tasks: every part of the work is done, once, and in its place. Checked
without the library's own sums.
"""

import dataclasses
import math

import numpy as np
import pytest

import nmsolve
from nmsolve.blocks import TASK_WEIGHTS, BlockMatrix


def line_counts(mask, pattern):
    m = pattern.m
    yield mask.reshape(mask.shape[0], -1, m).sum(2)
    if pattern.transposable:
        yield mask.reshape(-1, m, mask.shape[1]).sum(1)


@pytest.mark.parametrize("method", ["exact", "greedy"])
@pytest.mark.parametrize("text", ["2:4", "2:4T", "4:8T"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
def test_several_tasks_are_all_solved(text, dtype, method):
    pattern = nmsolve.Pattern.parse(text)
    rows = 2 * TASK_WEIGHTS // 512 + 24 if method == "exact" else 1048
    W = (np.random.default_rng(5).standard_normal((rows, 512)) * 20).astype(dtype)
    matrix = BlockMatrix(W, W, "f4", True, pattern)
    assert len(list(matrix.tasks())) >= 3
    result = nmsolve.solve(W, pattern, method=method, threads=2)
    for counts in line_counts(result.mask, pattern):
        assert (counts == pattern.n).all()
    kept = np.abs(W.astype(np.float64))[result.mask]
    assert result.objective == pytest.approx(math.fsum(kept.tolist()), rel=1e-12)
    cut = rows // 2 // 8 * 8
    halves = [nmsolve.solve(part, pattern, method=method).mask for part in (W[:cut], W[cut:])]
    assert np.array_equal(result.mask, np.concatenate(halves))


@pytest.mark.parametrize("padding", ["pad", "dense"])
def test_several_tasks_with_an_edge(padding):
    W = np.random.default_rng(6).standard_normal((1337, 1003)).astype(np.float32)
    result = nmsolve.solve(W, "4:8T", padding=padding)
    inside = result.mask[:1336, :1000]
    assert (inside.reshape(1336, -1, 8).sum(2) == 4).all()
    assert result.objective == pytest.approx(
        math.fsum(np.abs(W.astype(float))[result.mask].tolist()), rel=1e-12
    )
    if padding == "dense":
        assert result.mask[1336:].all()
        assert result.mask[:, 1000:].all()
        assert (inside.reshape(-1, 8, 1000).sum(1) == 4).all()
    else:
        assert (result.mask[:, 1000:].sum(1) <= 3).all()


def test_negative_duals_prove_nothing_at_most():
    """Shifting rows against columns leaves the formula's value, but at most n needs duals that are
    not negative.
    """
    W = np.random.default_rng(7).standard_normal((16, 16))
    result = nmsolve.solve(W, "<=4:8T", duals=True)
    result.verify(W)
    shift = float(result.duals.rows.max()) + 1
    moved = nmsolve.Duals(rows=result.duals.rows - shift, columns=result.duals.columns + shift)
    with pytest.raises(nmsolve.SolverError, match="dual"):
        dataclasses.replace(result, duals=moved).verify(W)
