"""Published baselines, each reimplemented from its published description. All take a matrix and
return a mask of whole blocks.

* OR-tools: Hubara et al. 2021 (arXiv:2102.08124), section 4, a min-cost flow a block, by OR-tools'
  SimpleMinCostFlow (cost-scaling push-relabel;
  developers.google.com/optimization/flow/mincostflow).
* networkx: the same flow by `network_simplex`, as in the paper's code, but with integer costs
  (float costs hang it).
* HiGHS: the linear program of a block, which is integral (Hubara et al. 2021, section 4); Huangfu
  and Hall 2018, by SciPy.
* 90 patterns: Hu et al. 2024, "Accelerating Transformer Pre-training with 2:4 Sparsity"
  (arXiv:2404.01847), section 5.1: score all 90 transposable 2:4 masks of a block in one matrix
  product, take the best.
* keep-greedy: the 2021 paper's code ("approx2"): sort a block, keep what has room in its row and
  column; at most n.
* entropic: TSENOR, see `entropic`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import networkx
import numpy as np
import scipy.sparse
from numba import njit
from numpy.typing import NDArray
from ortools.graph.python import min_cost_flow
from scipy.optimize import linprog

from benchmarks import entropic

Matrix = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: Bits of the largest integer cost. OR-tools multiplies costs by the number of nodes and needs the
#: total in 63 bits.
COST_BITS = 48


@dataclass(frozen=True)
class Rival:
    """A baseline: solve(weights (rows, cols), n, m) → mask.

    exact : whether its mask must be optimal. exactly_n : whether lines keep exactly n, not at most.
    weights : how many suffice to measure it. only_m : the one block size it serves, if so.
    """

    name: str
    solve: Callable[[Matrix, int, int], Mask]
    exact: bool
    weights: int
    exactly_n: bool = True
    only_m: int | None = None


def blocks_of(weights: Matrix, m: int) -> Matrix:
    """|weights| (rows, cols) as blocks (count, m, m)."""
    rows, cols = weights.shape
    return np.abs(weights).reshape(rows // m, m, cols // m, m).swapaxes(1, 2).reshape(-1, m, m)


def matrix_of(blocks: Mask, shape: tuple[int, ...]) -> Mask:
    """The inverse of `blocks_of` for masks."""
    m = blocks.shape[1]
    rows, cols = shape
    return blocks.reshape(rows // m, cols // m, m, m).swapaxes(1, 2).reshape(rows, cols)


def _one_call_a_block(
    solve_block: Callable[[Matrix, int], Mask],
) -> Callable[[Matrix, int, int], Mask]:
    def solve(weights: Matrix, n: int, m: int) -> Mask:
        return matrix_of(
            np.stack([solve_block(S, n) for S in blocks_of(weights, m)]), weights.shape
        )

    return solve


def _integer_costs(S: Matrix) -> NDArray[np.int64]:
    """−S scaled by a power of two to integers."""
    largest = float(S.max())
    exponent = COST_BITS - math.frexp(largest)[1] if largest else 0
    return -np.rint(np.ldexp(S.astype(np.float64), exponent)).astype(np.int64)


@cache
def _arcs(m: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Tails, heads and capacities of the m² arcs from rows 0 … m − 1 to columns m … 2m − 1."""
    rows, columns = np.divmod(np.arange(m * m), m)
    return rows, columns + m, np.ones(m * m, np.int64)


def _ortools_block(S: Matrix, n: int) -> Mask:
    m = len(S)
    flow = min_cost_flow.SimpleMinCostFlow()
    arcs = flow.add_arcs_with_capacity_and_unit_cost(*_arcs(m), _integer_costs(S).ravel())
    flow.set_nodes_supplies(np.arange(2 * m), np.repeat([n, -n], m))
    if flow.solve() != flow.OPTIMAL:
        raise RuntimeError("OR-tools did not solve a feasible flow problem")
    kept: Mask = flow.flows(arcs).reshape(m, m) > 0
    return kept


