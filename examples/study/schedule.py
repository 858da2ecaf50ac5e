"""The learning rate over a run."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

WARM_UP = 1 / 20


def cosine(optimizer: Optimizer, steps: int) -> LambdaLR:
    """Linear warm-up over the first twentieth of the steps, then a cosine to 0."""
    warm = max(1, round(WARM_UP * steps))

    def rate(step: int) -> float:
        return (
            (step + 1) / warm
            if step < warm
            else (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))) / 2
        )

    return LambdaLR(optimizer, rate)
