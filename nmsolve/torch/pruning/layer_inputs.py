"""The inputs that layers share, in the form that problems are solved with."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from nmsolve.torch.calibration.second_moments import Points, SecondMoments
from nmsolve.torch.pruning.objective import Hessian, Squares


@dataclass(slots=True, kw_only=True)
class LayerInputs:
    """Squares of the inputs of layers that share them, or of one layer's.

    Attributes
    ----------
    sums, held_out_sums : SecondMoments
        Of the inputs that weights are fitted to, and of others.
    about : Points or None
        Means of the inputs that weights are fitted to, where a bias is fitted along.
    fitted : Squares
    held_out : Squares or None
        About their own means, where a bias is fitted along; None where there are no others.
    kind : torch.dtype
        Of both.
    """

    sums: SecondMoments
    held_out_sums: SecondMoments
    about: Points | None
    kind: torch.dtype
    fitted: Squares = field(init=False)
    held_out: Squares | None = field(init=False)
    _hessians: dict[object, Hessian] = field(default_factory=dict)

    def __post_init__(self) -> None:
        others = bool(self.held_out_sums.count.all())
        self.fitted = Squares.of(self.sums, self.about, self.kind)
        means = None if self.about is None else self.held_out_sums.means
        self.held_out = Squares.of(self.held_out_sums, means, self.kind) if others else None

    @property
    def gram(self) -> Tensor:
        """XᵀX, (parts, cols, cols), float64."""
        return self.sums.about(self.about).gram

    def hessian(self, damping: float, kind: torch.dtype, parts: slice) -> Hessian:
        """Return XᵀX + δ I of some parts, with δ a share of the mean of the diagonal."""
        key = (damping, kind, parts.start, parts.stop)
        if key not in self._hessians:
            gram = self.fitted.gram if kind == self.kind else self.sums.about(self.about, kind).gram
            self._hessians[key] = Hessian.of(gram[parts], damping)
        return self._hessians[key]

    def norms(self, parts: slice) -> Tensor:
        """Return the root mean squares of the inputs of some parts, times the root of their number:
        (parts, 1, cols).
        """
        return self.sums.squares[parts].clamp(min=0).sqrt().unsqueeze(1).to(self.kind)
