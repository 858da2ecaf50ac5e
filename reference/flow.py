"""Min-cost flow with networkx's network simplex, in exact integers of any size."""

from __future__ import annotations

from fractions import Fraction

import networkx as nx
import numpy as np


def integers(block):
    """Scores as Python integers and the denominator they share. Exact: every float is a fraction
    over a power of two.
    """
    fractions = [[Fraction(float(s)) for s in row] for row in block]
    denominator = max(f.denominator for row in fractions for f in row)
    return [[int(f * denominator) for f in row] for row in fractions], denominator


def optimum(block, n, at_most=False):
    """maximise Σ S_ij X_ij, every row and column of X ∈ {0, 1} sums to n (at most: ≤ n): mask (m,
    m) and objective.

    Rows supply n, columns demand n, every entry is an arc of capacity 1 and cost −S_ij; for at
    most, what a row does not place goes to a node that fills the columns, at no cost. The objective
    is exact up to its last rounding.
    """
    costs, denominator = integers(block)
    m = len(costs)
    graph = nx.DiGraph()
    for k in range(m):
        graph.add_node(("row", k), demand=-n)
        graph.add_node(("column", k), demand=n)
        if at_most:
            graph.add_edge(("row", k), "unplaced", capacity=n, weight=0)
            graph.add_edge("unplaced", ("column", k), capacity=n, weight=0)
    for i in range(m):
        for j in range(m):
            graph.add_edge(("row", i), ("column", j), capacity=1, weight=-costs[i][j])
    cost, flows = nx.network_simplex(graph)
    mask = np.array([[flows["row", i]["column", j] == 1 for j in range(m)] for i in range(m)])
    return mask, float(Fraction(-cost, denominator))
