"""Shapes that reach the linear layers of a model, from a run that leaves no trace in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nmsolve.torch.running import undisturbed


@dataclass(frozen=True, slots=True)
class Call:
    """An input that a linear layer was given.

    Attributes
    ----------
    tokens : int
        Its rows.
    dtype : torch.dtype
        What the layer multiplies in.
    device : torch.device
    """

    tokens: int
    dtype: torch.dtype
    device: torch.device


def record(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, training: bool
) -> dict[str, Counter[Call]]:
    """Return the calls of every nn.Linear in model(*args, **kwargs), by module path."""
    seen: dict[str, Counter[Call]] = {}
    handles = []
    try:
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                calls = seen.setdefault(name, Counter())
                handles.append(module.register_forward_pre_hook(_recorder(calls), with_kwargs=True))
        with undisturbed(model, training):
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _recorder(calls: Counter[Call]) -> Any:
    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs.get("input")
        if isinstance(x, Tensor) and x.dim():
            kind = x.device.type
            cast = (
                torch.is_autocast_enabled(kind)
                and x.is_floating_point()
                and x.dtype != torch.float64
            )
            calls[
                Call(
                    x.shape[:-1].numel(),
                    torch.get_autocast_dtype(kind) if cast else x.dtype,
                    x.device,
                )
            ] += 1

    return note
