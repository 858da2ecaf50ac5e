"""What `solve` returns: `MaskResult`, with `Status`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nmsolve.certificates import SUBNORMAL, Duals, objective, prove
from nmsolve.errors import InputError, SolverError
from nmsolve.feasibility import Report, verify
from nmsolve.pattern import Pattern
from nmsolve.validate import read_scores

#: What a result is of.
SCORED = ("weights", "scores")
#: Two float64 sums of the same scores in another order agree to this, relative to the sum of
#: magnitudes.
SUMMATION = 1e-11


class Status(Enum):
    """What is known about a mask. OPTIMAL: its certificate was evaluated and closes the gap.
    FEASIBLE: it satisfies the pattern.
    """

    OPTIMAL = "optimal"
    FEASIBLE = "feasible"


def relative_gap(objective: float, bound: float) -> float:
    """(bound − objective) / |bound|, and 0 for two zeros."""
    return max(0.0, bound - objective) / abs(bound) if bound else max(0.0, -objective)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MaskResult:
    """A mask and what is known about it.

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
        What ran.
    stats : mapping
        Blocks by the path they took, threads, seconds, weights a second.
    pattern : Pattern
    padding : str
        As given to `solve`.
    scored : {"weights", "scores"}
        Whether |weights| or given scores were maximised; `verify` needs the same array again.
    duals : Duals or None
        Potentials that prove `bound`, if asked for with `solve(..., duals=True)`.
    """

    mask: NDArray[np.bool_]
    status: Status
    objective: float
    bound: float | None
    gap: float | None
    method: str
    stats: Mapping[str, float]
    pattern: Pattern
    padding: str
    scored: str
    duals: Duals | None

    def __str__(self) -> str:
        gap = "no bound" if self.gap is None else f"gap {self.gap:.1e}"
        return (
            f"{self.pattern} on {self.mask.shape}: {self.status.value}, objective "
            f"{self.objective:.8g}, {gap} ({self.method})"
        )

    def verify(self, weights: ArrayLike, scores: ArrayLike | None = None) -> Report:
        """Recompute feasibility, objective and bound from the weights, trusting nothing in this
        result.

        The bound comes from duals: this result's, if it has them, or newly computed ones; it is
        evaluated in plain NumPy float64. A result that is called optimal is held to it block by
        block (group by group), as the solver is.

        Parameters
        ----------
        weights, scores : array-like
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
        self._check_fields()
        if (scores is None) == (self.scored == "scores"):
            have, need = (
                ("weights", "scores=") if scores is None else ("scores", "only the weights")
            )
            raise InputError(
                f"this result was found for {self.scored}, and {have} were given: pass {need} as "
                "to solve()"
            )
        read = read_scores(weights, scores, self.pattern)
        mask = np.asarray(self.mask)
        if mask.dtype != np.bool_ or mask.shape != read.array.shape:
            raise SolverError(
                f"the mask is {mask.dtype} {mask.shape}, the {read.name} have shape "
                f"{read.array.shape}"
            )
        report = verify(mask, self.pattern, padding=self.padding)
        if not report:
            raise SolverError(f"the mask is not feasible: {report}")

        true = objective(read, mask)
        size = objective(replace(read, absolute=True), mask)
        slack = SUMMATION * size
        _check("objective", self.objective, true, slack)
        proof = prove(read, mask, self.pattern, self.padding, self.duals)
        proven = proof.bound
        slack += proof.rounding + 4 * mask.size * SUBNORMAL
        tolerance = read.tolerance * max(abs(proven), size) + slack
        if true > proven + tolerance:
            raise SolverError(
                f"objective {true!r} exceeds the dual bound {proven!r}: the certificate code is "
                "wrong"
            )
        if self.bound is None:
            if self.gap is not None or self.status is Status.OPTIMAL:
                raise SolverError(
                    f"status {self.status.value} and gap {self.gap} are claimed without a bound"
                )
            return report
        if (
            self.gap is None
            or not abs(self.gap - relative_gap(self.objective, self.bound)) <= 1e-12
        ):
            raise SolverError(
                f"gap {self.gap} is not (bound - objective) / bound = "
                f"{relative_gap(self.objective, self.bound)}"
            )
        if not self.bound >= true - slack:
            raise SolverError(
                f"bound {self.bound!r} is below the objective {true!r}: it is no upper bound"
            )
        if self.duals is not None:
            _check("bound of the duals", self.bound, proven, slack)
        elif not self.bound >= proven - tolerance:
            raise SolverError(
                f"bound {self.bound!r} is below {proven!r}, which is proven to be the least: it is "
                "not an upper bound"
            )
        if self.status is Status.OPTIMAL:
            if not proven - true <= tolerance:
                raise SolverError(
                    f"status optimal is claimed for objective {true!r}, but only the bound "
                    f"{proven!r} is proven: {proof}"
                )
            if proof.open:
                raise SolverError(f"status optimal is claimed, but {proof}")
            _check("bound", self.bound, proven, tolerance)
        return report

    def _check_fields(self) -> None:
        """Raise SolverError for fields that are not of their kind."""
        if not isinstance(self.pattern, Pattern) or self.scored not in SCORED:
            raise SolverError(
                f"pattern {self.pattern!r} is not a Pattern, or scored {self.scored!r} none of "
                f"{', '.join(SCORED)}"
            )
        numbers = {"objective": self.objective, "bound": self.bound, "gap": self.gap}
        for name, value in numbers.items():
            if not isinstance(value, float) and (value is not None or name == "objective"):
                raise SolverError(f"{name} {value!r} is not a float")
        if not isinstance(self.status, Status):
            raise SolverError(f"status {self.status!r} is not a Status")
        arrays = (
            []
            if self.duals is None
            else [getattr(self.duals, name, None) for name in ("rows", "columns")]
        )
        if arrays and (
            not isinstance(arrays[0], np.ndarray)
            or not isinstance(arrays[1], (np.ndarray, type(None)))
        ):
            raise SolverError(f"duals {type(self.duals).__name__} are not Duals of arrays")


def _check(what: str, claimed: float, true: float, slack: float) -> None:
    if not abs(claimed - true) <= slack:
        raise SolverError(
            f"{what} {claimed!r} is claimed, {true!r} is true (difference {claimed - true:.3g})"
        )
