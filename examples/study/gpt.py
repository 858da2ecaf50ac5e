"""A character-level language model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.study.text import CONTEXT, vocabulary

WIDTH, DEPTH, HEADS = 64, 2, 4


class Block(nn.Module):
    """Causal attention and a feed-forward network, normed before, added after: (N, T, 64) → (N, T,
    64).
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        heads = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """Characters (N, T) → logits of the next ones (N, T, kinds)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(vocabulary()), WIDTH)
        self.position = nn.Parameter(torch.zeros(CONTEXT, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, len(vocabulary()), bias=False)
        nn.init.normal_(self.embed.weight, std=0.3)
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, characters: Tensor) -> Tensor:
        """See the class."""
        x = self.embed(characters) + self.position[: characters.shape[1]]
        return self.head(self.norm(self.blocks(x)))
