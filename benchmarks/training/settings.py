"""How large the model is and how often steps take turns."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The model, its tokens, and how many steps are measured.

    width, heads, layers : of nn.TransformerEncoderLayer, whose feed-forward part widens fourfold.
    batch × length tokens a step. rounds : how often the cases of a comparison take turns. steps :
    that a case takes in its turn, besides one that is not counted. long_rounds : turns of `every`
    steps with and without a refresh. side : of the square weight that LBC's memory is measured on.
    """

    quick: bool
    dtype: torch.dtype
    width: int
    heads: int
    layers: int
    batch: int
    length: int
    rounds: int
    steps: int
    long_rounds: int
    side: int
    every: int = 40

    @property
    def tokens(self) -> int:
        """Of one step."""
        return self.batch * self.length


#: What is published for a CPU: 1024 tokens a step.
FULL = Settings(
    quick=False,
    dtype=torch.float32,
    width=512,
    heads=8,
    layers=2,
    batch=4,
    length=256,
    rounds=9,
    steps=3,
    long_rounds=5,
    side=4096,
)
#: The same on a GPU, with a model and a batch that occupy one.
GPU = Settings(
    quick=False, dtype=torch.bfloat16, width=2048, heads=16, layers=4, batch=8, length=1024,
    rounds=9, steps=5, long_rounds=5,
    side=4096,
)  # fmt: skip
#: Shows in about a minute that everything runs. A step this small measures calls.
QUICK = Settings(
    quick=True,
    dtype=torch.float32,
    width=128,
    heads=4,
    layers=1,
    batch=4,
    length=64,
    rounds=3,
    steps=2,
    long_rounds=1,
    side=1024,
)
