"""Layers, operands and snapshots of models that several test files use."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nmsolve
from nmsolve.torch.dispatch.packed_linear import PackedLinear
from nmsolve.torch.dispatch.sparse_linear import SparseLinear

CUDA = torch.cuda.is_available()


DEVICES = ["cpu", *([pytest.param("cuda", marks=pytest.mark.gpu)] if CUDA else [])]


def mask_of(rows, cols, seed=0, pattern="2:4T"):
    weight = torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))
    return torch.from_numpy(nmsolve.solve(weight.numpy(), pattern).mask)


def operands(tokens=5, rows=12, cols=8, dtype=torch.float32, device="cpu", seed=0):
    g = torch.Generator().manual_seed(seed)
    shape = tokens if isinstance(tokens, tuple) else (tokens,)
    x, w, b = (
        torch.randn(s, generator=g).to(device, dtype).requires_grad_()
        for s in ((*shape, cols), (rows, cols), (rows,))
    )
    return x, w, mask_of(rows, cols, seed).to(device), b


def reference(x, w, mask, b, straight_through=False):
    """Dense autograd: the product with the mask as a constant, or a straight-through estimator of
    it.
    """
    wm = w * mask
    if straight_through:
        wm = w + (wm - w).detach()
    return F.linear(x, wm, b)


def sparse_layer(rows=12, cols=8, seed=0, bias=True, backend="dense"):
    torch.manual_seed(seed)
    return SparseLinear.from_linear(
        nn.Linear(cols, rows, bias), mask_of(rows, cols, seed), backend=backend
    )


def packed_layer(rows=12, cols=8, seed=0, bias=True, backend="dense"):
    return PackedLinear.from_linear(sparse_layer(rows, cols, seed, bias), backend)


def operators_of(call):
    """Names of all operators that a call runs, those inside others too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions of the profiler warn about themselves
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            call()
        return {event.name for event in profile.events()}


def masked_(model, pattern="2:4T"):
    """Zero what the best mask drops, in every linear layer that groups divide."""
    for layer in model.modules():
        weight = getattr(layer, "weight", None)
        if isinstance(layer, nn.Linear) and weight.shape[0] % 4 == weight.shape[1] % 4 == 0:
            with torch.no_grad():
                weight.mul_(torch.from_numpy(nmsolve.solve(weight.float().numpy(), pattern).mask))
    return model


def mlp():
    torch.manual_seed(0)
    return masked_(
        nn.Sequential(
            nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 8), nn.Linear(8, 10)
        )
    )


def state_of(model):
    """Everything that must not change: modules, parameters, values, flags, hooks."""
    modules = dict(model.named_modules())
    return (
        {
            name: (id(m), type(m), m.training, len(m._forward_pre_hooks), len(m._forward_hooks))
            for name, m in modules.items()
        },
        {name: (id(p), p.clone(), p.requires_grad) for name, p in model.named_parameters()},
        {name: (id(b), b.clone()) for name, b in model.named_buffers()},
    )


def same(before, after):
    return (
        before[0] == after[0]
        and before[1].keys() == after[1].keys()
        and all(
            a[0] == b[0] and torch.equal(a[1], b[1]) and a[2] == b[2]
            for a, b in zip(before[1].values(), after[1].values(), strict=True)
        )
        and all(
            a[0] == b[0] and torch.equal(a[1], b[1])
            for a, b in zip(before[2].values(), after[2].values(), strict=True)
        )
    )


def reasons(table):
    return {layer.path: layer.reason for layer in table}
