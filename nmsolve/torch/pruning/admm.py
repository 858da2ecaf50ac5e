"""Alternating directions (ADMM): least squares, and the exact projection onto a pattern, until they
agree on a mask.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nmsolve.torch.pruning.problem import Problem

#: ρ, in units of the Hessian once its diagonal is one: where it starts, and its growth per
#: iteration.
_FIRST, _GROWTH = 0.1, 1.1
_ITERATIONS = 120
#: Iterations without a change of the mask after which it is taken as settled.
_SETTLED = 8


def admm_mask(problem: Problem, target: Tensor, hessian: Tensor) -> tuple[Tensor, int]:
    r"""Return a mask for min ⟨V − Ŵ, (V − Ŵ) H⟩ with target Ŵ and Hessian H, and the number of
    iterations.

    .. math::
        V &\leftarrow (\hat W H + \rho D - U) (H + \rho I)^{-1} \\
        D &\leftarrow P(V + U / \rho) \\
        U &\leftarrow U + \rho (V - D)

    where P keeps the entries of the mask that maximises the sum of their squares, found exactly: it
    is the projection onto the matrices that satisfy the pattern. ρ grows, so that V comes to
    satisfy it. Columns are scaled so that H has a diagonal of ones.

    Parameters
    ----------
    problem : Problem
    target : (parts, rows, cols) Tensor
    hessian : (parts, cols, cols) Tensor
        Positive definite; both float64.

    References
    ----------
    Boyd et al., Distributed optimization and statistical learning via ADMM, 2011, section 9.1; with
    approximate projections for transposable masks, Meng et al., TSENOR, 2025, section 4.
    """
    scale = hessian.diagonal(dim1=1, dim2=2).sqrt().unsqueeze(1)
    values, vectors = torch.linalg.eigh(hessian / scale / scale.mT)
    goal = target * scale
    pulled = (goal @ vectors) * values.unsqueeze(1)  # Ŵ H, in the basis of H
    rho = _FIRST
    mask = problem.best_mask(goal.square())
    kept = torch.where(mask, goal, 0)
    dual = torch.zeros_like(goal)
    unchanged = done = 0
    while done < _ITERATIONS:
        done += 1
        free = ((pulled + (rho * kept - dual) @ vectors) / (values + rho).unsqueeze(1)) @ vectors.mT
        wanted = free + dual / rho
        new = problem.best_mask(wanted.square())
        kept = torch.where(new, wanted, 0)
        dual += rho * (free - kept)
        unchanged = unchanged + 1 if torch.equal(new, mask) else 0
        mask = new
        if unchanged == _SETTLED and rho > 1:
            break
        rho *= _GROWTH
    return mask, done
