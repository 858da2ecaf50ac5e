"""A layer to be pruned as a least-squares problem, and its solution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nmsolve.geometry import Geometry
from nmsolve.torch.calibration.moments import Moments
from nmsolve.torch.weights.layer_plan import PlannedWeight
from nmsolve.torch.weights.planned import solve_mask


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    r"""min over masks M and weights V on them of ‖Y − X Vᵀ‖².

    Attributes
    ----------
    entry : PlannedWeight
    layout : Geometry
    weight : (parts, rows, cols) Tensor
        The dense one, float64.
    moments : Moments
        Of inputs X and wanted outputs Y.
    samples : sequence of (int, Tensor, Tensor)
        (part, X, Y) of every calibration item, X (batch, positions, cols) and Y (batch, positions,
        rows), for updates that draw from them; empty for the others.
    precise : bool
        Whether the model's weight is float64: float32 is then too narrow to iterate in.
    """

    entry: PlannedWeight
    layout: Geometry
    weight: Tensor
    moments: Moments
    samples: Sequence[tuple[int, Tensor, Tensor]] = ()
    precise: bool = True

    def best_mask(self, scores: Tensor) -> Tensor:
        """Return the exact mask for scores that are not negative; both (parts, rows, cols)."""
        laid = self.layout.weight(scores)
        return self.layout.matrices(solve_mask(self.entry, laid, laid, "exact"))

    def damping(self, share: float) -> Tensor:
        """Return (parts, 1, 1): a share of the mean of the diagonal of XᵀX; of one where all inputs
        are zero, and nothing matters.
        """
        mean = self.moments.gram.diagonal(dim1=1, dim2=2).mean(1).reshape(-1, 1, 1)
        return share * torch.where(mean > 0, mean, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """A layer's new weights.

    Attributes
    ----------
    weight, mask : (parts, rows, cols) Tensor
        In float64, and bool.
    iterations : int
        Of the update, or of the choice of the mask where that has some.
    residual : float or None
        Of the normal equations on the mask, relative to their right-hand side, the largest of any
        row; None where they were not solved.
    damping : float
        The largest of any part.
    """

    weight: Tensor
    mask: Tensor
    iterations: int
    residual: float | None
    damping: float
