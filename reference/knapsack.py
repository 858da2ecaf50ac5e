"""The multiple-choice knapsack problem: every choice there is, and SciPy's HiGHS.

Layer i has candidates with losses[i] and costs[i]; one is chosen for each, so that the costs sum to
at most `limit`.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import block_diag, coo_array


def brute(losses, costs, limit):
    """minimise the losses over every choice: (choices, loss), or None if none is within the limit;
    sums exact, rounded once.
    """
    best = None
    for choices in itertools.product(*(range(len(row)) for row in losses)):
        if math.fsum(row[j] for row, j in zip(costs, choices, strict=True)) <= limit:
            loss = math.fsum(row[j] for row, j in zip(losses, choices, strict=True))
            if best is None or loss < best[1]:
                best = choices, loss
    return best


def integer(losses, costs, limit):
    """minimise Σ l x, Σ c x ≤ limit, Σ_j x_ij = 1, x ∈ {0, 1}, by branch and bound: choices and
    loss.
    """
    loss, cost = (
        np.concatenate([np.asarray(row, np.float64) for row in rows]) for rows in (losses, costs)
    )
    # HiGHS has absolute tolerances, so its numbers must be about one.
    unit = np.abs(loss).max() or 1.0
    price = max(np.abs(cost).max(), 1e-300)
    one_each = block_diag([np.ones((1, len(row))) for row in losses], format="csr")
    solution = milp(
        loss / unit,
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(coo_array(cost[None] / price).tocsr(), -np.inf, limit / price),
        ],
        bounds=Bounds(0, 1),
        integrality=np.ones(len(loss)),
        options={"mip_rel_gap": 0},
    )
    if solution.status != 0:
        raise ArithmeticError(solution.message)
    edges = np.cumsum([0, *map(len, losses)])
    choices = tuple(int(np.argmax(solution.x[a:b])) for a, b in itertools.pairwise(edges))
    return choices, math.fsum(row[j] for row, j in zip(losses, choices, strict=True))
