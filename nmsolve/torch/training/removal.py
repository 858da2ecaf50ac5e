"""Masks taken off for good: the end of training, or of an attempt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from nmsolve.errors import InputError
from nmsolve.torch.training.mounting import take_off
from nmsolve.torch.training.state_dict import unhook
from nmsolve.torch.weights.layer_plan import PlannedWeight, path_of
from nmsolve.torch.weights.masked import Masked, masked_parameters, original
from nmsolve.torch.weights.parameters import check_module
from nmsolve.torch.weights.sharding import is_sharded


def remove_masks_(model: nn.Module, *, zeros: bool = True) -> tuple[str, ...]:
    """Take all masks off a model, whoever put them on and however far its training has come. In
    place.

    For a model whose SparseModel is lost (torch.load of a whole model), that was taken apart since,
    or whose training is given up. `SparseModel.finalize_` does it with all checks.

    Parameters
    ----------
    model : nn.Module
        A model, or a part of one, with masks that `sparsify_` put on.
    zeros : bool
        True: what the masks drop becomes zero. False: the dense weights, as they were trained.

    Returns
    -------
    tuple of str
        The paths of the weights that had masks; none if there are none.

    Raises
    ------
    InputError
        If weights are sharded, or have parametrizations of others on top of the mask. Nothing is
        then changed.

    Examples
    --------
    >>> from nmsolve.torch import sparsify_
    >>> model = nn.Sequential(nn.Linear(8, 4))
    >>> _ = sparsify_(model, "2:4")
    >>> remove_masks_(model), type(model[0]).__name__, int(model[0].weight.count_nonzero())
    (('0',), 'Linear', 16)
    """
    check_module(model)
    named = [
        (path_of(name, parameter), module, parameter)
        for name, module in model.named_modules()
        for parameter in masked_parameters(module)
    ]
    _check(named)
    _remove(model, [(module, parameter) for _, module, parameter in named], zeros)
    return tuple(path for path, _, _ in named)


def check_removable(entries: Sequence[tuple[PlannedWeight, nn.Module]]) -> None:
    """Raise InputError if the masks of planned weights cannot be taken off."""
    _check([(entry.path, module, entry.parameter) for entry, module in entries])


def remove(
    model: nn.Module, entries: Sequence[tuple[PlannedWeight, nn.Module]], zeros: bool
) -> None:
    """Take the masks of planned weights off."""
    _remove(model, [(module, entry.parameter) for entry, module in entries], zeros)


def _check(named: Sequence[tuple[str, nn.Module, str]]) -> None:
    for path, module, parameter in named:
        lists: Any = module.parametrizations
        if not all(len(parts) == 1 and isinstance(parts[0], Masked) for parts in lists.values()):
            raise InputError(
                f"layer {path} has parametrizations besides its mask, which were added to it "
                "later: remove them first"
            )
        if is_sharded(original(module, parameter)):
            raise InputError(
                f"layer {path} is sharded, and fully_shard cannot be undone: load the full state "
                "dict (torch.distributed.checkpoint.state_dict.get_model_state_dict with "
                "full_state_dict=True) into a model that was sparsified with the same plan and not "
                "sharded, and finalize_ that one"
            )


def _remove(model: nn.Module, masked: Sequence[tuple[nn.Module, str]], zeros: bool) -> None:
    if zeros:
        for module, parameter in masked:
            weight, mask = original(module, parameter), masked_parameters(module)[parameter].mask
            with torch.inference_mode(weight.is_inference()), torch.no_grad():
                weight.copy_(torch.where(mask, weight, 0))
    for module, parameter in masked:
        masked_parameters(module)[parameter].written.close()
    for module in dict.fromkeys(module for module, _ in masked):
        take_off(module)
    # The model that was sparsified may be inside a wrapper, or be gone.
    for module in model.modules():
        if not any(masked_parameters(part) for part in module.modules()):
            unhook(module)
