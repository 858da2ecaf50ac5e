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
#: Share of rows that are left to be solved at which the others are put aside.
_FEWER = 0.7


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
        kept = mask.to(kind)
        first = (weight if start is None else start).to(kind) * kept
        change = first - weight.to(kind)
        pull = problem.pull(kind)
        # R − D H, of weights that are W + D: what is left of the normal equations.
        left = ((change * hessian.scale) @ hessian.matrix).neg_()
        if pull is not None:
            left.addcdiv_(pull, hessian.scale)
        # ⟨D H, D⟩ − 2 ⟨R, D⟩, by which they raise the error, with damping.
        rise = -_dot(left * hessian.scale if pull is None else left * hessian.scale + pull, change)
        size = (side * kept).norm(dim=-1, keepdim=True)
        residual = left.mul_(kept)
        before = residual.clone()
        step, done = _conjugate_gradients(
            hessian, residual, kept, self.tolerance * size, self.iterations
        )
        relative = residual.norm(dim=-1, keepdim=True) / torch.where(size > 0, size, 1.0)
        rise -= _dot(step, before.add_(residual))
        step /= hessian.scale
        change += step
        rise -= hessian.delta.squeeze(2) * _dot(change, change)
        found = first.add_(step).to(weight.dtype)
        if kind == weight.dtype:
            problem.know(found, rise)
        return Solution(
            weight=found,
            mask=mask,
            method="least squares",
            iterations=done,
            residual=float(relative.max()),
            damping=hessian.damping,
        )


def _dot(first: Tensor, second: Tensor) -> Tensor:
    """Products of rows, float64."""
    return (first * second).sum(-1, dtype=torch.float64)


def _conjugate_gradients(
    hessian: Hessian, residual: Tensor, kept: Tensor, goal: Tensor, most: int
) -> tuple[Tensor, int]:
    """The step that takes rows' residuals, which are changed in place, to their goals, and the
    number of iterations.

    In variables v s, in which the Hessian has a diagonal of ones, whatever the inputs' scales.
    """
    total = torch.zeros_like(residual)
    rows: Tensor | None = None  # that are not solved, once they are fewer
    step, left, direction = total, residual, residual.clone()
    energy = residual.square().sum(-1, keepdim=True)
    done = 0
    while done < most:
        unsolved = energy.sqrt() > goal
        count = int(unsolved.sum())
        if not count:
            break
        if len(residual) == 1 and count < _FEWER * unsolved.shape[1]:
            among = unsolved[0, :, 0].nonzero()[:, 0]
            if rows is not None:
                total[0, rows], residual[0, rows] = step[0], left[0]
            rows = among if rows is None else rows[among]
            step, left, direction, kept, energy, goal = (
                one[:, among] for one in (step, left, direction, kept, energy, goal)
            )
        done += 1
        image = (direction @ hessian.matrix).mul_(kept)
        curvature = (direction * image).sum(-1, keepdim=True)
        length = torch.where(curvature > 0, energy / curvature, 0.0)
        step.addcmul_(direction, length)
        left.addcmul_(image, length, value=-1)
        new = left.square().sum(-1, keepdim=True)
        # Rows that are solved stand still.
        moving = new.sqrt() > goal
        direction.mul_(torch.where(energy > 0, new / energy, 0.0)).add_(left).mul_(moving)
        energy = torch.where(moving, new, 0.0)
    if rows is not None:
        total[0, rows], residual[0, rows] = step[0], left[0]
    return total, done


def _check_rank(problem: Problem) -> None:
    """InputError, naming the layer, unless the inputs of each part have full rank."""
    grams = problem.inputs.gram
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
