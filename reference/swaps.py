"""Exchanges of kept and dropped weights of a layer while they lower its error, in plain torch.

For every row v of weights that are zero off a mask, with a target t and a Hessian H,

    E(v) = (v − t) H (v − t)ᵀ,  q = (v − t) H,

dropping p and keeping u of the same group instead, all other weights as they are, gains

    (q_u − v_p H_pu)² / H_uu + 2 v_p q_p − v_p² H_pp.

Row-wise patterns take these one by one (Zimmer et al., SparseSwaps, 2025); transposable ones in
pairs: rows i and j of a block along a cycle, i drops p and keeps u, j drops u and keeps p.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: What an exchange has to gain, as a share of the row's error (of the block's rows' errors).
LEAST = 1e-3


def single_swaps(
    weight: Tensor, target: Tensor, hessian: Tensor, m: int, most: int = 1000
) -> tuple[Tensor, int]:
    """Weights (rows, cols) after the best exchange of every row, again and again until none gains,
    at most so often; and the number of exchanges. Groups are of m columns.
    """
    rows = len(weight)
    weight, every = weight.clone(), torch.arange(rows)
    side, done = target @ hessian, 0
    for _ in range(most):
        gradient = weight @ hessian - side
        error = ((weight - target) * gradient).sum(1)
        gains = _gains(weight, gradient, hessian, m).reshape(rows, -1)
        best, which = gains.max(1)
        swap = best > LEAST * error
        if not bool(swap.any()):
            break
        group, pair = which // (m * m), which % (m * m)
        drop, keep = group * m + pair // m, group * m + pair % m
        at, drop, keep = every[swap], drop[swap], keep[swap]
        _exchange(weight, gradient, hessian, at, drop, keep)
        done += int(swap.sum())
    return weight, done


def cycles_of_four(
    weight: Tensor, target: Tensor, hessian: Tensor, m: int, most: int = 1000
) -> tuple[Tensor, int]:
    """The same for blocks of m × m, whose rows and columns keep as many as before: the best cycle
    of every m rows at a time.
    """
    rows, cols = weight.shape
    weight, bands = weight.clone(), torch.arange(rows // m)
    side, done = target @ hessian, 0
    for _ in range(most):
        gradient = weight @ hessian - side
        error = ((weight - target) * gradient).sum(1).view(-1, m).sum(1)
        gains = _gains(weight, gradient, hessian, m).view(rows // m, m, cols // m, m, m)
        # of i, which drops p and keeps u, and of j, which drops u and keeps p
        of_i = gains.permute(0, 2, 1, 3, 4).unsqueeze(3)
        of_j = gains.permute(0, 2, 1, 4, 3).unsqueeze(2)
        best, which = (of_i + of_j).reshape(rows // m, -1).max(1)
        swap = best > LEAST * error
        if not bool(swap.any()):
            break
        group, i, j, p, u = torch.unravel_index(which[swap], (cols // m, m, m, m, m))
        first, start = bands[swap] * m, group * m
        _exchange(weight, gradient, hessian, first + i, start + p, start + u)
        _exchange(weight, gradient, hessian, first + j, start + u, start + p)
        done += int(swap.sum())
    return weight, done


def _gains(weight: Tensor, gradient: Tensor, hessian: Tensor, m: int) -> Tensor:
    """Of dropping p and keeping u in every group, (rows, groups, m, m); -inf where p is not kept or
    u is.
    """
    rows, cols = weight.shape
    blocks = torch.stack([hessian[a : a + m, a : a + m] for a in range(0, cols, m)])
    diagonal = blocks.diagonal(dim1=1, dim2=2)
    v, q = weight.view(rows, -1, m), gradient.view(rows, -1, m)
    moved = q.unsqueeze(2) - v.unsqueeze(3) * blocks
    lost = 2 * v * q - v.square() * diagonal
    gains = moved.square() / diagonal.unsqueeze(1) + lost.unsqueeze(3)
    allowed = (v != 0).unsqueeze(3) & (v == 0).unsqueeze(2)
    return gains.masked_fill_(~allowed, float("-inf"))


def _exchange(
    weight: Tensor, gradient: Tensor, hessian: Tensor, at: Tensor, drop: Tensor, keep: Tensor
) -> None:
    value = weight[at, drop]
    new = value * hessian[drop, keep] - gradient[at, keep]
    weight[at, drop] = 0
    weight[at, keep] = new / hessian[keep, keep]
