"""Masked layers on sparse tensor cores: the forward of nn.Linear under a 2:4T mask by packed
products, forward and backward.

The parametrization stays, so whatever reads `weight` past the forward still gets the masked one; it
is only not accelerated.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nmsolve.torch.dispatch.availability import SPARSE_BACKENDS, backends, warn_once, why_not
from nmsolve.torch.dispatch.masked_product import masked_linear
from nmsolve.torch.training.masked_layer import MaskedLayer
from nmsolve.torch.weights.masked import masked_parameters, original


def accelerate_layers(layers: Sequence[MaskedLayer]) -> dict[str, str]:
    """Let each layer multiply by the best backend that can serve it.

    Returns
    -------
    dict of str to str
        By path, the backend, or why there is none.

    Notes
    -----
    Without a suitable GPU nothing is changed, and a warning says so once per process: the numbers
    are those of the masked dense weight.
    """
    found = backends()
    usable = [name for name in SPARSE_BACKENDS if found[name]]
    if not usable:
        reason = found[SPARSE_BACKENDS[0]].reason
        warn_once("no sparse GPU", f"nmsolve works on the masked dense weights here: {reason}")
        return {layer.path: reason for layer in layers}
    return {layer.path: _accelerate(layer, usable) for layer in layers}


def _accelerate(layer: MaskedLayer, usable: Sequence[str]) -> str:
    weight, pattern = layer.weight, layer.entry.pattern
    if (
        parametrize.type_before_parametrizations(layer.module) is not nn.Linear
        or "forward" in layer.module.__dict__
    ):
        return f"no sparse kernel for {layer.entry.kind}"
    if layer.tied:
        return "its weight is shared"
    if (pattern.n, pattern.m) != (2, 4) or not pattern.transposable:
        return f"pattern {pattern} is not 2:4T, which both products of training need"
    # float32 weights are multiplied under autocast.
    dtype = torch.bfloat16 if weight.dtype == torch.float32 else weight.dtype
    reasons = [why_not(name, tuple(weight.shape), dtype, weight.device) for name in usable]
    if None not in reasons:
        return str(reasons[0])
    use(layer, usable[reasons.index(None)])
    return f"{layer.masked.backend}: packed 2:4 products"


def use(layer: MaskedLayer, backend: str) -> None:
    """Let a layer multiply by a backend."""
    layer.masked.backend = backend
    type(layer.module).forward = _forward


def _forward(module: nn.Linear, input: Tensor) -> Tensor:
    """Return what nn.Linear does, from the dense parameter and the mask."""
    masked = masked_parameters(module)["weight"]
    weight = original(module, "weight")
    return masked_linear(
        input,
        weight,
        masked.mask,
        module.bias,
        backend=masked.backend,
        straight_through=masked.straight_through,
    )
