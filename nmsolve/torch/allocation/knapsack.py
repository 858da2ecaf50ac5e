"""One candidate for each layer, least loss within a limit on cost: the multiple-choice knapsack
problem, solved with a proof.

A price on cost turns the problem into independent layers, and bounds every choice; the best price
is that of the linear relaxation. Every choice loses the excess of its candidates, at that price,
over the best of their layers: so most candidates are out at once, and layers with one left are
decided. Over the others, the core (`knapsack_core`), goes a dynamic program, layer by layer. It
keeps the pairs (cost, loss) that no other dominates and whose bound beats the best choice so far.
Where they become too many, the least promising are dropped and their bound remembered; if that
leaves the choice unproven, OR-tools' CP-SAT goes on, without the candidates that are out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from nmsolve.errors import InputError
from nmsolve.result import Status
from nmsolve.torch.allocation.knapsack_core import TOLERANCE, Core, Floats, Integers, total_of

#: Pairs that the dynamic program keeps: few, which finds a good choice and so makes the core small,
#: then more.
WIDTHS = (2**8, 2**12, 2**16, 2**20)
#: Costs, sums of costs, and CP-SAT's objective stay below this: float64 holds these integers.
_LARGEST = 2**52


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One candidate for each layer.

    Attributes
    ----------
    choices : tuple of int
        The index of a candidate for each layer.
    objective : float
        Their loss.
    bound : float
        No choice within the limit loses less.
    status : Status
        OPTIMAL if objective − bound ≤ 1e-9 |objective|.
    """

    choices: tuple[int, ...]
    objective: float
    bound: float
    status: Status


def choose(
    losses: Sequence[Sequence[float]],
    costs: Sequence[Sequence[float]],
    limit: float,
    *,
    time_limit: float = 60.0,
) -> Choice:
    r"""Choose one candidate for each layer, with the least loss within a limit on cost, and prove
    that it is the least.

    .. math:: \min_j \sum_i l_{i j_i} \quad \text{such that} \quad \sum_i c_{i j_i} \le b

    Parameters
    ----------
    losses, costs : sequences of (candidates,) sequences of float
        By layer; layers may have different numbers of candidates. Finite, and costs not negative.
    limit : float
        On the sum of the costs.
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
    objective = total_of(loss, found)
    bound = min(bound, objective)
    proven = objective - bound <= TOLERANCE * abs(objective)
    return Choice(
        choices=tuple(found),
        objective=objective,
        bound=bound,
        status=Status.OPTIMAL if proven else Status.FEASIBLE,
    )


def reachable(costs: Sequence[Sequence[float]], limit: float) -> bool:
    """Return whether the cheapest candidates are within the limit."""
    whole, room = _on_a_grid([np.array(row, np.float64) for row in costs], limit)
    return _least(whole) <= room


def _least(costs: Sequence[Integers]) -> int:
    return sum(int(row.min()) for row in costs)


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
    core = Core(
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
    """The candidates that lose less than all cheaper ones, by cost; of equals the first."""
    order = np.lexsort((losses, costs))
    before = np.minimum.accumulate(losses[order])
    kept: Integers = order[np.concatenate([[True], losses[order][1:] < before[:-1]])]
    return kept
