"""Alternating directions (ADMM): least squares, and the exact projection onto a pattern."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nmsolve.torch.pruning.objective import Hessian
from nmsolve.torch.pruning.problem import Problem


class Schedule(NamedTuple):
    """The growth of ρ, in units of the Hessian once its diagonal is one, and its end.

    Attributes
    ----------
    first, growth : float
    every : int
        Iterations after which ρ grows.
    most : int
        Iterations at most; sooner once ρ is above 1 and the mask has settled.
    """

    first: float
    growth: float
    every: int
    most: int


#: Row-wise the iterations that a time of twice SparseGPT's allows: more of them lower the error
#: still (`python -m benchmarks.pruning_settings`).
ROW_WISE, TRANSPOSABLE = Schedule(0.3, 1.8, 2, 6), Schedule(0.3, 1.8, 2, 20)
#: Share of the kept weights that may still change when the mask counts as settled.
_SETTLED = 1e-3


def admm_mask(
    problem: Problem, hessian: Hessian, side: Tensor, schedule: Schedule | None = None
) -> tuple[Tensor, Tensor, int]:
    r"""Return a mask for min ⟨V − Ŵ, (V − Ŵ) H⟩, weights on it that are near the best, and the
    number of iterations.

    .. math::
        V &\leftarrow (\hat W H + \rho D - U) (H + \rho I)^{-1} \\
        D &\leftarrow P(V + U / \rho) \\
        U &\leftarrow U + \rho (V - D)

    where P keeps the entries of the mask that maximises the sum of their squares, found exactly: it
    is the projection onto the matrices that satisfy the pattern, and Ŵ H = W H + R is what least
    squares without a mask is solved with. ρ grows, so that V comes to satisfy the pattern. Columns
    are scaled so that H has a diagonal of ones.

    Parameters
    ----------
    problem : Problem
    hessian : Hessian
    side : (parts, rows, cols) Tensor
        `Problem.right_hand_side`.
    schedule : Schedule, optional
        None: the one for row-wise or for transposable patterns.

    References
    ----------
    Boyd et al., Distributed optimization and statistical learning via ADMM, 2011, section 9.1; with
    approximate projections for transposable masks, Meng et al., TSENOR, 2025, section 4.
    """
    if schedule is None:
        schedule = TRANSPOSABLE if problem.entry.pattern.transposable else ROW_WISE
    goal = problem.weight * hessian.scale
    mask = problem.best_mask(goal.square())
    kept, dual, rho = torch.where(mask, goal, 0), torch.zeros_like(goal), schedule.first
    size, done = float(mask.sum()), 0
    while done < schedule.most:
        done += 1
        free = (side + rho * kept - dual) @ hessian.inverse(rho)
        wanted = free + dual / rho
        new = problem.best_mask(wanted.square())
        changed, mask = float((new & ~mask).sum()), new
        kept = torch.where(mask, wanted, 0)
        if changed <= _SETTLED * size and rho > 1:
            break
        dual += rho * (free - kept)
        if done % schedule.every == 0:
            rho *= schedule.growth
    return mask, kept / hessian.scale, done
