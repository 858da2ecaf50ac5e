"""Runs of a model that leave no trace in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


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
