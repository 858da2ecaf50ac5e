"""Optimal brain surgeon (OBS), columns in blocks as in SparseGPT: row-wise masks, chosen while
weights to the right make up for them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nmsolve.torch.pruning.problem import Problem

#: Columns that update the columns to their right together.
_BLOCK = 128


def obs_mask(problem: Problem, target: Tensor, hessian: Tensor) -> Tensor:
    r"""Return row-wise masks for min ⟨V − Ŵ, (V − Ŵ) H⟩ with target Ŵ and Hessian H, chosen group
    after group.

    A group keeps the n weights of largest w² / [H⁻¹]², where H is the rest of the Hessian once the
    columns before have been decided; dropping a weight moves those to its right by its optimal
    update.

    Parameters
    ----------
    problem : Problem
    target : (parts, rows, cols) Tensor
    hessian : (parts, cols, cols) Tensor
        Positive definite; both float64.

    References
    ----------
    Frantar & Alistarh, SparseGPT, ICML 2023, Algorithm 1 and section 3.3 (n:m).
    """
    masks = [_part(problem, w, h) for w, h in zip(target, hessian, strict=True)]
    return torch.stack(masks)


def _part(problem: Problem, target: Tensor, hessian: Tensor) -> Tensor:
    """The mask of a part, (rows, cols)."""
    rows, cols = target.shape
    # Row j of the upper Cholesky factor of H⁻¹ is, up to scale, row j of the inverse of the
    # rest of H at column j.
    inverse = torch.linalg.cholesky(
        torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True
    )
    weight, mask = target.clone(), torch.zeros(rows, cols, dtype=torch.bool, device=target.device)
    run = problem.layout.run_groups(problem.entry.pattern, problem.entry.padding)
    groups = [
        (start + first, size, kept)
        for start in range(0, cols, problem.layout.columns)
        for first, size, kept in run
    ]
    for block in _blocks(groups):
        begin, end = block[0][0], block[-1][0] + block[-1][1]
        errors = torch.zeros(rows, end - begin, dtype=weight.dtype, device=weight.device)
        for first, size, kept in block:
            columns = slice(first, first + size)
            saliency = (weight[:, columns] / inverse.diagonal()[columns]).square()
            chosen = saliency.argsort(dim=1, descending=True, stable=True)[:, :kept]
            mask[:, columns] = mask[:, columns].scatter(1, chosen, True)
            for j in range(first, first + size):
                error = torch.where(mask[:, j], 0, weight[:, j]) / inverse[j, j]
                weight[:, j:end] -= error.unsqueeze(1) * inverse[j, j:end]
                errors[:, j - begin] = error
        weight[:, end:] -= errors @ inverse[begin:end, end:]
    return mask


def _blocks(groups: list[tuple[int, int, int]]) -> list[list[tuple[int, int, int]]]:
    """Whole groups, put together to about `_BLOCK` columns."""
    blocks: list[list[tuple[int, int, int]]] = [[]]
    for group in groups:
        if blocks[-1] and group[0] + group[1] - blocks[-1][0][0] > _BLOCK:
            blocks.append([])
        blocks[-1].append(group)
    return blocks
