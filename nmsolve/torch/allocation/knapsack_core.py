"""The core of a knapsack problem: the candidates that the best price does not decide, a dynamic
program over them, and OR-tools where that leaves the choice unproven.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsolve.errors import MissingDependencyError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: A choice is OPTIMAL if its loss exceeds the bound by no more than this share of it.
TOLERANCE = 1e-9
#: Pairs at once, before most of them are found to be dominated, and in the trail over all layers:
#: half a gigabyte each, at most.
_EXPANDED, _TRAIL = 2**23, 2**27


def total_of(rows: Sequence[Floats], choices: Sequence[int]) -> float:
    """Return the sum of one chosen number per row, rounded once."""
    return math.fsum(float(row[j]) for row, j in zip(rows, choices, strict=True))


class Core:
    """The best choice so far, and a bound on all.

    Everything is counted from the choice of the linear relaxation, `base`. A choice loses relaxed +
    Σ excess + price · (the unused part of the limit), so only those beat the best one whose excess
    is within `gap`.

    Attributes
    ----------
    price : float
        Loss per cost at which the linear relaxation stops buying.
    base : list of int
        Its choice, the index of a candidate for each layer.
    room : int
        The part of the limit that the base leaves unused.
    more, worse, excess : lists of (candidates,) arrays
        By layer, the costs of candidates beyond the base's, their losses beyond the base's, and
        worse + price · more, which is not negative.
    second : list of float
        The excess of each layer's second best candidate.
    start : float
        The loss of the base.
    slack : float
        The most that rounding moves a sum by.
    best : list of int
        The best choice so far.
    saved : float
        Its loss below the base's.
    bound : float
        No choice within the limit loses less.
    """

    def __init__(self, losses: list[Floats], costs: list[Integers], limit: int) -> None:
        self.price, self.base = _price(losses, costs, limit)
        self.more = [cost - cost[j] for cost, j in zip(costs, self.base, strict=True)]
        self.worse = [loss - loss[j] for loss, j in zip(losses, self.base, strict=True)]
        self.excess = [
            worse + self.price * more for worse, more in zip(self.worse, self.more, strict=True)
        ]
        self.second = [
            float(np.delete(row, j).min(initial=math.inf))
            for row, j in zip(self.excess, self.base, strict=True)
        ]
        self.room = limit - sum(int(cost[j]) for cost, j in zip(costs, self.base, strict=True))
        self.start = total_of(losses, self.base)
        sizes = [
            np.abs(worse).max() + self.price * np.abs(more).max()
            for worse, more in zip(self.worse, self.more, strict=True)
        ]
        self.slack = 8 * math.ulp(math.fsum(sizes))
        self.best, self.saved = list(self.base), 0.0
        # The last candidates lose least: the dominated are gone.
        least = total_of(losses, [len(loss) - 1 for loss in losses])
        self.bound = max(self.start - self.price * self.room - self.slack, least)

    @property
    def gap(self) -> float:
        """The excess that a choice better than the best one is below."""
        return self.price * self.room - self.saved

    @property
    def proven(self) -> bool:
        """True if no choice loses less than the best one, but for the tolerance."""
        objective = self.start - self.saved
        return objective - self.bound <= TOLERANCE * abs(objective)

    def candidates(self, i: int) -> Integers:
        """Return those candidates of a layer that a better choice may have."""
        return np.flatnonzero(self.excess[i] < self.gap)

    def expand(self, width: int, deadline: float) -> None:
        """Go through the layers that are not decided, the closest first, with at most `width`
        pairs; raise the bound.
        """
        order = sorted(
            (i for i, second in enumerate(self.second) if second < self.gap),
            key=lambda i: (self.second[i], i),
        )
        candidates = [self.candidates(i) for i in order]
        width = max(
            1,
            min(
                width,
                _EXPANDED // max(map(len, candidates), default=1),
                _TRAIL // max(1, len(order)),
            ),
        )
        changes = [self.more[i][js] for i, js in zip(order, candidates, strict=True)]
        # Costs of the layers from one on, at least and at most.
        least = [*np.cumsum([change.min() for change in changes[::-1]])[::-1], 0]
        most = [*np.cumsum([change.max() for change in changes[::-1]])[::-1], 0]
        more, worse, dropped = np.zeros(1, np.int64), np.zeros(1), math.inf
        # Pairs before, and where a pair comes from: candidate · pairs before + pair.
        trail: list[tuple[int, Integers]] = []
        for depth, i in enumerate(order):
            if self.second[i] >= self.gap or not len(more):
                break  # all further layers are decided
            js = candidates[depth]
            # Candidates lie one after the other, so that runs are sorted by cost already.
            pairs, more = len(more), (changes[depth][:, None] + more).ravel()
            worse = (self.worse[i][js][:, None] + worse).ravel()
            floor = worse + self.price * np.maximum(more, self.room - most[depth + 1])
            origin = np.flatnonzero((floor < self.gap) & (more + least[depth + 1] <= self.room))
            origin = origin[np.argsort(more[origin], kind="stable")]
            origin = origin[_on_front(more[origin], worse[origin])]
            if len(origin) > width:
                # Of many with the same bound, as if all losses were proportional to costs, the
                # limit is met by those close to it.
                held = _lowest(
                    floor[origin] + 0.05 * self.price * np.abs(self.room - more[origin]), width
                )
                dropped = min(dropped, float(floor[origin[~held]].min()))
                origin = origin[held]
            more, worse = more[origin], worse[origin]
            trail.append((pairs, origin.astype(np.int32)))
            fits = int(np.searchsorted(more, self.room, side="right"))
            # Of pairs on the front the most expensive is the best.
            if fits and -worse[fits - 1] > self.saved:
                self.saved = -float(worse[fits - 1])
                self.best = self._traced(order, candidates, trail, fits - 1)
                if self.proven:
                    return
            if time.monotonic() > deadline:
                dropped = min(dropped, float(floor[origin].min(initial=math.inf)))
                break
        self.bound = max(
            self.bound, self.start - max(self.saved, self.price * self.room - dropped) - self.slack
        )

    def _traced(
        self,
        order: list[int],
        candidates: list[Integers],
        trail: list[tuple[int, Integers]],
        at: int,
    ) -> list[int]:
        """The choice that a pair stands for."""
        choices = list(self.base)
        for depth in reversed(range(len(trail))):
            pairs, origin = trail[depth]
            candidate, at = divmod(int(origin[at]), pairs)
            choices[order[depth]] = int(candidates[depth][candidate])
        return choices

    def hand_over(self, deadline: float) -> None:
        """Have CP-SAT look for a better choice, or prove that there is none."""
        cp_model = _cp_sat()
        model = cp_model.CpModel()
        columns = [[int(j) for j in self.candidates(i)] for i in range(len(self.base))]
        largest = math.fsum(
            float(np.abs(worse[js]).max()) for worse, js in zip(self.worse, columns, strict=True)
        )
        scale = math.ldexp(1.0, min(51 - math.frexp(largest)[1], 1000))
        variables, costs, losses = [], [], []
        for i, js in enumerate(columns):
            row = [model.new_bool_var("") for _ in js]
            model.add_exactly_one(row)
            for variable, j in zip(row, js, strict=True):
                model.add_hint(variable, j == self.best[i])
            variables.append(row)
            costs += [int(self.more[i][j]) for j in js]
            # Down, so that its bound is one.
            losses += [math.floor(self.worse[i][j] * scale) for j in js]
        flat = [variable for row in variables for variable in row]
        model.add(cp_model.LinearExpr.weighted_sum(flat, costs) <= self.room)
        model.minimize(cp_model.LinearExpr.weighted_sum(flat, losses))
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = 0
        solver.parameters.max_time_in_seconds = max(0.0, deadline - time.monotonic())
        solver.parameters.absolute_gap_limit = (
            0.5 * TOLERANCE * abs(self.start - self.saved) * scale
        )
        status = solver.solve(model)
        if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            found = [
                js[next(k for k, x in enumerate(row) if solver.value(x))]
                for js, row in zip(columns, variables, strict=True)
            ]
            saved = -total_of(self.worse, found)
            if saved > self.saved:
                self.saved, self.best = saved, found
            self.bound = max(
                self.bound, self.start + solver.best_objective_bound / scale - self.slack
            )


def _price(
    losses: Sequence[Floats], costs: Sequence[Integers], limit: int
) -> tuple[float, list[int]]:
    """Loss per cost at which the linear relaxation stops buying, and its choice of whole candidates
    until then.
    """
    steps = []
    for i, (loss, cost) in enumerate(zip(losses, costs, strict=True)):
        hull = [0]
        for j in range(1, len(loss)):
            while len(hull) > 1 and _slope(loss, cost, hull[-2], hull[-1]) <= _slope(
                loss, cost, hull[-1], j
            ):
                hull.pop()
            hull.append(j)
        steps += [(_slope(loss, cost, a, b), i, b) for a, b in pairwise(hull)]
    bought, spent = [0] * len(losses), sum(int(cost[0]) for cost in costs)
    for slope, i, j in sorted(steps, key=lambda step: (-step[0], step[1], step[2])):
        spent += int(costs[i][j] - costs[i][bought[i]])
        if spent > limit:
            return slope, bought
        bought[i] = j
    return 0.0, bought


def _slope(loss: Floats, cost: Integers, a: int, b: int) -> float:
    return float((loss[a] - loss[b]) / (cost[b] - cost[a]))


def _on_front(more: Integers, worse: Floats) -> NDArray[np.bool_]:
    """Mark the pairs, sorted by cost, that no other dominates."""
    front = np.ones(len(more), np.bool_)
    front[1:] = worse[1:] < np.minimum.accumulate(worse)[:-1]
    at = np.flatnonzero(front)
    # Of the same cost, the last that is kept is the best.
    front[at[:-1][more[at[1:]] == more[at[:-1]]]] = False
    return front


def _lowest(values: Floats, count: int) -> NDArray[np.bool_]:
    """Mark the lowest values, `count` of them; of those that are equal to the last, evenly spread
    ones.
    """
    last = np.partition(values, count - 1)[count - 1]
    held: NDArray[np.bool_] = values < last
    equal = np.flatnonzero(values == last)
    held[equal[np.linspace(0, len(equal) - 1, count - int(held.sum())).astype(np.intp)]] = True
    return held


def _cp_sat() -> Any:
    try:
        from ortools.sat.python import cp_model
    except ImportError as error:
        raise MissingDependencyError(
            "this allocation is left to OR-tools, which is not installed: pip install "
            "'nmsolve[ortools]'"
        ) from error
    return cp_model
