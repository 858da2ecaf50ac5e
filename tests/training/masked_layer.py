"""A small layer under a mask, for the tests of what is written through module.weight."""

import torch
from torch import nn

import nmsolve.torch as nmt


def made(method):
    """A layer under a mask, its optimizer, its dense weight as it was."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model[0].weight.detach().clone()
    sparse = nmt.sparsify_(model, "2:4" if isinstance(method, nmt.LBC) else "2:4T", method).attach(
        optimizer
    )
    return model, optimizer, sparse, before


def dense_of(model):
    return model[0].parametrizations.weight.original.detach()


def mask_of(model):
    return model[0].parametrizations.weight[0].mask


NEW = torch.arange(1.0, 65.0).reshape(8, 8)
