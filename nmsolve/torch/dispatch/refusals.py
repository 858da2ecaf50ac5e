"""Layers that `accelerate_` leaves alone, each with the reason."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nmsolve.torch.dispatch.availability import SPARSE_BACKENDS, Backends, why_not
from nmsolve.torch.dispatch.packed_linear import PackedLinear
from nmsolve.torch.dispatch.packing import is_2to4
from nmsolve.torch.dispatch.recording import Call
from nmsolve.torch.dispatch.sparse_linear import SparseLinear
from nmsolve.torch.weights.masked import masked_parameters

#: In training, a layer with fewer nonzeros was not pruned but initialised so, to zero say; its
#: zeros are not a mask.
LEAST_DENSITY = 0.2


def matrix_shape(module: nn.Module) -> tuple[int, ...] | None:
    """Return the shape of a module's own weight matrix; None if it has none."""
    if isinstance(module, torch.jit.ScriptModule):
        return next(
            (tuple(p.shape) for p in module.parameters(recurse=False) if p.dim() >= 2), None
        )
    if isinstance(module, nn.Linear | PackedLinear):
        return module.out_features, module.in_features
    if isinstance(module, parametrize.ParametrizationList):  # its owner is listed
        return None
    return next(
        (tuple(p.shape) for p in module._parameters.values() if p is not None and p.dim() >= 2),
        None,
    )


def tied_layers(model: nn.Module) -> dict[str, str]:
    """Return by module path why a layer cannot be exchanged alone: its weight, or itself, is used
    elsewhere.
    """
    reasons = {}
    paths: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(id(module), []).append(name)
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for name, module in model.named_modules():
        if len(paths[id(module)]) > 1:
            reasons[name] = f"the module is also {paths[id(module)][1]}"
        elif isinstance(module, torch.jit.ScriptModule):
            continue
        elif isinstance(weight := module._parameters.get("weight"), Tensor):
            others = [
                owner for owner in owners[id(weight)] if owner != f"{name}.weight".lstrip(".")
            ]
            if others:
                reasons[name] = f"its weight is tied to {others[0]}"
    return reasons


def suitable(module: nn.Module, shape: tuple[int, ...], *, training: bool) -> nn.Linear | str:
    """Return a layer that a machine may accelerate, or why it is left alone whatever the
    machine.
    """
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return "scripted: what its forward does is fixed"
    if isinstance(module, PackedLinear):
        return "packed before"
    if masked_parameters(module):
        return "masks are on it: finalize_ first, or sparsify_(…, accelerate=True)"
    if parametrize.is_parametrized(module):
        return (
            "parametrized: torch.nn.utils.parametrize.remove_parametrizations makes its weight "
            "a parameter"
        )
    if not isinstance(module, nn.Linear):
        return f"no sparse kernel for {kind.__name__}"
    if kind not in (nn.Linear, SparseLinear):
        return f"{kind.__name__} is a subclass of nn.Linear: what its forward does is not known"
    if "forward" in module.__dict__:
        return "its forward was replaced: what it does is not known"
    if "weight" not in module._parameters:
        return (
            "its weight is computed by a hook: make it permanent (torch.nn.utils.prune.remove, "
            "remove_weight_norm)"
        )
    if 0 in shape or shape[1] % 4 or (training and shape[0] % 4):
        return f"not 2:4: {'×'.join(map(str, shape))} does not consist of groups of 4"
    if module.weight.is_meta:
        return "its weight has no values (meta)"
    report = is_2to4(weight_of(module), transposable=training)
    if not report:
        return f"not {report.pattern}: {report}"
    if training and report.density < LEAST_DENSITY and not isinstance(module, SparseLinear):
        return (
            f"only {100 * report.density:.1f} % of it is nonzero, and what is zero now would "
            "never be trained"
        )
    return module


def weight_of(module: nn.Linear) -> Tensor:
    """Return the weight that a layer multiplies by."""
    return module.masked_weight if isinstance(module, SparseLinear) else module.weight.detach()


def unserved(
    weight: Tensor, calls: Mapping[Call, int], found: Backends, *, training: bool
) -> str | None:
    """Return why no backend can serve a 2:4 layer; None if one can."""
    if not calls:
        return "not called by example_inputs"
    usable = [b for b in SPARSE_BACKENDS if found[b]]
    if not usable:
        return found[SPARSE_BACKENDS[0]].reason
    for call in calls:
        reasons = [why_not(b, tuple(weight.shape), call.dtype, weight.device) for b in usable]
        if None not in reasons:
            return reasons[0]
        if not training and call.dtype != weight.dtype:
            return (
                f"its weight is {weight.dtype}, multiplied in {call.dtype} by autocast: cast "
                f"the model to {call.dtype} first"
            )
    return None
