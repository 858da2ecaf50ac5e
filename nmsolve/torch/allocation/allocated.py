"""`Allocation`: the plan that loses least under a budget, with its proof."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from nmsolve.result import Status
from nmsolve.table import extent, shortened, table
from nmsolve.torch.allocation.budget import Budget
from nmsolve.torch.allocation.costs import UNITS, shown, total
from nmsolve.torch.weights.layer_plan import LayerPlan, Plan, sharing


class Allocation(Plan):
    """A plan that loses least under a budget, to be used like any other. Equal to one with the same
    layers; prints as a table.

    Attributes
    ----------
    layers, scores, planned, patterns
        As of every `Plan`.
    objective : float
        The loss of the planned layers.
    bound : float
        No plan of these candidates within the budget loses less.
    gap : float
        (objective − bound) / |objective|.
    status : Status
        OPTIMAL if the gap is at most 1e-9, FEASIBLE otherwise.
    budget : Params, FLOPs or Latency
        As given.
    cost : float
        Of the plan, in the budget's unit.
    seconds : float
        Of the search, without the losses.
    layer_losses, layer_costs : dict of str to float
        By path, of every weight that was allocated.
    """

    def __init__(
        self,
        layers: Iterable[LayerPlan],
        scores: Mapping[str, Tensor] | None = None,
        *,
        objective: float,
        bound: float,
        status: Status,
        budget: Budget,
        seconds: float,
        layer_losses: Mapping[str, float],
        layer_costs: Mapping[str, float],
    ) -> None:
        super().__init__(layers, scores)
        self.objective = objective
        self.bound = bound
        self.status = status
        self.budget = budget
        self.seconds = seconds
        self.layer_losses = dict(layer_losses)
        self.layer_costs = dict(layer_costs)

    @property
    def gap(self) -> float:
        """The share of the loss that is not proven."""
        return (
            (self.objective - self.bound) / abs(self.objective)
            if self.objective
            else 0.0 - self.bound
        )

    @property
    def cost(self) -> float:
        """The cost of the plan, in the budget's unit; the limit where only the rounding of the sum
        is above it.
        """
        return min(total(self.layer_costs.values()), self.budget.limit)

    def __str__(self) -> str:
        rows = []
        for layer in self.layers:
            found = [
                f"{values[layer.path]:.6g}" if layer.path in values else ""
                for values in (self.layer_losses, self.layer_costs)
            ]
            pattern = "-" if layer.pattern is None else str(layer.pattern)
            why = layer.reason or sharing(layer)
            rows.append(
                (shortened(layer.path), layer.kind, extent(layer.shape), pattern, *found, why)
            )
        head = ("layer", "kind", "shape", "pattern", "loss", "cost", "reason")
        return f"{table(head, rows, {4, 5})}\n{self._summary()}"

    def __repr__(self) -> str:
        return (
            f"<Allocation: {len(self.planned)} of {len(self)} weights have a pattern, "
            f"{self._summary()}>"
        )

    def _summary(self) -> str:
        cost, limit = shown(self.cost), shown(self.budget.limit)
        return (
            f"{self.status.value}: loss {self.objective:.8g}, gap {self.gap:.1e}; cost {cost} of "
            f"at most {limit} {UNITS[type(self.budget)]}"
        )
