"""Least squares on a fixed support: the kept weights with which outputs change least."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nmsolve.errors import InputError
from nmsolve.torch.options import is_integer, is_number
from nmsolve.torch.pruning.problem import Problem, Solution

#: Weights whose rows are solved at once.
_AT_ONCE = 2**21
#: Rounds of iterations, at most, each of which starts from the true residual in float64.
_ROUNDS = 10
#: By how much a round in float32 is to reduce it, and by how much it has to for the next one to be
#: in float32 too.
_GAIN, _LEAST_GAIN = 1e-4, 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastSquares:
    r"""The normal equations of every row on its support, by conjugate gradients with Jacobi's
    preconditioner, many rows at once.

    Iterations are in float32 (float64 for weights in float64, and where float32 does not get on),
    residuals in float64.

    .. math:: \min_V \lVert Y - X V^T \rVert^2 + \delta \lVert V - M \circ W \rVert^2,
        \quad V = M \circ V

    Attributes
    ----------
    damping : float
        δ as a share of the mean diagonal of XᵀX. It pulls towards the masked weights, so that the
        error can never be above theirs, and makes the solution unique; 0 needs inputs of full rank.
    tolerance : float
        The residual at which every row counts as solved, relative to its right-hand side.
    iterations : int
        Of conjugate gradients, at most.

    Raises
    ------
    InputError
        For a damping or tolerance that is negative or no number, or no positive number of
        iterations.

    References
    ----------
    Hestenes & Stiefel, Methods of conjugate gradients for solving linear systems, Journal of
    Research of the National Bureau of Standards 49(6), 1952, 409-436.

    Examples
    --------
    >>> LeastSquares(damping=0.1).iterations
    2000
    """

    damping: float = 1e-2
    tolerance: float = 1e-8
    iterations: int = 2000

    def __post_init__(self) -> None:
        for name, value in (("damping", self.damping), ("tolerance", self.tolerance)):
            if not (is_number(value) and value >= 0):
                raise InputError(
                    f"{name} must be a number that is not negative, such as 1e-2, got {value!r}"
                )
        if not is_integer(self.iterations):
            raise InputError(f"iterations must be a positive integer, got {self.iterations!r}")

    def solve(self, problem: Problem, mask: Tensor) -> Solution:
        """Return the best weights on a mask.

        Raises
        ------
        InputError
            Without damping, if the inputs' rank is below their number, naming the layer: masks may
            then leave rows without a unique solution.
        """
        if not self.damping:
            _check_rank(problem)
        delta = problem.damping(self.damping)
        start = torch.where(mask, problem.weight, 0)
        kind = torch.float64 if problem.precise else torch.float32
        moments = problem.moments
        rows = max(1, _AT_ONCE // start.shape[-1])
        pieces = zip(
            *(torch.split(tensor, rows, 1) for tensor in (start, mask, moments.cross)), strict=True
        )
        residuals, iterations = [], []
        for weight, kept, cross in pieces:
            new, residual, done = _conjugate_gradients(
                moments.gram, cross, weight, kept, delta, self.tolerance, self.iterations, kind
            )
            weight.copy_(new)
            residuals.append(residual)
            iterations.append(done)
        return Solution(
            weight=start,
            mask=mask,
            iterations=max(iterations),
            residual=max(residuals),
            damping=float(delta.max()),
        )


def _conjugate_gradients(
    gram: Tensor,
    cross: Tensor,
    start: Tensor,
    mask: Tensor,
    delta: Tensor,
    tolerance: float,
    most: int,
    kind: torch.dtype,
) -> tuple[Tensor, float, int]:
    """Weights, the largest relative residual of a row, and the number of iterations; these are in
    `kind`, and residuals are computed again between their rounds.

    Jacobi's preconditioner is a change of variables after which the matrix has a diagonal of ones,
    whatever the inputs' scales.
    """
    diagonal = gram.diagonal(dim1=1, dim2=2).unsqueeze(1) + delta
    # A column that is never used has no say.
    inverse = torch.where(diagonal > 0, 1 / diagonal.sqrt(), 0.0)

    def scaled() -> Tensor:
        matrix = (gram * inverse).mul_(inverse.mT).to(kind)
        matrix.diagonal(dim1=1, dim2=2).copy_((diagonal > 0).squeeze(1))
        return matrix

    matrix = scaled()
    goal = torch.where(mask, cross + delta * start, 0)
    scale = goal.norm(dim=-1, keepdim=True)
    scale = torch.where(scale > 0, scale, 1.0)
    weight, done, before = start.clone(), 0, math.inf
    for rounds in range(_ROUNDS + 1):
        residual = goal - torch.where(mask, weight @ gram + delta * weight, 0)
        relative = float((residual.norm(dim=-1, keepdim=True) / scale).max())
        if relative <= tolerance or done >= most or rounds == _ROUNDS:
            break
        if relative > _LEAST_GAIN * before and kind != torch.float64:
            kind = torch.float64
            matrix = scaled()
        residual *= inverse
        size = residual.norm(dim=-1, keepdim=True)
        wanted = 0.3 * tolerance / relative
        share = max(wanted, _GAIN if kind == torch.float32 else torch.finfo(kind).eps)
        unit = (residual / torch.where(size > 0, size, 1.0)).to(kind)
        step, iterations = _reduced(matrix, mask.to(kind), unit, share, most - done)
        weight += inverse * size * step.double()
        done, before = done + iterations, relative
    return weight, relative, done


def _reduced(
    matrix: Tensor, kept: Tensor, residual: Tensor, share: float, most: int
) -> tuple[Tensor, int]:
    """Steps after which residuals of norm one, which are overwritten, are down to a share; and the
    number of iterations.
    """
    found, direction = torch.zeros_like(residual), residual.clone()
    energy = residual.square().sum(-1, keepdim=True)
    done = 0
    while done < most:
        done += 1
        image = (direction @ matrix).mul_(kept)
        curvature = (direction * image).sum(-1, keepdim=True)
        step = torch.where(curvature > 0, energy / curvature, 0.0)
        found.addcmul_(direction, step)
        residual.addcmul_(image, step, value=-1)
        new = residual.square().sum(-1, keepdim=True)
        unsolved = new > share**2
        if not bool(unsolved.any()):
            break
        # Rows that are solved stand still.
        direction.mul_(torch.where(energy > 0, new / energy, 0.0)).add_(residual).mul_(unsolved)
        energy = torch.where(unsolved, new, 0.0)
    return found, done


def _check_rank(problem: Problem) -> None:
    """InputError, naming the layer, unless the inputs of each part have full rank."""
    for part, gram in enumerate(problem.moments.gram):
        values = torch.linalg.eigvalsh(gram)
        rank = int(
            (values > values[-1].clamp(min=0) * len(gram) * torch.finfo(gram.dtype).eps).sum()
        )
        if rank < len(gram):
            which = f" (part {part})" if len(problem.moments.gram) > 1 else ""
            raise InputError(
                f"layer {problem.entry.path}{which}: its {len(gram)} inputs have rank {rank} over "
                "the calibration, so that least squares without damping need not have a unique "
                "solution: give more calibration inputs, or damping=1e-2"
            )
