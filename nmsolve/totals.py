"""Sums over the tasks of a solve, which do not depend on the order in which tasks end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from nmsolve.solvers import TaskResult


def exact_sum(parts: Sequence[float]) -> float:
    """Return the sum, rounded once; not finite if it, or a part, is too large for a float."""
    try:
        return math.fsum(parts)
    except (OverflowError, ValueError):  # ValueError: −inf + inf
        return math.inf


@dataclass(slots=True)
class Totals:
    """Sums over the tasks of a solve.

    Attributes
    ----------
    kept : float
        Score of the entries that are kept without being solved.
    objectives : list of float
        One per task.
    bounds : list of (float or None)
        One per task, None where the solver offers none.
    open : float
        How many blocks (row-wise: groups) the tasks left unproven.
    stats : dict of str to float
        Counts by name, added up.
    refused : bool
        Whether a task met a score that is not finite, and ended.
    """

    kept: float
    objectives: list[float] = field(default_factory=list)
    bounds: list[float | None] = field(default_factory=list)
    open: float = 0
    stats: dict[str, float] = field(default_factory=dict)
    refused: bool = False

    def add(self, result: TaskResult | None) -> None:
        """Count a task in; None is one that met a score that is not finite."""
        if result is None:
            self.refused = True
            return
        self.objectives.append(result.objective)
        self.bounds.append(result.bound)
        self.open += result.open
        for key, value in result.stats.items():
            self.stats[key] = self.stats.get(key, 0) + value

    @property
    def objective(self) -> float:
        """Sum of all kept scores."""
        return exact_sum([self.kept, *self.objectives])

    @property
    def bound(self) -> float | None:
        """Bound on the score of all masks, None if that of a task is missing."""
        known = [bound for bound in self.bounds if bound is not None]
        return exact_sum([self.kept, *known]) if len(known) == len(self.bounds) else None
