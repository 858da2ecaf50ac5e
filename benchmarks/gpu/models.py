"""Small models with 2:4T weights, in bfloat16."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nmsolve.torch as nmt


class TransformerBlock(nn.Module):
    """Attention and an MLP that widens fourfold, each after a norm and beside a residual."""

    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.head = head
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.projections = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.mlp = mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, tokens, width)."""
        batch, tokens, width = x.shape
        parts = self.projections(self.norms[0](x)).view(
            batch, tokens, 3, width // self.head, self.head
        )
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.output(mixed.transpose(1, 2).reshape(batch, tokens, width))
        y: Tensor = x + self.mlp(self.norms[1](x))
        return y


def mlp(width: int) -> nn.Sequential:
    """Two linear layers."""
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


def masked(model: nn.Module, device: torch.device) -> nn.Module:
    """A model on a device, with the best 2:4T mask of every linear layer's weight in place."""
    model = model.to(device, torch.bfloat16)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.copy_(
                    torch.where(nmt.solve(module.weight, "2:4T").mask, module.weight, 0)
                )
    return model
