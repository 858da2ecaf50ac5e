"""Conclude a solve, on the host or on a device: decide whether its mask is OPTIMAL or FEASIBLE, and
state all that is known of it in a `MaskResult`. No other code makes a `MaskResult` OPTIMAL.
"""

from __future__ import annotations

from collections.abc import Callable

from nmsolve.certificates import Array, Duals, Proof
from nmsolve.pattern import Pattern
from nmsolve.result import MaskResult, Status, relative_gap
from nmsolve.solvers import Solver
from nmsolve.stopwatch import Stopwatch
from nmsolve.totals import Totals


def conclude(
    totals: Totals,
    proof: Proof | None,
    solver: Solver,
    *,
    mask: Array,
    duals: Duals[Array] | None,
    tolerance: float,
    magnitude: Callable[[], float],
    recheck: Callable[[], Proof],
    method: str,
    pattern: Pattern,
    padding: str,
    scored: str,
    size: int,
    threads: int,
    stopwatch: Stopwatch,
) -> MaskResult[Array]:
    """Return the result of a solve whose tasks came to `totals`.

    Parameters
    ----------
    proof : Proof or None
        Of the whole mask, by duals; the bound is its.
    solver : Solver
        The one that ran.
    mask, duals, method, pattern, padding, scored
        Fields of the result; method "auto" is stated as "exact".
    tolerance : float
        The relative gap up to which the mask counts as optimal.
    magnitude, recheck : callables
        The sum of the kept scores' magnitudes, and a proof of the mask that does not ask the
        solver; called only where the sums leave a doubt.
    size, threads, stopwatch
        How many weights were solved, by how many threads, since when.
    """
    objective = totals.objective
    bound = totals.bound if proof is None else proof.bound
    still_open = _open_blocks(totals, proof, solver)
    proven = still_open == 0 and _sums_agree(objective, bound, tolerance, magnitude, recheck)
    bound = None if bound is None else max(bound, objective)
    seconds = stopwatch.seconds
    return MaskResult(
        mask=mask,
        status=Status.OPTIMAL if proven else Status.FEASIBLE,
        objective=objective,
        bound=bound,
        gap=None if bound is None else relative_gap(objective, bound),
        method="exact" if method == "auto" else method,
        stats={
            **totals.stats,
            **({} if still_open is None else {"unproven": still_open}),
            "threads": threads,
            "seconds": seconds,
            "weights_per_second": size / seconds,
        },
        pattern=pattern,
        padding=padding,
        scored=scored,
        duals=duals,
    )


def _open_blocks(totals: Totals, proof: Proof | None, solver: Solver) -> float | None:
    """Return how many blocks are not proven to be optimal; None where the solver does not claim
    that they are.
    """
    if totals.objectives and not solver.exact:
        return None
    own = totals.open if solver.proves or proof is None else 0
    return own if proof is None else max(own, proof.open)


def _sums_agree(
    objective: float,
    bound: float | None,
    tolerance: float,
    magnitude: Callable[[], float],
    recheck: Callable[[], Proof],
) -> bool:
    """Return whether the sums bear out that every block is proven."""
    if bound is None:
        return False
    gap = bound - objective
    if gap <= tolerance * abs(objective):
        return True
    # Scores of both signs may cancel in the sum: what counts is the magnitude kept.
    return gap <= tolerance * magnitude() or not recheck().open
