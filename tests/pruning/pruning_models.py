"""What tests of pruning share: a model, and that errors say what they should."""

import pytest
import torch
from torch import nn

import nmsolve


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)).eval()


def same_after(first, second):
    """Two models hold the same numbers, whatever they call them."""
    return all(
        torch.allclose(a, b, atol=1e-6)
        for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )


def refuses(call, *words):
    with pytest.raises(nmsolve.InputError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)
