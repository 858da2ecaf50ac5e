"""How good a model is."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats, of images (N,) or of every character of a window (N, T)."""
    return nn.functional.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())


@torch.no_grad()
def measure(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Accuracy and loss over all targets."""
    model.eval()
    total = sum(targets.numel() for _, targets in batches)
    right = lost = 0.0
    for inputs, targets in batches:
        logits = model(inputs).flatten(0, -2)
        right += float((logits.argmax(-1) == targets.flatten()).sum())
        lost += float(nn.functional.cross_entropy(logits, targets.flatten(), reduction="sum"))
    return {"accuracy": right / total, "loss": lost / total}
