"""Published ways to a transposable mask on a GPU, reimplemented in torch: boolean masks of blocks
(count, m, m), or kept scores.

The entropic transport follows benchmarks/entropic.py, which names its source and departures.
"""

from __future__ import annotations

from functools import cache
from itertools import combinations, product

import torch
from torch import Tensor

from benchmarks.entropic import ITERATIONS, SHARPNESS

#: Blocks at a time: the 90 candidates of so many take half a gigabyte in float32.
BATCH = 2**20


def as_blocks(weights: Tensor, m: int) -> Tensor:
    """|weights| (rows, cols) as blocks (count, m, m), float32."""
    rows, cols = weights.shape
    return weights.abs().float().view(rows // m, m, cols // m, m).transpose(1, 2).reshape(-1, m, m)


@cache
def patterns_2to4(device: torch.device) -> Tensor:
    """The 90 masks of a 2:4T block: (90, 16) float32."""
    rows = [[float(j in kept) for j in range(4)] for kept in combinations(range(4), 2)]
    blocks = [
        block
        for block in product(rows, repeat=4)
        if all(sum(column) == 2 for column in zip(*block, strict=True))
    ]
    return torch.tensor(blocks, device=device).view(-1, 16)


def argmax_of_90(weights: Tensor) -> Tensor:
    """The best of the 90 masks of every 4 × 4 block by a matrix product and an argmax (the
    enumeration of Hubara et al. 2021, §4).

    Products are in float32 (TF32 would choose wrongly).
    """
    patterns = patterns_2to4(weights.device)
    masks = [
        patterns[(part.view(-1, 16) @ patterns.T).argmax(1)]
        for part in as_blocks(weights, 4).split(BATCH)
    ]
    return torch.cat(masks).bool().view(-1, 4, 4)


def tile_kernel(weights: Tensor) -> Tensor:
    """Torch's own run-time pruning of 4 × 4 tiles, which packs as well; the dense weight that it
    keeps.

    Greedy: heaviest first, if row and column have room.
    """
    return tile_pack(weights).to_dense()  # type: ignore[no-untyped-call, no-any-return]


def tile_pack(weights: Tensor) -> torch.sparse.SparseSemiStructuredTensor:
    """The part of `tile_kernel` that prunes and packs: the weight and its transpose."""
    return torch.sparse.SparseSemiStructuredTensorCUSPARSELT.prune_dense_static_sort(  # type: ignore[no-any-return]
        weights, algorithm="largest_abs_values_greedy"
    )


def entropic(weights: Tensor, n: int, m: int) -> Tensor:
    """Entropic transport and rounding, all blocks at once."""
    S = as_blocks(weights, m)
    kept = _round(_transport(S, n), n)
    _saturate(S, kept, n)
    return kept


def _transport(S: Tensor, n: int) -> Tensor:
    largest = S.amax((1, 2), keepdim=True).clamp_min(1e-30)
    X = torch.exp((S - S.amax(2, keepdim=True)) * (SHARPNESS / largest))
    Q = torch.ones_like(X)
    for _ in range(ITERATIONS):
        X *= n / X.sum(2, keepdim=True)
        X *= n / X.sum(1, keepdim=True)
        X *= Q
        torch.clamp(X, min=1.0, out=Q)
        X.clamp_(max=1.0)
    return X


def _round(X: Tensor, n: int) -> Tensor:
    """Heaviest first, kept if row and column have room: one entry of every block at a time."""
    count, m, _ = X.shape
    order = X.view(count, m * m).argsort(1, descending=True)
    in_row, in_column = (
        torch.zeros((count, m), dtype=torch.int32, device=X.device) for _ in range(2)
    )
    kept = torch.zeros((count, m * m), dtype=torch.bool, device=X.device)
    for place in order.unbind(1):
        place = place[:, None]
        i, j = place // m, place % m
        room = (in_row.gather(1, i) < n) & (in_column.gather(1, j) < n)
        kept.scatter_(1, place, room)
        in_row.scatter_add_(1, i, room.int())
        in_column.scatter_add_(1, j, room.int())
    return kept.view(count, m, m)


def _saturate(S: Tensor, kept: Tensor, n: int) -> None:
    """Swaps, one a block at a time, until every row and column keeps n."""
    while (open_blocks := (kept.sum(2) < n).any(1).nonzero().squeeze(1)).numel():
        scores, mask = S[open_blocks], kept[open_blocks]
        block = torch.arange(len(open_blocks), device=S.device)
        i, j = (mask.sum(2) < n).int().argmax(1), (mask.sum(1) < n).int().argmax(1)
        gain = scores[block, i][:, None, :] + scores[block, :, j][:, :, None] - scores
        gain[~mask | mask[block, i][:, None, :] | mask[block, :, j][:, :, None]] = -torch.inf
        best = gain.flatten(1).argmax(1)
        k, x = best // S.shape[1], best % S.shape[1]
        kept[open_blocks, k, x] = False
        kept[open_blocks, i, x] = True
        kept[open_blocks, k, j] = True
