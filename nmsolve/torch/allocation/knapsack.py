"""One candidate a layer, least loss within a limit on cost: the multiple-choice knapsack problem,
solved with a proof.

A price on cost turns the problem into independent layers, and bounds every choice; the best price
is that of the linear relaxation. What a candidate is worse at that price than its layer's best,
every choice loses that has it: so most candidates are out at once, and layers with one left are
decided. Over the others, the core, goes a dynamic program, layer by layer. It keeps the pairs
(cost, loss) that no other dominates and whose bound beats the best choice so far. Where they become
too many, the least promising are dropped and their bound remembered; what that leaves unproven goes
to OR-tools' CP-SAT, without the candidates that are out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsolve.errors import InputError, MissingDependencyError
from nmsolve.result import Status

#: A choice is OPTIMAL if its loss exceeds the bound by no more than this share of it.
TOLERANCE = 1e-9
#: Pairs that the dynamic program keeps: few, which finds a good choice and so makes the core small,
#: then more.
WIDTHS = (2**8, 2**12, 2**16, 2**20)
#: Pairs at once, before most of them are found to be dominated, and in the trail over all layers:
#: half a gigabyte each, at most.
_EXPANDED, _TRAIL = 2**23, 2**27
#: What costs, sums of costs, and CP-SAT's objective stay below: float64 holds these integers.
_LARGEST = 2**52

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """choices : the index of a candidate for each layer. objective : their loss. bound : no choice
    within the limit loses less.
    """

    choices: tuple[int, ...]
    objective: float
    bound: float
    status: Status


def choose(
    losses: Sequence[Sequence[float]],
    costs: Sequence[Sequence[float]],
    limit: float,
    time_limit: float = 60.0,
) -> Choice:
    r"""Choose one candidate a layer, with the least loss within a limit on cost, and prove that it
    is the least.

    .. math:: \min_j \sum_i l_{i j_i} \quad \text{such that} \quad \sum_i c_{i j_i} \le b

    Parameters
    ----------
    losses, costs : sequences of (candidates,) sequences of float
        By layer; layers may have different numbers of candidates. Finite, and costs not negative.
    limit : float
        What the costs may sum to.
    time_limit : float
        Seconds after which the best choice so far is returned, with its bound.

    Returns
    -------
    Choice
        OPTIMAL if objective − bound ≤ 1e-9 |objective|.

    Raises
    ------
    InputError
        If even the cheapest candidates exceed the limit, or there is a layer without candidates.
    MissingDependencyError
        If OR-tools is needed and not there.

    Notes
    -----
    Deterministic, unless the time limit is reached; among equal candidates of a layer the first is
    chosen. Costs that are integers are added exactly. Others are compared with the limit up to the
    rounding of their sum: 2⁻⁵⁰ of the largest sum for each layer. Else 0.1 + 0.2 would not be
    within 0.3.

    References
    ----------
    Sinha & Zoltners 1979, Operations Research 27(3), 503-515: dominance, the linear relaxation.
    Kellerer, Pferschy & Pisinger, Knapsack Problems, 2004, chapter 11: reduced costs, dynamic
    programs over a core that grows.

    Examples
    --------
    >>> found = choose([[9.0, 4.0, 0.0], [8.0, 1.0, 0.0]], [[1, 2, 4], [1, 2, 4]], limit=5)
    >>> found.choices, found.objective, found.status.value
    ((1, 1), 5.0, 'optimal')
    """
    deadline = time.monotonic() + time_limit
    loss, cost = (
        [np.array(row, np.float64) for row in losses],
        [np.array(row, np.float64) for row in costs],
    )
    if not all(
        len(row) and row.shape == price.shape for row, price in zip(loss, cost, strict=True)
    ):
        raise InputError("every layer needs a candidate, and a loss and a cost for each")
    whole, room = _on_a_grid(cost, limit)
    if _least(whole) > room:
        raise InputError(
            f"the limit {limit!r} is below the smallest cost there is, "
            f"{math.fsum(map(min, cost))!r}"
        )
    found, bound = _solve(loss, whole, room, deadline)
    objective = _sum(loss, found)
    bound = min(bound, objective)
    proven = objective - bound <= TOLERANCE * abs(objective)
    return Choice(
        choices=tuple(found),
        objective=objective,
        bound=bound,
        status=Status.OPTIMAL if proven else Status.FEASIBLE,
    )


def reachable(costs: Sequence[Sequence[float]], limit: float) -> bool:
    """Whether the cheapest candidates are within the limit."""
    whole, room = _on_a_grid([np.array(row, np.float64) for row in costs], limit)
    return _least(whole) <= room


def _least(costs: Sequence[Integers]) -> int:
    return sum(int(row.min()) for row in costs)


def _sum(rows: Sequence[Floats], choices: Sequence[int]) -> float:
    return math.fsum(float(row[j]) for row, j in zip(rows, choices, strict=True))


def _on_a_grid(costs: Sequence[Floats], limit: float) -> tuple[list[Integers], int]:
    """Costs and limit as integers: as they are, or in units of 2⁻⁵¹ of the largest sum, of which
    each layer may round one away.
    """
    most = math.fsum(float(row.max()) for row in costs)
    limit = min(limit, most)
    if most < _LARGEST and all(bool((row == np.rint(row)).all()) for row in costs):
        whole = [row.astype(np.int64) for row in costs]
        shared = math.gcd(*(int(price) for row in whole for price in row)) or 1
        return [row // shared for row in whole], math.floor(Fraction(limit) / shared)
    exponent = 51 - math.frexp(most)[1]  # sums stay below 2**52 when every layer rounds up
    room = math.floor(Fraction(limit) * Fraction(2) ** exponent) + len(costs)
    return [np.floor(np.ldexp(row, exponent)).astype(np.int64) for row in costs], room


def _solve(
    losses: Sequence[Floats], costs: Sequence[Integers], limit: int, deadline: float
) -> tuple[list[int], float]:
    """The best choice and its bound, for integer costs of which the least are within the limit."""
    kept = [_undominated(loss, cost) for loss, cost in zip(losses, costs, strict=True)]
    core = _Core(
        [loss[k] for loss, k in zip(losses, kept, strict=True)],
        [c[k] for c, k in zip(costs, kept, strict=True)],
        limit,
    )
    for width in WIDTHS:
        if not core.proven and time.monotonic() < deadline:
            core.expand(width, deadline)
    if not core.proven and core.gap > 0 and time.monotonic() < deadline:
        core.hand_over(deadline)
    return [int(k[j]) for k, j in zip(kept, core.best, strict=True)], core.bound


def _undominated(losses: Floats, costs: Integers) -> Integers:
    """Candidates that lose less than everything cheaper, by cost; of equals the first."""
    order = np.lexsort((losses, costs))
    before = np.minimum.accumulate(losses[order])
    kept: Integers = order[np.concatenate([[True], losses[order][1:] < before[:-1]])]
    return kept


def _price(
    losses: Sequence[Floats], costs: Sequence[Integers], limit: int
) -> tuple[float, list[int]]:
    """Loss per cost at which the linear relaxation stops buying, and what it has bought of whole
    steps until then.
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


