"""Least squares on a fixed support: the kept weights with which outputs change least."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nmsolve.errors import InputError
from nmsolve.torch.options import is_integer, is_number
from nmsolve.torch.pruning.objective import Hessian
from nmsolve.torch.pruning.problem import Problem, Solution

#: Below it float32 does not get to a residual.
_FLOAT32 = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastSquares:
    r"""The normal equations of every row on its support, by conjugate gradients with Jacobi's
    preconditioner, many rows at once.

    .. math:: \min_V \lVert Y - X V^T \rVert^2 + \delta \lVert V - M \circ W \rVert^2,
        \quad V = M \circ V

    In float32; in float64 for weights in float64, and for tolerances that float32 cannot reach.

    Attributes
    ----------
    damping : float
        δ as a share of the mean diagonal of XᵀX. It pulls towards the masked weights, so that the
        error can never be above theirs, and makes the solution unique; 0 needs inputs of full rank,
        and all is then in float64. Where the error on held-out inputs is well above that on the
        fitted ones, tenfold and more is tried, and the best on held-out inputs is taken.
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
    tolerance: float = 3e-2
    iterations: int = 2000

    def __post_init__(self) -> None:
        for name, value in (("damping", self.damping), ("tolerance", self.tolerance)):
            if not (is_number(value) and value >= 0):
                raise InputError(
                    f"{name} must be a number that is not negative, such as 1e-2, got {value!r}"
                )
        if not is_integer(self.iterations):
            raise InputError(f"iterations must be a positive integer, got {self.iterations!r}")

    def solve(
        self,
        problem: Problem,
        mask: Tensor,
        damping: float,
        start: Tensor | None = None,
        side: Tensor | None = None,
    ) -> Solution:
        """Return the best weights on a mask.

        Parameters
        ----------
        problem : Problem
        mask : (parts, rows, cols) bool Tensor
        damping : float
            Instead of the one that this was made with.
        start : (parts, rows, cols) Tensor, optional
            Weights that are thought to be near; None: the dense ones.
        side : (parts, rows, cols) Tensor, optional
            `Problem.right_hand_side` for this damping, where it is known.

        Raises
        ------
        InputError
            Without damping, if the inputs' rank is below their number, naming the layer: masks may
            then leave rows without a unique solution.
        """
        if not damping:
            _check_rank(problem)
        weight = problem.weight
        kind = torch.float64 if self.tolerance < _FLOAT32 else weight.dtype
        hessian = problem.hessian(damping, kind)
        if side is None or side.dtype != kind:
            side = problem.right_hand_side(hessian)
        new = torch.empty_like(weight)
        residuals, iterations = [0.0], [0]
        for rows in problem.pieces():
            found, residual, done = _conjugate_gradients(
                hessian,
                side[:, rows],
                mask[:, rows],
                (weight if start is None else start)[:, rows].to(kind),
                self.tolerance,
                self.iterations,
            )
            new[:, rows] = found.to(weight.dtype)
            residuals.append(residual)
            iterations.append(done)
        return Solution(
            weight=new,
            mask=mask,
            method="least squares",
            iterations=max(iterations),
            residual=max(residuals),
            damping=hessian.damping,
        )


def _conjugate_gradients(
    hessian: Hessian, side: Tensor, mask: Tensor, start: Tensor, tolerance: float, most: int
) -> tuple[Tensor, float, int]:
    """Weights, the largest relative residual of a row, and the number of iterations.

    In variables v s, in which the Hessian has a diagonal of ones, whatever the inputs' scales.
    """
    kept = mask.to(side.dtype)
    found = start * kept
    residual = (side - (found * hessian.scale) @ hessian.matrix).mul_(kept)
    size = (side * kept).norm(dim=-1, keepdim=True)
    goal = tolerance * size
    step = torch.zeros_like(residual)
    direction = residual.clone()
    energy = residual.square().sum(-1, keepdim=True)
    done = 0
    while done < most and bool((energy.sqrt() > goal).any()):
        done += 1
        image = (direction @ hessian.matrix).mul_(kept)
        curvature = (direction * image).sum(-1, keepdim=True)
        length = torch.where(curvature > 0, energy / curvature, 0.0)
        step.addcmul_(direction, length)
        residual.addcmul_(image, length, value=-1)
        new = residual.square().sum(-1, keepdim=True)
        # Rows that are solved stand still.
        unsolved = new.sqrt() > goal
        direction.mul_(torch.where(energy > 0, new / energy, 0.0)).add_(residual).mul_(unsolved)
        energy = torch.where(unsolved, new, 0.0)
    relative = residual.norm(dim=-1, keepdim=True) / torch.where(size > 0, size, 1.0)
    return found + step / hessian.scale, float(relative.max()), done


def _check_rank(problem: Problem) -> None:
    """InputError, naming the layer, unless the inputs of each part have full rank."""
    grams = problem.gram
    for part, gram in enumerate(grams):
        values = torch.linalg.eigvalsh(gram)
        rank = int(
            (values > values[-1].clamp(min=0) * len(gram) * torch.finfo(gram.dtype).eps).sum()
        )
        if rank < len(gram):
            which = f" (part {part})" if len(grams) > 1 else ""
            raise InputError(
                f"layer {problem.entry.path}{which}: its {len(gram)} inputs have rank {rank} over "
                "the calibration, so that least squares without damping need not have a unique "
                "solution: give more calibration inputs, or damping=1e-2"
            )
