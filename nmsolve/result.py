"""The result of `solve`: `MaskResult`, which verifies itself, with its `Status`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Generic

import numpy as np
from numpy.typing import ArrayLike

from nmsolve.certificates import SUBNORMAL, Array, Duals, objective
from nmsolve.errors import InputError, SolverError
from nmsolve.feasibility import Report, verify
from nmsolve.pattern import Pattern
from nmsolve.proofs import prove
from nmsolve.validate import read_scores

#: The array that was maximised.
SCORED = ("weights", "scores")
#: Two float64 sums of the same scores in another order agree to this, relative to the sum of
#: magnitudes.
SUMMATION = 1e-11


class Status(Enum):
    """The knowledge about a mask.

    Attributes
    ----------
    OPTIMAL
        Its certificate was evaluated and closes the gap (`nmsolve.conclusion` decides it).
    FEASIBLE
        It satisfies the pattern.
    """

    OPTIMAL = "optimal"
    FEASIBLE = "feasible"


def relative_gap(objective: float, bound: float) -> float:
    """Return (bound − objective) / |bound|, and 0 for two zeros."""
    return max(0.0, bound - objective) / abs(bound) if bound else max(0.0, -objective)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MaskResult(Generic[Array]):
    """A mask and what is known about it. Generic in its array; without brackets, NumPy's.

    Attributes
    ----------
    mask : (..., rows, cols) bool array
        True = keep; the shape of the weights.
    status : Status
        OPTIMAL only with a certificate that was evaluated.
    objective : float
        Sum of the kept scores, in float64.
    bound : float or None
        No mask of the pattern scores more. None where the method offers no bound.
    gap : float or None
        (bound − objective) / bound; 0 if both are 0.
    method : str
        The method that ran.
    stats : mapping of str to float
        Of every solve:

        * `threads`: those that it could use.
        * `seconds`: from the arguments to this result, without compiling or loading the host's
          kernels. A first solve on a GPU includes the compiling of the GPU's.
        * `weights_per_second`.

        Of every solve by a method that claims the optimum:

        * `unproven`: blocks (row-wise: groups) whose optimality is not proven.

        By the solver that ran, blocks or groups by the path that they took:

        * `groups`: row-wise groups.
        * `enumerated`: 4 × 4 blocks whose masks were all compared.
        * `proven_at_level_0` to `proven_at_level_3`: blocks that the levels of the ascent proved;
          a device has a fifth.
        * `augmented`: blocks that were finished alone, by augmenting paths; `paths`: how many these
          were.
        * `solved_on_host`: blocks that a device left to the host.
        * `blocks`: blocks of the methods "greedy", "cover" and "min_cost_flow".
        * `completed`: blocks of "greedy" and "cover" that the rule left short of n; of these,
          `solved_exactly`: blocks that completing took below the guarantee.
        * `scaling_error`: the score that rounding to integers may have cost "min_cost_flow".
    pattern : Pattern
        As it was solved, `at_most` included.
    padding : str
        As given to `solve`.
    scored : {"weights", "scores"}
        Whether |weights| or given scores were maximised; `verify` needs the same array again.
    duals : Duals or None
        Potentials that prove `bound`, if asked for with `solve(..., duals=True)`.
    """

    mask: Array
    status: Status
    objective: float
    bound: float | None
    gap: float | None
    method: str
    stats: Mapping[str, float]
    pattern: Pattern
    padding: str
    scored: str
    duals: Duals[Array] | None

    def __str__(self) -> str:
        gap = "no bound" if self.gap is None else f"gap {self.gap:.1e}"
        return (
            f"{self.pattern} on {tuple(self.mask.shape)}: {self.status.value}, objective "
            f"{self.objective:.8g}, {gap} ({self.method})"
        )

    def verify(self, weights: ArrayLike | Array, scores: ArrayLike | Array | None = None) -> Report:
        """Recompute feasibility, objective and bound from the weights, trusting nothing in this
        result.

        The bound comes from duals: this result's, if it has them, or newly computed ones; it is
        evaluated in plain NumPy float64. A result that is called optimal is held to it block by
        block (group by group), as the solver is.

        Parameters
        ----------
        weights, scores : (..., rows, cols) array-like
            As given to `solve`.

        Returns
        -------
        Report
            Of the mask, which holds.

        Raises
        ------
        SolverError
            If the mask violates the pattern, or objective, bound, gap or status is not what it
            should be: which, by how much, and of a mask that is not optimal the first block.
        InputError
            If the arrays are not those that were solved (another shape, or scores missing).
        """
        host, *given = self._on_host(weights, scores)
        return _hold(host, *given)

    def _on_host(self, weights: Any, scores: Any) -> tuple[MaskResult, Any, Any]:
        """Return this result, weights and scores with NumPy arrays in them."""
        host: Any = self
        return host, weights, scores


def _hold(result: MaskResult, weights: ArrayLike, scores: ArrayLike | None) -> Report:
    """Hold a result to the arrays that it is of; see `MaskResult.verify`."""
    _check_fields(result)
    if (scores is None) == (result.scored == "scores"):
        have, need = ("weights", "scores=") if scores is None else ("scores", "only the weights")
        raise InputError(
            f"this result was found for {result.scored}, and {have} were given: pass {need} as "
            "to solve()"
        )
    read = read_scores(weights, scores, result.pattern)
    mask = np.asarray(result.mask)
    if mask.dtype != np.bool_ or mask.shape != read.array.shape:
        raise SolverError(
            f"the mask is {mask.dtype} {mask.shape}, the {read.name} have shape {read.array.shape}"
        )
    report = verify(mask, result.pattern, padding=result.padding)
    if not report:
        raise SolverError(f"the mask is not feasible: {report}")

    true = objective(read, mask)
    size = objective(replace(read, absolute=True), mask)
    slack = SUMMATION * size
    _check("objective", result.objective, true, slack)
    proof = prove(read, mask, result.pattern, result.padding, duals=result.duals)
    proven = proof.bound
    slack += proof.rounding + 4 * mask.size * SUBNORMAL
    tolerance = read.tolerance * max(abs(proven), size) + slack
    if true > proven + tolerance:
        raise SolverError(
            f"objective {true!r} exceeds the dual bound {proven!r}: the certificate code is wrong"
        )
    if result.bound is None:
        if result.gap is not None or result.status is Status.OPTIMAL:
            raise SolverError(
                f"status {result.status.value} and gap {result.gap} are claimed without a bound"
            )
        return report
    if (
        result.gap is None
        or not abs(result.gap - relative_gap(result.objective, result.bound)) <= 1e-12
    ):
        raise SolverError(
            f"gap {result.gap} is not (bound - objective) / bound = "
            f"{relative_gap(result.objective, result.bound)}"
        )
    if not result.bound >= true - slack:
        raise SolverError(
            f"bound {result.bound!r} is below the objective {true!r}: it is no upper bound"
        )
    if result.duals is not None:
        _check("bound of the duals", result.bound, proven, slack)
    elif not result.bound >= proven - tolerance:
        raise SolverError(
            f"bound {result.bound!r} is below {proven!r}, which is proven to be the least: it is "
            "not an upper bound"
        )
    if result.status is Status.OPTIMAL:
        if not proven - true <= tolerance:
            raise SolverError(
                f"status optimal is claimed for objective {true!r}, but only the bound "
                f"{proven!r} is proven: {proof}"
            )
        if proof.open:
            raise SolverError(f"status optimal is claimed, but {proof}")
        _check("bound", result.bound, proven, tolerance)
    return report


def _check_fields(result: MaskResult) -> None:
    """Raise SolverError for fields that are not of their kind."""
    if not isinstance(result.pattern, Pattern) or result.scored not in SCORED:
        raise SolverError(
            f"pattern {result.pattern!r} is not a Pattern, or scored {result.scored!r} none of "
            f"{', '.join(SCORED)}"
        )
    numbers = {"objective": result.objective, "bound": result.bound, "gap": result.gap}
    for name, value in numbers.items():
        if not isinstance(value, float) and (value is not None or name == "objective"):
            raise SolverError(f"{name} {value!r} is not a float")
    if not isinstance(result.status, Status):
        raise SolverError(f"status {result.status!r} is not a Status")
    arrays = (
        []
        if result.duals is None
        else [getattr(result.duals, name, None) for name in ("rows", "columns")]
    )
    if arrays and (
        not isinstance(arrays[0], np.ndarray) or not isinstance(arrays[1], (np.ndarray, type(None)))
    ):
        raise SolverError(f"duals {type(result.duals).__name__} are not Duals of arrays")


def _check(what: str, claimed: float, true: float, slack: float) -> None:
    """Raise SolverError unless a claimed number is the true one."""
    if not abs(claimed - true) <= slack:
        raise SolverError(
            f"{what} {claimed!r} is claimed, {true!r} is true (difference {claimed - true:.3g})"
        )
