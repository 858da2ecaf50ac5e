"""A vision transformer for 8 × 8 images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH, DEPTH, HEADS = 64, 2, 4
PATCH = 2
TOKENS = (8 // PATCH) ** 2
CLASSES = 10


class ViT(nn.Module):
    """Images (N, 1, 8, 8) → logits (N, 10): 16 patches of 2 × 2, torch's own encoder layers, the
    mean over tokens.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(PATCH * PATCH, WIDTH)
        self.position = nn.Parameter(torch.randn(TOKENS, WIDTH) * 0.3)
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    WIDTH,
                    HEADS,
                    2 * WIDTH,
                    dropout=0.0,
                    activation="gelu",
                    batch_first=True,
                    norm_first=True,
                )
                for _ in range(DEPTH)
            )
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        patches = nn.functional.unfold(images, PATCH, stride=PATCH).transpose(1, 2)
        tokens = self.blocks(self.embed(patches) + self.position)
        return self.head(self.norm(tokens.mean(1)))
