"""Which shapes reach the linear layers of a model, from a run that leaves no trace in it."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Call:
    """An input that a linear layer was given: how many tokens (rows), the dtype it multiplies in, and the device."""

    tokens: int
    dtype: torch.dtype
    device: torch.device


@contextlib.contextmanager
def undisturbed(model: nn.Module, training: bool) -> Iterator[None]:
    """A run of the model without gradients, after which its buffers, training flags and torch's random numbers are as before.

    training : leave the flags as they are; else everything runs in eval mode.
    """
    modules = list(model.modules())
    flags = [module.training for module in modules]
    buffers = [(module, name, buffer) for module in modules for name, buffer in module._buffers.items()]
    saved = [None if buffer is None else buffer.clone() for _, _, buffer in buffers]
    gpus = sorted({tensor.device.index for tensor in [*model.parameters(), *model.buffers()] if tensor.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices=gpus), torch.no_grad():
            if not training:
                for module in modules:
                    module.training = False
            yield
    finally:
        for module, flag in zip(modules, flags, strict=True):
            module.training = flag
        with torch.no_grad():
            for (module, name, buffer), before in zip(buffers, saved, strict=True):
                if buffer is not None and before is not None and not (buffer.is_meta or torch.equal(buffer, before)):
                    buffer.copy_(before)
                module._buffers[name] = buffer


def record(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], training: bool) -> dict[str, Counter[Call]]:
    """The calls of every nn.Linear in model(*args, **kwargs), by module name."""
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
            cast = torch.is_autocast_enabled(kind) and x.is_floating_point() and x.dtype != torch.float64
            calls[Call(x.shape[:-1].numel(), torch.get_autocast_dtype(kind) if cast else x.dtype, x.device)] += 1

    return note
