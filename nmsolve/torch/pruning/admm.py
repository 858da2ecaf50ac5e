"""Alternating directions (ADMM): least squares, and the exact projection onto a pattern, until they
agree on a mask.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nmsolve.torch.pruning.objective import Hessian
from nmsolve.torch.pruning.problem import Problem

#: ρ, in units of the Hessian once its diagonal is one: where it starts, and its growth after every
#: second iteration.
_FIRST, _GROWTH, _EVERY = 0.3, 1.8, 2
#: Iterations at least and at most: row-wise masks settle sooner.
_ROW_WISE, _TRANSPOSABLE = 6, 20
#: Share of the kept weights that may still change when the mask counts as settled.
_SETTLED = 1e-3


def admm_mask(problem: Problem, hessian: Hessian, side: Tensor) -> tuple[Tensor, Tensor, int]:
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

    References
    ----------
    Boyd et al., Distributed optimization and statistical learning via ADMM, 2011, section 9.1; with
    approximate projections for transposable masks, Meng et al., TSENOR, 2025, section 4.
    """
    transposable = problem.entry.pattern.transposable
    most = _TRANSPOSABLE if transposable else _ROW_WISE
    goal = problem.weight * hessian.scale
    mask = problem.best_mask(goal.square())
    kept, dual, rho = torch.where(mask, goal, 0), torch.zeros_like(goal), _FIRST
    size, done = float(mask.sum()), 0
    while done < most:
        done += 1
        free = (side + rho * kept - dual) @ hessian.inverse(rho)
        wanted = free + dual / rho
        new = problem.best_mask(wanted.square())
        changed, mask = float((new & ~mask).sum()), new
        kept = torch.where(mask, wanted, 0)
        if changed <= _SETTLED * size and rho > 1:
            break
        dual += rho * (free - kept)
        if done % _EVERY == 0:
            rho *= _GROWTH
    return mask, kept / hessian.scale, done
