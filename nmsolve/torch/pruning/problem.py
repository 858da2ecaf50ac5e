"""A layer to be pruned as a least-squares problem, and its solution."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nmsolve.geometry import Geometry
from nmsolve.torch.calibration.second_moments import SecondMoments
from nmsolve.torch.pruning.objective import Hessian, Objective
from nmsolve.torch.weights.layer_plan import PlannedWeight
from nmsolve.torch.weights.planned import solve_mask

#: Weights whose rows are solved at once.
_AT_ONCE = 2**23


@dataclass(slots=True, kw_only=True)
class Problem:
    r"""min over masks M and weights V on them of ‖Y − X Vᵀ‖².

    Attributes
    ----------
    entry : PlannedWeight
    layout : Geometry
    weight : (parts, rows, cols) Tensor
        The dense one, W, in float32, or float64 where that is the model's or is asked for.
    sums : SecondMoments
        Of the inputs that weights are fitted to.
    about : pair of (parts, cols) Tensors or None
        Means of inputs, where a bias is fitted along.
    held_out_sums : SecondMoments
        Of inputs that nothing is fitted to.
    hessians : dict
        Of all layers with these inputs, by share of damping, dtype and whether a bias is fitted.
    samples : sequence of (int, Tensor, Tensor)
        (part, X, Y) of every calibration item, X (batch, positions, cols) and Y (batch, positions,
        rows), for updates that draw from them; empty for the others.
    objective : Objective
        The error on the inputs that weights are fitted to.
    held_out : Objective or None
        The error on the others; None where there are none.
    """

    entry: PlannedWeight
    layout: Geometry
    weight: Tensor
    sums: SecondMoments
    held_out_sums: SecondMoments
    about: tuple[Tensor, Tensor] | None
    hessians: dict[object, Hessian]
    samples: Sequence[tuple[int, Tensor, Tensor]] = ()
    objective: Objective = field(init=False)
    held_out: Objective | None = field(init=False)
    _products: Tensor = field(init=False)
    _rises: list[tuple[Tensor, tuple[Tensor, Tensor | None]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._products = self.weight.mT @ self.weight
        self.objective, self.held_out = self.objectives(self.about)

    def objectives(self, about: tuple[Tensor, Tensor] | None) -> tuple[Objective, Objective | None]:
        """Return the errors on both kinds of inputs, taken relative to some points."""
        others = bool(self.held_out_sums.count.all())
        return (
            Objective.of(self.sums, self.weight, self._products, about),
            Objective.of(self.held_out_sums, self.weight, self._products, about)
            if others
            else None,
        )

    def rises(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return by how much weights raise the error of each row on both kinds of inputs (None
        without held-out ones). Of tensors that do not change.
        """
        for known, found in self._rises:
            if known is weight:
                return found
        change = weight - self.weight
        found = (
            self.objective.rise(change),
            None if self.held_out is None else self.held_out.rise(change),
        )
        self._rises = [*self._rises[-3:], (weight, found)]
        return found

    def shares(self, weight: Tensor) -> tuple[float, float | None]:
        """Return the errors of weights on both kinds of inputs, relative to the outputs' energy."""
        fitted, held_out = self.rises(weight)
        if self.held_out is None or held_out is None:
            return self.objective.share(fitted), None
        return self.objective.share(fitted), self.held_out.share(held_out)

    def judged(self, weight: Tensor) -> float:
        """Return the error that decides between weights: on held-out inputs, if there are some."""
        fitted, held_out = self.shares(weight)
        return fitted if held_out is None else held_out

    @property
    def gram(self) -> Tensor:
        """XᵀX, (parts, cols, cols), float64."""
        return self.sums.about(self.about).gram

    def hessian(self, damping: float, kind: torch.dtype | None = None) -> Hessian:
        """Return XᵀX + δ I, with δ a share of the mean of the diagonal."""
        kind = kind or self.weight.dtype
        key = (damping, kind, self.about is None)
        if key not in self.hessians:
            self.hessians[key] = Hessian.of(self.gram, damping, kind)
        return self.hessians[key]

    def right_hand_side(self, hessian: Hessian) -> Tensor:
        """Return W H + R in the Hessian's scale: what least squares without a mask is solved
        with.
        """
        kind = hessian.matrix.dtype
        side = (self.weight.to(kind) * hessian.scale) @ hessian.matrix
        pull = self.objective.pull
        if pull is None:
            return side
        if pull.dtype != kind:
            pull = self.weight.to(kind) @ self.sums.about(self.about).towards_dense.to(kind)
        return side.add_(pull / hessian.scale)

    def best_mask(self, scores: Tensor) -> Tensor:
        """Return the exact mask for scores that are not negative; both (parts, rows, cols)."""
        laid = self.layout.weight(scores)
        return self.layout.matrices(solve_mask(self.entry, laid, laid, "exact"))

    def norms(self) -> Tensor:
        """Return the root mean squares of the inputs, times the root of their number: (parts, 1,
        cols).
        """
        squares = self.sums.about(None).gram.diagonal(dim1=1, dim2=2)
        return squares.clamp(min=0).sqrt().unsqueeze(1).to(self.weight.dtype)

    def pieces(self) -> Iterator[slice]:
        """Yield rows that are solved at once: all blocks within them whole, of one part."""
        parts, rows, cols = self.weight.shape
        whole = self.entry.pattern.rows
        many = max(1, _AT_ONCE // max(1, parts * cols * whole)) * whole
        # Blocks may lie across parts that are no products of their own.
        if parts > 1 or many >= rows:
            yield slice(None)
            return
        for start in range(0, rows, many):
            yield slice(start, start + many)


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """A layer's new weights.

    Attributes
    ----------
    weight, mask : (parts, rows, cols) Tensor
        As the problem's weight, and bool.
    method : str
        The way to them, for the report.
    iterations : int
        Of the update.
    residual : float or None
        Of the normal equations on the mask, relative to that of the masked weights, the largest of
        any row; None where they were not solved.
    damping : float
        δ; the largest of any part.
    """

    weight: Tensor
    mask: Tensor
    method: str
    iterations: int
    residual: float | None
    damping: float
