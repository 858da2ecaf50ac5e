"""Transposable blocks as min-cost flow problems for OR-tools, one call per block: the backend of
the 2021 paper, for comparison.

Costs must be integers (float costs make flow codes loop or answer wrongly), so a block's scores are
scaled by the power of two that takes its largest to 2^47 … 2^48, and rounded. The rounding moves an
objective by at most n m / 2 units, which is reported.

The graph: every row supplies n units, every column demands n, and an arc of capacity one leads from
each row to each column. For at most, one more node takes what rows do not place and gives what
columns lack.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsolve.errors import MissingDependencyError, SolverError
from nmsolve.pattern import Pattern
from nmsolve.solvers import Run, TaskResult

#: Bits of the largest scaled score. OR-tools multiplies costs by the number of nodes (≤ 129) and
#: needs the total in 63 bits.
BITS = 48


def _flow() -> Any:
    try:
        from ortools.graph.python import min_cost_flow
    except ImportError as error:
        raise MissingDependencyError(
            "method 'min_cost_flow' needs OR-tools, which is not installed: pip install "
            "'nmsolve[ortools]', or use method='exact', which needs nothing and is faster"
        ) from error
    return min_cost_flow


def solve_block(S: NDArray[np.float64], n: int, at_most: bool) -> tuple[NDArray[np.bool_], float]:
    """Return the mask of one block (m, m) of finite scores, and the most that rounding may have
    cost it.
    """
    flow = _flow()
    m = S.shape[0]
    largest = float(np.abs(S).max())
    exponent = BITS - math.frexp(largest)[1] if largest else 0
    costs = -np.rint(np.ldexp(S, exponent)).astype(np.int64)
    rows, columns = np.divmod(np.arange(m * m), m)
    tails, heads, capacity = rows, columns + m, np.ones(m * m, np.int64)
    supplies = np.repeat([n, -n], m)
    if at_most:
        slack = np.arange(m)
        tails = np.concatenate([tails, slack, np.full(m, 2 * m)])
        heads = np.concatenate([heads, np.full(m, 2 * m), slack + m])
        capacity = np.concatenate([capacity, np.full(2 * m, n)])
        supplies = np.append(supplies, 0)
    unit_costs = np.concatenate([costs.ravel(), np.zeros(len(tails) - m * m, np.int64)])
    problem = flow.SimpleMinCostFlow()
    arcs = problem.add_arcs_with_capacity_and_unit_cost(tails, heads, capacity, unit_costs)
    problem.set_nodes_supplies(np.arange(len(supplies)), supplies)
    status = problem.solve()
    if status != problem.OPTIMAL:
        raise SolverError(
            f"OR-tools' min-cost flow ended with status {status} on a block of shape {S.shape} "
            f"with n = {n}"
        )
    mask = problem.flows(arcs[: m * m]).reshape(m, m) > 0
    return mask, math.ldexp(n * m, -exponent)


def make(pattern: Pattern, kind: str, absolute: bool, tolerance: float) -> Run:
    """Return OR-tools as a solver. It proves nothing: the caller does, with duals."""
    _flow()
    n, m = pattern.n, pattern.m

    def run(X: NDArray[Any], mask: NDArray[Any], first: int, last: int) -> TaskResult | None:
        objective, error = 0.0, 0.0
        for r in range(first * m, last * m, m):
            for c in range(0, X.shape[1], m):
                S = np.abs(X[r : r + m, c : c + m]) if absolute else X[r : r + m, c : c + m]
                if not np.isfinite(S).all():
                    return None
                kept, rounding = solve_block(S, n, pattern.at_most)
                mask[r : r + m, c : c + m] = kept
                objective += float(S[kept].sum())
                error += rounding
        blocks = (last - first) * (X.shape[1] // m)
        return TaskResult(objective, None, blocks, {"blocks": blocks, "scaling_error": error})

    return run