def _networkx_block(S: Matrix, n: int) -> Mask:
    m = len(S)
    graph = networkx.DiGraph()
    graph.add_nodes_from(range(m), demand=-n)
    graph.add_nodes_from(range(m, 2 * m), demand=n)
    for i, row in enumerate(_integer_costs(S).tolist()):
        for j, cost in enumerate(row):
            graph.add_edge(i, m + j, capacity=1, weight=cost)
    _, flow = networkx.network_simplex(graph)
    return np.array([[flow[i][m + j] > 0 for j in range(m)] for i in range(m)])


@cache
def _line_sums(m: int) -> Any:
    """The (2m, m²) sparse matrix that takes a flattened block to its row sums, then its column
    sums.
    """
    rows = scipy.sparse.kron(scipy.sparse.eye_array(m), np.ones((1, m)))
    columns = scipy.sparse.kron(np.ones((1, m)), scipy.sparse.eye_array(m))
    return scipy.sparse.csr_array(scipy.sparse.vstack([rows, columns]))


def _highs_block(S: Matrix, n: int) -> Mask:
    m = len(S)
    found = linprog(
        -S.ravel().astype(np.float64),
        A_eq=_line_sums(m),
        b_eq=np.full(2 * m, n),
        bounds=(0, 1),
        method="highs",
    )
    if found.status != 0:
        raise RuntimeError(f"HiGHS: {found.message}")
    kept: Mask = found.x.reshape(m, m) > 0.5
    return kept


@cache
def _patterns(n: int, m: int) -> Matrix:
    """All masks of a block (count, m²) whose rows and columns keep n: 90 for 2:4."""
    lines = [np.isin(np.arange(m), kept) for kept in itertools.combinations(range(m), n)]
    masks = [np.stack(rows) for rows in itertools.product(lines, repeat=m)]
    return np.stack([mask.ravel() for mask in masks if (mask.sum(axis=0) == n).all()]).astype(
        np.float32
    )


def _best_of_patterns(weights: Matrix, n: int, m: int) -> Mask:
    patterns = _patterns(n, m)
    S = blocks_of(weights, m).reshape(-1, m * m)
    best = np.concatenate(
        [(part @ patterns.T).argmax(axis=1) for part in np.array_split(S, max(1, len(S) // 4096))]
    )
    return matrix_of(patterns.astype(np.bool_)[best].reshape(-1, m, m), weights.shape)


@njit(nogil=True, cache=True)
def _keep_greedy(weights: Matrix, n: int, m: int) -> Mask:
    kept = np.zeros(weights.shape, np.bool_)
    block = np.empty(m * m, np.float32)
    in_row, in_column = np.empty(m, np.int64), np.empty(m, np.int64)
    for top in range(0, weights.shape[0], m):
        for left in range(0, weights.shape[1], m):
            for i in range(m):
                for j in range(m):
                    block[i * m + j] = -abs(weights[top + i, left + j])
            in_row[:] = 0
            in_column[:] = 0
            for flat in np.argsort(block):
                i, j = flat // m, flat % m
                if in_row[i] < n and in_column[j] < n:
                    in_row[i] += 1
                    in_column[j] += 1
                    kept[top + i, left + j] = True
    return kept


def _entropic(weights: Matrix, n: int, m: int) -> Mask:
    return matrix_of(entropic.solve_blocks(blocks_of(weights, m), n), weights.shape)


KEEP_GREEDY = Rival(
    "keep-greedy, argsort in numba", _keep_greedy, exact=False, weights=2**20, exactly_n=False
)
ORTOOLS = Rival(
    "OR-tools min-cost flow", _one_call_a_block(_ortools_block), exact=True, weights=2**17
)

RIVALS = (
    ORTOOLS,
    Rival(
        "networkx network simplex", _one_call_a_block(_networkx_block), exact=True, weights=2**13
    ),
    Rival("SciPy HiGHS LP", _one_call_a_block(_highs_block), exact=True, weights=2**13),
    Rival("argmax over 90 patterns", _best_of_patterns, exact=True, weights=2**20, only_m=4),
    KEEP_GREEDY,
    Rival("entropic transport + rounding", _entropic, exact=False, weights=2**18),
)
