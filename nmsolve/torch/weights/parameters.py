"""The parameters of a module, whatever parametrizations are on it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nmsolve.errors import InputError


def parameters_of(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's own parameters by name; of parametrized ones, the tensors that are
    trained.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return dict(module.named_parameters(recurse=False))
    found: dict[str, Tensor] = {name: p for name, p in module._parameters.items() if p is not None}
    lists = module._modules.get("parametrizations")
    if lists is not None and parametrize.is_parametrized(module):
        for name, tensors in lists._modules.items():
            originals = (
                []
                if tensors is None
                else [p for p in tensors._parameters.values() if p is not None]
            )
            if (
                originals
            ):  # more than one, of other shapes too, where someone else's parametrization made them
                found[name] = max(originals, key=lambda p: (p.dim(), p.numel()))
    return found


def check_module(model: object) -> None:
    """Raise InputError unless a model is an nn.Module."""
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be an nn.Module, got {type(model).__name__}")


def class_name_of(module: nn.Module) -> str:
    """Return the name of a module's class, whatever masks are on it."""
    return parametrize.type_before_parametrizations(module).__name__
