"""A layer's error as a function of its weights, and the Hessian that layers with the same inputs
share.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from nmsolve.torch.calibration.second_moments import SecondMoments

#: Bytes of inverses that a Hessian keeps for the layers that share it.
_KEPT = 2**28


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    r"""‖Y − X Vᵀ‖² of weights V = W + D, by their change D.

    .. math:: \lVert Y - X V^T \rVert^2 = c - 2 \langle R, D \rangle + \langle D\, X^T X, D \rangle

    In this form no large numbers cancel, and float32 will do.

    Attributes
    ----------
    gram : (parts, cols, cols) Tensor
        XᵀX.
    pull : (parts, rows, cols) Tensor or None
        R = (Y − X Wᵀ)ᵀ X; None for zero, where outputs are the layer's own.
    constant : float
        c = ‖Y − X Wᵀ‖².
    energy : float
        ‖Y‖².
    """

    gram: Tensor
    pull: Tensor | None
    constant: float
    energy: float

    @classmethod
    def of(
        cls,
        sums: SecondMoments,
        weight: Tensor,
        products: Tensor,
        about: tuple[Tensor, Tensor] | None,
    ) -> Objective:
        """Return the objective for wanted outputs Y = X' Wᵀ.

        Parameters
        ----------
        sums : SecondMoments
            Of X and X'.
        weight : (parts, rows, cols) Tensor
            W, of the dtype to compute in.
        products : (parts, cols, cols) Tensor
            WᵀW.
        about : pair of (parts, cols) Tensors or None
            Points that X and X' are taken relative to, as for `SecondMoments.about`.
        """
        kind = weight.dtype
        moved = sums.about(about)
        own = moved.crossed is moved.gram
        between = moved.towards_dense

        def total(square: Tensor) -> float:
            return max(0.0, float((products * square).sum(dtype=torch.float64)))

        return cls(
            gram=moved.gram.to(kind),
            pull=None if own else weight @ between.to(kind),
            # Σ (x' − x)(x' − x)ᵀ
            constant=0.0 if own else total(moved.dense - moved.crossed - between.mT),
            energy=total(moved.dense),
        )

    def rise(self, change: Tensor) -> Tensor:
        """Return by how much a change D (parts, rows, cols) raises the error of each row: (parts,
        rows), float64.
        """
        image = change @ self.gram
        if self.pull is not None:
            image.sub_(self.pull, alpha=2)
        return image.mul_(change).sum(-1, dtype=torch.float64)

    def share(self, rise: Tensor) -> float:
        """Return the error of all rows, relative to the energy of the outputs."""
        return max(0.0, self.constant + float(rise.sum())) / (self.energy or 1.0)


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
    damping : float
        The largest δ of any part.
    """

    matrix: Tensor
    scale: Tensor
    damping: float
    _inverses: dict[float, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, gram: Tensor, share: float, kind: torch.dtype) -> Hessian:
        """Return the Hessian with δ a share of the mean of the diagonal of XᵀX; of one where all
        inputs are zero, and nothing matters.

        Parameters
        ----------
        gram : (parts, cols, cols) Tensor
            XᵀX, float64.
        share : float
        kind : torch.dtype
            Of the result.
        """
        diagonal = gram.diagonal(dim1=1, dim2=2)
        mean = diagonal.mean(1, keepdim=True)
        delta = share * torch.where(mean > 0, mean, 1.0)
        squares = diagonal + delta
        scale = torch.where(squares > 0, squares.sqrt(), 1.0)
        matrix = (gram / scale.unsqueeze(1) / scale.unsqueeze(2)).to(kind)
        matrix.diagonal(dim1=1, dim2=2).copy_(squares > 0)
        return cls(matrix=matrix, scale=scale.unsqueeze(1).to(kind), damping=float(delta.max()))

    def inverse(self, rho: float) -> Tensor:
        """Return (H / (s sᵀ) + ρ I)⁻¹ for a positive ρ."""
        found = self._inverses.get(rho)
        if found is None:
            raised = self.matrix.clone()
            raised.diagonal(dim1=1, dim2=2).add_(rho)
            found = torch.cholesky_inverse(torch.linalg.cholesky(raised))
            if (len(self._inverses) + 1) * found.nbytes <= _KEPT:
                self._inverses[rho] = found
        return found
