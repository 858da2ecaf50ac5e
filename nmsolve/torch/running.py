"""Runs of a model that leave no trace in it: `undisturbed` for runs that only look, `restored` for
those that train.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


@contextlib.contextmanager
def undisturbed(model: nn.Module, training: bool) -> Iterator[None]:
    """Run the model without gradients; its buffers, training flags and torch's random numbers are
    then as before.

    So are numbers and names kept beside buffers, such as the length that a rotary embedding's
    buffer is for.

    Parameters
    ----------
    model : nn.Module
    training : bool
        Leave the flags as they are; else everything runs in eval mode.
    """
    modules = list(model.modules())
    flags = [module.training for module in modules]
    buffers = [
        (module, name, buffer) for module in modules for name, buffer in module._buffers.items()
    ]
    saved = [
        None if buffer is None or is_lazy(buffer) or buffer.is_meta else buffer.clone()
        for _, _, buffer in buffers
    ]
    beside = [
        (
            module,
            {
                key: value
                for key, value in vars(module).items()
                if isinstance(value, int | float | str | None)
            },
        )
        for module in modules
        if module._buffers
    ]
    gpus = sorted(
        {
            tensor.device.index
            for tensor in [*model.parameters(), *model.buffers()]
            if tensor.device.type == "cuda"
        }
    )
    try:
        with torch.random.fork_rng(devices=gpus), torch.no_grad():
            if not training:
                for module in modules:
                    module.training = False
            yield
    finally:
        for module, flag in zip(modules, flags, strict=True):
            module.training = flag
        for module, values in beside:
            vars(module).update(values)
        with torch.no_grad():
            for (module, name, buffer), before in zip(buffers, saved, strict=True):
                if buffer is not None and before is not None and not _equal(buffer, before):
                    buffer.set_(before) if buffer.shape != before.shape else buffer.copy_(before)  # type: ignore[call-overload]
                module._buffers[name] = buffer


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the first of a model's tensors that has values, where it takes its
    inputs; the host if there is none.
    """
    tensors = (*model.parameters(), *model.buffers())
    return next((x.device for x in tensors if not x.is_meta), torch.device("cpu"))


@contextlib.contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Train the model; its parameters, their gradients, its buffers and its flags are then as
    before.

    Inside, it starts without gradients.
    """
    flags = [(module, module.training) for module in model.modules()]
    parameters = [
        (p, p.data, p.detach().clone(), p.grad, p.requires_grad) for p in model.parameters()
    ]
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    try:
        for parameter, *_ in parameters:
            parameter.grad = None
        yield
    finally:
        with torch.no_grad():
            for parameter, own, before, gradient, trained in parameters:
                parameter.data = own  # a cast in between made it another
                parameter.copy_(before)
                parameter.grad = gradient
                parameter.requires_grad_(trained)
            for module, name, buffer, saved in buffers:
                if buffer is not None and saved is not None:
                    buffer.copy_(saved)
                module._buffers[name] = buffer
        for module, training in flags:
            module.training = training


def _equal(buffer: Tensor, before: Tensor) -> bool:
    if (
        buffer.layout != torch.strided
    ):  # no comparison is known for all layouts, and nobody changes these
        return True
    return torch.equal(buffer, before)
