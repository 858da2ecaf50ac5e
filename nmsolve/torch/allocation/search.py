"""`Search`: the plan that a search over patterns found, with its costs and its history."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from nmsolve.torch.allocation.budget import FLOPs, Params
from nmsolve.torch.weights.layer_plan import LayerPlan, Plan


class Drop(NamedTuple):
    """A step of a search: a layer came down to a smaller n.

    Attributes
    ----------
    step : int
        The iteration, from 0.
    path : str
        The layer's.
    n : int
        Kept of every m, from here on.
    cost : float
        Of the whole plan then, in the budget's unit.
    """

    step: int
    path: str
    n: int
    cost: float


class Search(Plan):
    """A plan that was searched for, to be used like any other. Equal to one with the same layers;
    prints as a table.

    Attributes
    ----------
    layers, scores, planned, patterns
        As of every `Plan`.
    budget : Params or FLOPs
        As given.
    reached : bool
        Whether the plan meets the budget.
    cost : float
        Of the plan, in the budget's unit.
    kept_weights : int
        Of the plan, over the layers that were searched, of which some may have been left dense.
    multiply_adds : float
        Of the same layers.
    steps : int
        Iterations.
    seconds : float
        Of the search.
    history : tuple of Drop
        In their order.
    """

    def __init__(
        self,
        layers: Iterable[LayerPlan],
        *,
        budget: Params | FLOPs,
        kept_weights: int,
        multiply_adds: float,
        steps: int,
        seconds: float,
        history: Iterable[Drop],
    ) -> None:
        super().__init__(layers)
        self.budget = budget
        self.kept_weights = kept_weights
        self.multiply_adds = multiply_adds
        self.steps = steps
        self.seconds = seconds
        self.history = tuple(history)

    @property
    def cost(self) -> float:
        """The cost of the plan, in the budget's unit."""
        return self.kept_weights if isinstance(self.budget, Params) else self.multiply_adds

    @property
    def reached(self) -> bool:
        """True if the plan meets the budget."""
        return self.cost <= self.budget.limit

    def __str__(self) -> str:
        return f"{super().__str__()}\n{self._summary()}"

    def __repr__(self) -> str:
        return (
            f"<Search: {len(self.planned)} of {len(self)} weights have a pattern, "
            f"{self._summary()}>"
        )

    def _summary(self) -> str:
        met = "meets" if self.reached else "misses"
        return (
            f"{self.kept_weights} kept weights, {self.multiply_adds:.0f} multiply-adds: {met} "
            f"{self.budget!r} after {self.steps} iterations"
        )
