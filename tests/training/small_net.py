"""A model with masks of every kind, and how it is trained: for several test files."""

import pytest
import torch
from torch import nn

import nmsolve.torch as nmt
from nmsolve.torch.weights.masked import Masked

METHODS = {
    "fixed": lambda: nmt.Fixed(),
    "ste": lambda: nmt.STE(update_every=2),
    "srste": lambda: nmt.SRSTE(decay=0.05),
    "lbc": lambda: nmt.LBC(t_i=0, t_f=5),
}


BOTH = pytest.mark.parametrize("optimizer", ["sgd", "adamw"])


ALL = pytest.mark.parametrize("name", METHODS)


class Net(nn.Module):
    """Convolution (one grouped), attention, linear layers; the stem and the norm stay dense."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.conv = nn.Conv2d(16, 32, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(32)
        self.block = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        self.head = nn.Linear(32, 16)

    def forward(self, x):
        x = self.norm(self.conv(self.stem(x).relu())).flatten(2).transpose(1, 2)
        return self.head(self.block(x)).mean(1)


def made(name, optimizer="adamw", pattern="2:4", seed=0, model=None):
    torch.manual_seed(seed)
    model = model or Net()
    if optimizer == "sgd":
        opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    else:
        opt = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    return model, opt, nmt.sparsify_(model, pattern, METHODS[name]()).attach(opt)


def batch(step):
    g = torch.Generator().manual_seed(100 + step % 2)
    return torch.randn(4, 1, 4, 4, generator=g), torch.randint(0, 16, (4,), generator=g)


def train(model, optimizer, steps, autocast=False):
    losses = []
    for step in steps:
        torch.manual_seed(step)  # dropout
        x, t = batch(step)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = nn.functional.cross_entropy(model(x), t)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def masks_of(model):
    return [module for module in model.modules() if isinstance(module, Masked)]
