"""A layer's error as a function of its weights, and the Hessian that layers with the same inputs
share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nmsolve.torch.calibration.second_moments import Points, SecondMoments
from nmsolve.torch.pruning.row_pieces import RowPiece

#: Bytes of inverses that a Hessian keeps for the layers that share it.
_KEPT = 2**28
#: A symmetric product is done in so many strips, of so many columns at least.
_STRIPS, _WIDTH = 6, 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Squares:
    """Sums over inputs X and those of the dense model, X', about some points, by part. Where they
    were gathered for one weight W, Z is (X' − X) Wᵀ; else it is X' − X.

    Attributes
    ----------
    gram : (parts, cols, cols) Tensor
        XᵀX.
    between : (parts, cols or rows, cols) Tensor, or None
        ZᵀX; None where X' is X.
    gap : (parts, cols, cols) or (parts, rows) Tensor, or None
        ZᵀZ, or its diagonal where Z is outputs.
    count : (parts, 1) Tensor, float64
        Samples.
    points : pair of (parts, cols, 1) Tensors or None, float64
        The points of X and of X', which are their means; None for zero points.
    """

    gram: Tensor
    between: Tensor | None
    gap: Tensor | None
    count: Tensor
    points: tuple[Tensor, Tensor] | None

    @classmethod
    def of(cls, sums: SecondMoments, about: Points | None, kind: torch.dtype) -> Squares:
        """Return these sums for some dtype, about their means as for `SecondMoments.about`."""
        moved = sums.about(about, kind)
        points = None
        if about is not None:
            points = about.given.unsqueeze(2), about.of_dense.unsqueeze(2)
        return cls(
            gram=moved.gram,
            between=moved.between,
            gap=moved.gap,
            count=sums.count.unsqueeze(1),
            points=points,
        )

    def of_piece(self, piece: RowPiece) -> Squares:
        """Return those of some rows of the weight."""
        points = self.points
        between, gap = self.between, self.gap
        if between is not None and gap is not None:
            between, gap = between[piece.parts], gap[piece.parts]
            if self.by_outputs:
                between, gap = between[:, piece.within], gap[:, piece.within]
        return Squares(
            gram=self.gram[piece.parts],
            between=between,
            gap=gap,
            count=self.count[piece.parts],
            points=None if points is None else (points[0][piece.parts], points[1][piece.parts]),
        )

    @property
    def by_outputs(self) -> bool:
        """True if these are one weight's alone."""
        return self.gap is not None and self.gap.ndim == 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    r"""‖Y − X Vᵀ‖² of weights V = W + D, by their change D, for wanted outputs Y = X' Wᵀ.

    .. math:: \lVert Y - X V^T \rVert^2 = c - 2 \langle R, D \rangle + \langle D\, X^T X, D \rangle

    In this form no large numbers cancel, and float32 will do.

    Attributes
    ----------
    squares : Squares
        Of X and X'.
    pull : (parts, rows, cols) Tensor or None
        R = (Y − X Wᵀ)ᵀ X; None for zero, where outputs are the layer's own.
    constant : float
        c = ‖Y − X Wᵀ‖².
    energy : float
        ‖Y‖².
    """

    squares: Squares
    pull: Tensor | None
    constant: float
    energy: float

    @classmethod
    def all_of(cls, weight: Tensor, squares: Sequence[Squares]) -> list[Objective]:
        """Return the objectives of a weight W (parts, rows, cols) for several sums, in its
        dtype.
        """
        wanted = [one.gram for one in squares]
        wanted += [one.gap for one in squares if one.gap is not None and not one.by_outputs]
        found = _traces(weight, wanted)
        rest = iter(found[len(squares) :])
        objectives = []
        for one, energy in zip(squares, found, strict=False):
            pull, constant = one.between, 0.0
            if pull is not None and one.gap is not None:
                if one.by_outputs:
                    constant = max(0.0, float(one.gap.sum(dtype=torch.float64)))
                else:
                    pull, constant = weight @ pull, max(0.0, next(rest))
                energy += 2 * float((weight * pull).sum(dtype=torch.float64)) + constant
            objectives.append(
                cls(squares=one, pull=pull, constant=constant, energy=max(0.0, energy))
            )
        return objectives

    def rise(self, change: Tensor) -> Tensor:
        """Return by how much a change D (parts, rows, cols) raises the error of each row: (parts,
        rows), float64.
        """
        image = change @ self.squares.gram
        if self.pull is not None:
            image.sub_(self.pull, alpha=2)
        return image.mul_(change).sum(-1, dtype=torch.float64)

    def error(self, rise: Tensor) -> float:
        """Return the error of all rows; NaN where a rise is."""
        return max(self.constant + float(rise.sum()), 0.0)  # the other way round would hide NaN

    def of_levels(self, level: Tensor) -> float:
        """Return what levels (parts, rows, 1) of Y − X Vᵀ, its means, add to ‖Y − X Vᵀ‖² where that
        is about means.
        """
        return float((self.squares.count.unsqueeze(2) * level.square()).sum())


def _traces(weight: Tensor, squares: Sequence[Tensor]) -> list[float]:
    """⟨WᵀW, S⟩ for symmetric S."""
    cols = weight.shape[-1]
    width = max(_WIDTH, -(-cols // _STRIPS))
    totals = [0.0] * len(squares)
    for start in range(0, cols, width):
        stop = min(start + width, cols)
        product = weight[..., start:stop].mT @ weight[..., start:]
        product[..., stop - start :] *= 2  # for those below the diagonal
        for at, one in enumerate(squares):
            totals[at] += float((product * one[:, start:stop, start:]).sum(dtype=torch.float64))
    return totals


@dataclass(slots=True, kw_only=True)
class Hessian:
    """H = XᵀX + δ I of the inputs that layers share, its columns scaled so that its diagonal is
    one: Jacobi's preconditioner, whatever the inputs' scales.

    Attributes
    ----------
    matrix : (parts, cols, cols) Tensor
        H / (s sᵀ).
    scale : (parts, 1, cols) Tensor
        s, the square root of the diagonal of H; one where that is zero, and the column has no say.
    delta : (parts, 1, 1) Tensor, float64
        δ of each part.
    """

    matrix: Tensor
    scale: Tensor
    delta: Tensor
    _inverses: dict[float, Tensor] = field(default_factory=dict)
    _last: tuple[float, Tensor] | None = None

    @classmethod
    def of(cls, gram: Tensor, share: float) -> Hessian:
        """Return the Hessian with δ a share of the mean of the diagonal of XᵀX; of one where all
        inputs are zero, and nothing matters.

        Parameters
        ----------
        gram : (parts, cols, cols) Tensor
            XᵀX, in the dtype of the result.
        share : float
        """
        kind = gram.dtype
        diagonal = gram.diagonal(dim1=1, dim2=2).double()
        mean = diagonal.mean(1, keepdim=True)
        delta = share * torch.where(mean > 0, mean, 1.0)
        squares = diagonal + delta
        scale = torch.where(squares > 0, squares.sqrt(), 1.0)
        scale = scale.to(kind)
        matrix = (gram / scale.unsqueeze(1)).div_(scale.unsqueeze(2))
        matrix.diagonal(dim1=1, dim2=2).copy_(squares > 0)
        return cls(matrix=matrix, scale=scale.unsqueeze(1), delta=delta.unsqueeze(2))

    @property
    def damping(self) -> float:
        """The largest δ of any part."""
        return float(self.delta.max())

    def inverse(self, rho: float) -> Tensor:
        """Return (H / (s sᵀ) + ρ I)⁻¹ for a positive ρ."""
        if rho in self._inverses:
            return self._inverses[rho]
        if self._last is not None and self._last[0] == rho:
            return self._last[1]
        self._last = None
        raised = self.matrix.clone()
        raised.diagonal(dim1=1, dim2=2).add_(rho)
        torch.linalg.cholesky(raised, out=raised)
        found = torch.cholesky_inverse(raised)
        if (len(self._inverses) + 1) * found.nbytes <= _KEPT:
            self._inverses[rho] = found
        else:
            self._last = rho, found  # which is asked for more than once in a row
        return found
