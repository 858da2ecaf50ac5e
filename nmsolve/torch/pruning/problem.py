"""A layer to be pruned, as its least-squares problem, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nmsolve.torch.calibration.layout import Layout
from nmsolve.torch.calibration.moments import Moments
from nmsolve.torch.training.masked_layer import solve_mask
from nmsolve.torch.weights.planning import LayerPlan


@dataclass(frozen=True, slots=True)
class Problem:
    r"""min over masks M and weights V on them of ‖Y − X Vᵀ‖².

    entry, layout : of the weight. weight : dense, (parts, rows, cols), float64. moments : of inputs
    X and wanted outputs Y. samples : (part, X, Y) of every calibration item, X (batch, positions,
    cols), for solvers that draw; empty for the others. precise : whether the weight is float64, so
    that float32 is no place to iterate in.
    """

    entry: LayerPlan
    layout: Layout
    weight: Tensor
    moments: Moments
    samples: Sequence[tuple[int, Tensor, Tensor]] = ()
    precise: bool = True

    def best_mask(self, scores: Tensor) -> Tensor:
        """The exact mask for scores (parts, rows, cols) that are not negative, laid out alike."""
        laid = self.layout.weight(scores)
        return self.layout.matrices(solve_mask(self.entry, laid, laid, "exact"))

    def damping(self, share: float) -> Tensor:
        """(parts, 1, 1): a share of the mean of the diagonal of XᵀX; of one where all inputs are
        zero, and nothing matters.
        """
        mean = self.moments.gram.diagonal(dim1=1, dim2=2).mean(1).reshape(-1, 1, 1)
        return share * torch.where(mean > 0, mean, 1.0)


@dataclass(frozen=True, slots=True)
class Solution:
    """A layer's new weights.

    weight, mask : (parts, rows, cols). iterations : of the solver. residual : of the normal
    equations on the mask, relative to their right-hand side, the largest of any row; None where
    they were not solved. damping : the largest of any part.
    """

    weight: Tensor
    mask: Tensor
    iterations: int
    residual: float | None
    damping: float
