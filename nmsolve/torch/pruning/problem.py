"""A layer to be pruned, or some of its rows, as a least-squares problem, and its solution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nmsolve.geometry import Geometry
from nmsolve.torch.pruning.layer_inputs import LayerInputs
from nmsolve.torch.pruning.objective import Hessian, Objective, Squares
from nmsolve.torch.pruning.row_pieces import RowPiece
from nmsolve.torch.weights.layer_plan import PlannedWeight
from nmsolve.torch.weights.planned import solve_mask

#: Weights of masks that are worth threads of their own.
_WORTH_THREADS = 2**21


@dataclass(frozen=True, slots=True)
class Errors:
    """Errors, or energies, on the inputs that weights are fitted to and on others.

    Attributes
    ----------
    fitted : float
    held_out : float or None
        None where there are no others.
    """

    fitted: float
    held_out: float | None

    def __add__(self, other: Errors) -> Errors:
        """Return the sums of both."""
        held_out = None
        if self.held_out is not None and other.held_out is not None:
            held_out = self.held_out + other.held_out
        return Errors(self.fitted + other.fitted, held_out)

    @property
    def judged(self) -> float:
        """The error that decides between weights: on held-out inputs, if there are some."""
        return self.fitted if self.held_out is None else self.held_out

    def shares(self, energy: Errors) -> Errors:
        """Return errors relative to energies."""
        held_out = None
        if self.held_out is not None and energy.held_out is not None:
            held_out = self.held_out / (energy.held_out or 1.0)
        return Errors(self.fitted / (energy.fitted or 1.0), held_out)


#: By how much weights raise the errors of rows on both kinds of inputs, as far as that is known.
_Rises = list[Tensor | None]


@dataclass(slots=True, kw_only=True)
class Problem:
    r"""min over masks M and weights V on them of ‖Y − X Vᵀ‖².

    Attributes
    ----------
    entry : PlannedWeight
    piece : RowPiece
        The rows of it that these are.
    weight : (parts, rows, cols) Tensor
        The dense one, W, in the dtype of the inputs' squares.
    inputs : LayerInputs
    samples : sequence of (int, Tensor, Tensor)
        (part, X, Y) of every calibration item, X (batch, positions, cols) and Y (batch, positions,
        rows), for updates that draw from them; empty for the others.
    objective : Objective
        The error on the inputs that weights are fitted to.
    held_out : Objective or None
        The error on the others; None where there are none.
    """

    entry: PlannedWeight
    piece: RowPiece
    weight: Tensor
    inputs: LayerInputs
    samples: Sequence[tuple[int, Tensor, Tensor]] = ()
    objective: Objective = field(init=False)
    held_out: Objective | None = field(init=False)
    _rises: list[tuple[Tensor, _Rises]] = field(default_factory=list)
    #: Means of Y, for both kinds of inputs, about those that a fitted bias takes up or not.
    _wanted: dict[tuple[bool, bool], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kinds = [self.inputs.fitted]
        if self.inputs.held_out is not None:
            kinds.append(self.inputs.held_out)
        found = Objective.all_of(self.weight, [one.of_piece(self.piece) for one in kinds])
        self.objective, self.held_out = found[0], found[1] if len(found) > 1 else None

    @property
    def layout(self) -> Geometry:
        """Of these rows."""
        return self.piece.layout

    @property
    def about(self) -> tuple[Tensor, Tensor] | None:
        """Means of the inputs, and of the dense model's (parts, cols), where a bias is fitted."""
        if self.inputs.about is None:
            return None
        given, of_dense, _ = self.inputs.about
        return given[self.piece.parts], of_dense[self.piece.parts]

    def know(self, weight: Tensor, rise: Tensor) -> None:
        """Take note of by how much weights raise the errors of rows on the inputs that they are
        fitted to. Of tensors that do not change.
        """
        self._of(weight)[0] = rise

    def rises(self, weight: Tensor) -> Tensor:
        """Return by how much weights raise the error of each row on the inputs that they are
        fitted to. Of tensors that do not change.
        """
        known = self._of(weight)
        rise = known[0]
        if rise is None:
            rise = known[0] = self.objective.rise(weight - self.weight)
        return rise

    def held_out_rises(self, weight: Tensor) -> Tensor | None:
        """Return the same on held-out inputs; None without such."""
        known = self._of(weight)
        if known[1] is None and self.held_out is not None:
            known[1] = self.held_out.rise(weight - self.weight)
        return known[1]

    def _of(self, weight: Tensor) -> _Rises:
        """The rises that are known of weights: of the first ones and of the last few."""
        for known, found in self._rises:
            if known is weight:
                return found
        self._rises = [*self._rises[:1], *self._rises[1:][-3:], (weight, [None, None])]
        return self._rises[-1][1]

    def errors(self, weight: Tensor, *, bias: Tensor | float | None = None) -> Errors:
        """Return the errors of weights when the bias is changed by so much, (parts, rows, 1); None:
        by what fits them.
        """
        fitted, held_out = self.objective.error(self.rises(weight)), None
        others = self.held_out_rises(weight)
        if self.held_out is not None and others is not None:
            held_out = self.held_out.error(others)
        return Errors(fitted, held_out) + self._levels(weight, bias)

    def bias_change(self, weight: Tensor) -> Tensor:
        """Return the change of the bias that fits weights on the inputs that they are fitted to,
        where one is: (parts, rows, 1), float64.
        """
        assert self.about is not None
        mean, of_dense = (one.unsqueeze(2) for one in self.about)
        return self.weight.double() @ of_dense - weight.double() @ mean

    @property
    def energy(self) -> Errors:
        """‖Y‖² without a bias."""
        return self._energy(0.0)

    def _energy(self, bias: float | None) -> Errors:
        others = None if self.held_out is None else self.held_out.energy
        return Errors(self.objective.energy, others) + self._levels(None, bias)

    def _levels(self, weight: Tensor | None, bias: Tensor | float | None) -> Errors:
        """The part of errors that is due to means, of Y − X Vᵀ − 1 bᵀ; without weights that of
        energies, of Y − 1 bᵀ: sums of squares, so that nothing cancels where means are far apart.
        """
        others = None if self.held_out is None else self._of_means(self.held_out, weight, bias)
        # A bias that fits has taken up all of them there.
        fitted = 0.0 if bias is None else self._of_means(self.objective, weight, bias)
        return Errors(fitted, others)

    def _of_means(
        self, objective: Objective, weight: Tensor | None, bias: Tensor | float | None
    ) -> float:
        points = objective.squares.points
        if points is None or self.about is None:
            return 0.0
        given, of_dense = points
        if bias is None:  # it takes up the means of the inputs that weights are fitted to
            given, of_dense = (
                given - self.about[0].unsqueeze(2),
                of_dense - self.about[1].unsqueeze(2),
            )
        key = objective is self.objective, bias is None
        if key not in self._wanted:
            self._wanted[key] = self.weight.double() @ of_dense
        level = self._wanted[key]
        if weight is not None:
            level = level - weight.double() @ given
        return objective.of_levels(level if bias is None else level - bias)

    def shares(self, weight: Tensor) -> Errors:
        """Return the errors of weights relative to the energy of what they are fitted to."""
        return self.errors(weight).shares(self._energy(None))

    def judged(self, weight: Tensor) -> float:
        """Return the error that decides between weights."""
        return self.errors(weight).judged

    def hessian(self, damping: float, kind: torch.dtype | None = None) -> Hessian:
        """Return XᵀX + δ I, with δ a share of the mean of the diagonal."""
        return self.inputs.hessian(damping, kind or self.weight.dtype, self.piece.parts)

    def pull(self, kind: torch.dtype) -> Tensor | None:
        """Return R of the inputs that weights are fitted to, in some dtype."""
        pull = self.objective.pull
        if pull is None or pull.dtype == kind:
            return pull
        squares = Squares.of(self.inputs.sums, self.inputs.about, kind).of_piece(self.piece)
        between = squares.between
        return between if between is None or squares.by_outputs else self.weight.to(kind) @ between

    def right_hand_side(self, hessian: Hessian) -> Tensor:
        """Return W H + R in the Hessian's scale: what least squares without a mask is solved
        with.
        """
        kind = hessian.matrix.dtype
        side = (self.weight.to(kind) * hessian.scale) @ hessian.matrix
        pull = self.pull(kind)
        return side if pull is None else side.addcdiv_(pull, hessian.scale)

    def best_mask(self, scores: Tensor) -> Tensor:
        """Return the exact mask for scores that are not negative; both (parts, rows, cols)."""
        laid = self.layout.weight(scores)
        # Between matrix products, whose threads wait for the next one and are in the way of others.
        threads = 1 if laid.numel() < _WORTH_THREADS else None
        return self.layout.matrices(solve_mask(self.entry, laid, laid, "exact", threads))

    def norms(self) -> Tensor:
        """Return the root mean squares of the inputs, times the root of their number: (parts, 1,
        cols).
        """
        return self.inputs.norms(self.piece.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """New weights.

    Attributes
    ----------
    weight, mask : (parts, rows, cols) Tensor
        As the problem's weight, and bool.
    method : str
        The way to them, for the report.
    iterations : int
        Of the update.
    residual : float or None
        Of the normal equations on the mask, relative to their right-hand side, the largest of any
        row; None where they were not solved.
    damping : float
        δ; the largest of any part.
    """

    weight: Tensor
    mask: Tensor
    method: str
    iterations: int
    residual: float | None
    damping: float
