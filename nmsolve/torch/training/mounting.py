"""Masks put on a module and taken off again.

What torch.nn.utils.parametrize leaves open is mended here: state dicts with plain names, torch.save
of the whole module, and taking masks off a deep copy, which shares its class with the original.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from nmsolve.errors import InputError
from nmsolve.torch.training.state_dict import PARTS, hook_module, saved_part, unhook
from nmsolve.torch.weights.masked import Masked, masked_parameters, original


def put_on(module: nn.Module, parameter: str, masked: Masked) -> None:
    """Put a mask on a module's parameter, which stays the same object; `masked` may be on
    several.
    """
    first = not parametrize.is_parametrized(module)
    if first:
        module.__dict__["_dense_order"] = tuple(module._parameters)
    # unsafe: that skips a trial run, it gives up no check that could fail here.
    masked.mounted = False
    parametrize.register_parametrization(module, parameter, masked, unsafe=True)
    masked.mounted = True
    kind: Any = type(module)  # of this module alone: parametrize has made it
    for part in PARTS:  # torch.distributed.checkpoint looks up what a state dict names
        read = partial(saved_part, parameter=parameter, part=part)
        setattr(kind, f"{parameter}_{part}", property(read, _refuse))
    if first:
        kind.__reduce_ex__ = _reduce
        kind.__copy__ = _copy
        kind.__deepcopy__ = _settled(kind.__deepcopy__)
        kind.register_parameter = _register
        hook_module(module)


def take_off(module: nn.Module) -> None:
    """Take all masks off a module: its own class and parameters again, the parameters as they are.

    torch's remove_parametrizations deletes the property from the class, which deep copies share;
    this leaves the class alone.
    """
    originals = {name: original(module, name) for name in masked_parameters(module)}
    parameters = _in_order({**originals, **module._parameters}, module._dense_order)
    module._modules = {
        name: child for name, child in module._modules.items() if name != "parametrizations"
    }
    module.__class__ = type(module).__bases__[0]
    module._parameters = parameters
    del module.__dict__["_dense_order"]
    unhook(module)


def _in_order(parameters: dict[str, Any], order: Any) -> dict[str, Any]:
    """Return parameters in the order in which they were, as far as they still are: optimizers'
    state dicts count them.
    """
    return {
        name: parameters[name]
        for name in dict.fromkeys((*order, *parameters))
        if name in parameters
    }


def _reduce(module: nn.Module, protocol: Any) -> tuple[Any, ...]:
    """Pickle a module with masks as its own class, whose masks are put on again when it is read."""
    masks = masked_parameters(module)
    state = dict(module.__dict__)
    state["_modules"] = {
        name: child for name, child in module._modules.items() if name != "parametrizations"
    }
    tensors = {name: (original(module, name), masked) for name, masked in masks.items()}
    kind = type(module).__bases__[0]
    forward = vars(type(module)).get("forward")  # where the layer is accelerated
    return _blank, (kind,), (state, tensors, forward), None, None, _restore


def _copy(module: nn.Module) -> nn.Module:
    """Copy as copy.copy does, which does not take what `_reduce` gives."""
    copied = type(module).__new__(type(module))
    copied.__dict__.update(module.__dict__)
    return copied


def _settled(
    deepcopy: Callable[[nn.Module, dict[int, Any]], nn.Module],
) -> Callable[[nn.Module, dict[int, Any]], nn.Module]:
    """Return copy.deepcopy of weights that hold what was written into them."""

    def settled(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
        for name in masked_parameters(module):
            original(module, name)
        return deepcopy(module, memo)

    return settled


def _register(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
    """Register as nn.Module does; `module.weight = nn.Parameter(…)` calls this."""
    masks = masked_parameters(module)
    if name in masks and masks[name].mounted:
        raise InputError(
            f"layer {masks[name].path}: its {name} has a mask, and no other Parameter can take its "
            f"place: assign a tensor (module.{name} = parameter.detach()) to set its values; to "
            "exchange or tie it, take the masks off first: nmt.remove_masks_(model)"
        )
    nn.Module.register_parameter(module, name, param)


def _refuse(module: nn.Module, value: object) -> None:
    raise InputError("what a checkpoint holds of a mask is set by load_state_dict")


def _blank(kind: type[nn.Module]) -> nn.Module:
    return kind.__new__(kind)


def _restore(
    module: nn.Module, pickled: tuple[dict[str, Any], dict[str, tuple[nn.Parameter, Masked]], Any]
) -> None:
    state, tensors, forward = pickled
    module.__dict__.update(state)
    originals = {name: parameter for name, (parameter, _) in tensors.items()}
    module._parameters = _in_order({**module._parameters, **originals}, state["_dense_order"])
    for name, (_, masked) in tensors.items():
        put_on(module, name, masked)
    if forward is not None:
        type(module).forward = forward
