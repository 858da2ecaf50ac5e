"""The linear and the integer program of one block, with SciPy's HiGHS."""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import coo_array


def _sums(m):
    """The (2 m, m²) matrix that takes the row sums, then the column sums, of a block."""
    entry = np.arange(m * m)
    lines = np.concatenate([entry // m, m + entry % m])
    return coo_array(
        (np.ones(2 * m * m), (lines, np.concatenate([entry, entry]))), shape=(2 * m, m * m)
    ).tocsr()


def _scaled(block):
    """The block over a power of two, and that power: HiGHS has absolute tolerances, so its numbers
    must be about one.
    """
    S = np.asarray(block, np.float64)
    exponent = int(np.frexp(np.abs(S).max())[1])
    return np.ldexp(S, -exponent), exponent


def _mask(x, m):
    X = x.reshape(m, m)
    if not np.all(np.abs(X - np.rint(X)) < 1e-6):
        raise ArithmeticError("HiGHS returned a solution that is not integral")
    return np.rint(X) == 1


def linear(block, n, at_most=False):
    """maximise Σ S_ij X_ij, 0 ≤ X ≤ 1, row and column sums = n (at most: ≤ n): mask, objective, and
    the duals u, v of the sums.
    """
    S, exponent = _scaled(block)
    m = len(S)
    sums = (
        {"A_ub": _sums(m), "b_ub": np.full(2 * m, n)}
        if at_most
        else {"A_eq": _sums(m), "b_eq": np.full(2 * m, n)}
    )
    solution = linprog(-S.ravel(), bounds=(0, 1), method="highs-ds", **sums)
    if solution.status != 0:
        raise ArithmeticError(solution.message)
    mask = _mask(solution.x, m)
    potentials = -np.ldexp((solution.ineqlin if at_most else solution.eqlin).marginals, exponent)
    if at_most:
        potentials = np.maximum(potentials, 0.0)
    return (
        mask,
        math.fsum(np.asarray(block, np.float64)[mask].tolist()),
        potentials[:m],
        potentials[m:],
    )


def integer(block, n, at_most=False):
    """The same with X ∈ {0, 1}, by branch and bound: mask and objective."""
    S, _ = _scaled(block)
    m = len(S)
    constraints = LinearConstraint(_sums(m), -np.inf if at_most else n, n)
    solution = milp(
        -S.ravel(),
        constraints=constraints,
        bounds=Bounds(0, 1),
        integrality=np.ones(m * m),
        options={"mip_rel_gap": 0},
    )
    if solution.status != 0:
        raise ArithmeticError(solution.message)
    mask = _mask(solution.x, m)
    return mask, math.fsum(np.asarray(block, np.float64)[mask].tolist())
