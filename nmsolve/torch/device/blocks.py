"""Blocks by number: entries of matrices (batch, rows, cols) that belong to the block row by row
and, in a row, left to right.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nmsolve.torch.device.problem import Problem


def _entries(mask: Tensor, place: Tensor, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where entries of blocks are in a mask (batch, rows, cols): indices of batch, row and column
    that broadcast to (N, m, m).
    """
    blocks_per_row, rows = mask.shape[2] // m, mask.shape[1]
    line = torch.arange(m, device=place.device)
    top = place // blocks_per_row * m  # as if batches lay below each other
    batch, row = top // rows, top % rows
    return (
        batch[:, None, None],
        row[:, None, None] + line[:, None],
        (place % blocks_per_row * m)[:, None, None] + line,
    )


def scores_at(X: Tensor, mask: Tensor, place: Tensor, problem: Problem) -> Tensor:
    """Scores (N, m, m) of blocks of X (batch, rows, cols), with zeros up to the shape of its
    mask.
    """
    batch, row, col = _entries(mask, place, problem.pattern.m)
    there = (row < X.shape[1]) & (col < X.shape[2])
    S = X[batch, row.clamp_max(X.shape[1] - 1), col.clamp_max(X.shape[2] - 1)].to(problem.dtype)
    return torch.where(there, S.abs() if problem.absolute else S, 0)


def keep_at(mask: Tensor, place: Tensor, kept: Tensor) -> None:
    """Masks (N, m, m) of blocks to their places in mask (batch, rows, cols)."""
    mask[_entries(mask, place, kept.shape[1])] = kept