class _Core:
    """The best choice so far, and what is proven.

    All is counted from `base`, what the linear relaxation has bought: `room` is what that leaves of
    the limit, `more` what other candidates cost more, `worse` what they lose more, and `excess` =
    worse + price · more, which is not negative. A choice loses relaxed + Σ excess + price · (what
    it leaves of the limit), so only those beat the best one whose excess is within `gap`.
    """

    def __init__(self, losses: list[Floats], costs: list[Integers], limit: int) -> None:
        self.price, self.base = _price(losses, costs, limit)
        self.more = [cost - cost[j] for cost, j in zip(costs, self.base, strict=True)]
        self.worse = [loss - loss[j] for loss, j in zip(losses, self.base, strict=True)]
        self.excess = [
            worse + self.price * more for worse, more in zip(self.worse, self.more, strict=True)
        ]
        #: How close each layer's second best is.
        self.second = [
            float(np.delete(row, j).min(initial=math.inf))
            for row, j in zip(self.excess, self.base, strict=True)
        ]
        self.room = limit - sum(int(cost[j]) for cost, j in zip(costs, self.base, strict=True))
        self.start = _sum(losses, self.base)
        sizes = [
            np.abs(worse).max() + self.price * np.abs(more).max()
            for worse, more in zip(self.worse, self.more, strict=True)
        ]
        #: What rounding moves a sum by, at most.
        self.slack = 8 * math.ulp(math.fsum(sizes))
        self.best, self.saved = list(self.base), 0.0
        least = _sum(
            losses, [len(loss) - 1 for loss in losses]
        )  # the last candidates lose least: the dominated are gone
        self.bound = max(self.start - self.price * self.room - self.slack, least)

    @property
    def gap(self) -> float:
        """The excess that a choice better than the best one is below."""
        return self.price * self.room - self.saved

    @property
    def proven(self) -> bool:
        """Whether no choice loses less than the best one, but for the tolerance."""
        objective = self.start - self.saved
        return objective - self.bound <= TOLERANCE * abs(objective)

    def candidates(self, i: int) -> Integers:
        """Those of a layer that a better choice may have."""
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
        least = [
            *np.cumsum([change.min() for change in changes[::-1]])[::-1],
            0,
        ]  # what the layers from one on cost, at least
        most = [*np.cumsum([change.max() for change in changes[::-1]])[::-1], 0]
        more, worse, dropped = np.zeros(1, np.int64), np.zeros(1), math.inf
        trail: list[
            tuple[int, Integers]
        ] = []  # pairs before, and where a pair comes from: candidate · pairs before + pair
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
            if (
                fits and -worse[fits - 1] > self.saved
            ):  # of pairs on the front the most expensive is the best
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
            losses += [
                math.floor(self.worse[i][j] * scale) for j in js
            ]  # down, so that its bound is one
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
            saved = -_sum(self.worse, found)
            if saved > self.saved:
                self.saved, self.best = saved, found
            self.bound = max(
                self.bound, self.start + solver.best_objective_bound / scale - self.slack
            )


def _on_front(more: Integers, worse: Floats) -> NDArray[np.bool_]:
    """Which pairs, sorted by cost, no other dominates."""
    front = np.ones(len(more), np.bool_)
    front[1:] = worse[1:] < np.minimum.accumulate(worse)[:-1]
    at = np.flatnonzero(front)
    front[at[:-1][more[at[1:]] == more[at[:-1]]]] = (
        False  # of the same cost, the last that is kept is the best
    )
    return front


def _lowest(values: Floats, count: int) -> NDArray[np.bool_]:
    """Which are the lowest values, so many of them; of those that are equal to the last, evenly
    spread ones.
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
