"""Quantized weights: found where a module packs them, and as the numbers that they stand for.

A quantized layer multiplies by what `dequantize()` gives, so that is what a pattern holds for or
not: symmetric formats keep zeros, formats with an offset may not. Nothing here imports a library of
quantization.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from nmsolve.errors import InputError
from nmsolve.torch.tensors import FLOATS, FLOATS8
from nmsolve.torch.weights.layer_plan import PlannedWeight
from nmsolve.torch.weights.parameters import parameters_of

#: Where the classes are that keep weight and bias in one packed object, which is no parameter.
_PACKING = ("torch.ao.nn.quantized.", "torch.ao.nn.intrinsic.quantized.", "torch.ao.nn.sparse.")
#: Ours, which packs the bits of 2:4 weights; quantizes nothing.
_PACKED_2TO4 = "nmsolve.torch.dispatch.packed_linear.PackedLinear"
_REMEDY = (
    "verify the model before it is quantized, or after it was dequantized (transformers: "
    "model.dequantize())"
)


def packed_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights and biases that a module holds packed, which are no parameters, by name;
    unpacked by every call.
    """
    kind = parametrize.type_before_parametrizations(module)
    if f"{kind.__module__}.{kind.__name__}" == _PACKED_2TO4:
        return {"weight": module.weight}  # type: ignore[dict-item]
    if not _packs(module):
        return {}
    found: dict[str, Tensor] = {}
    own = parameters_of(module)
    for name in ("weight", "bias"):
        for reader in (name, f"get_{name}"):  # recurrent layers have the latter, for several
            read: Any = getattr(module, reader, None)
            if name not in own and callable(read):
                tensors = read()
                named = tensors if isinstance(tensors, dict) else {name: tensors}
                found |= {key: one for key, one in named.items() if isinstance(one, Tensor)}
    return found


def _packs(module: nn.Module) -> bool:
    return any(base.__module__.startswith(_PACKING) for base in type(module).__mro__)


def holds_codes(module: nn.Module) -> bool:
    """Return whether a module looks quantized, to tell a user so: it packs weights, or has tensors
    of integers.
    """
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return _packs(module) or any(
        not is_lazy(tensor)
        and tensor.dim() > 0
        and not tensor.is_floating_point()
        and tensor.dtype != torch.bool
        for tensor in own
    )


def stored_weight(module: nn.Module, parameter: str) -> Tensor | None:
    """Return a module's own parameter, or what it holds packed in its place; None if there is
    neither.
    """
    own = parameters_of(module)
    return own[parameter] if parameter in own else packed_tensors(module).get(parameter)


def dequantized(entry: PlannedWeight, module: nn.Module, weight: Tensor) -> Tensor:
    """Return a planned weight as it multiplies: itself, unless it is quantized.

    Raises
    ------
    InputError
        If it is quantized in a way that says nothing of its values, naming the layer.
    """
    where = f"layer {entry.path} is a {module._get_name()}, its weight a {_name_of(weight)}"
    values = weight
    if _is_quantized(weight):
        dequantize: Callable[[], object] = weight.dequantize
        try:
            found = dequantize()
        except Exception as error:
            raise InputError(
                f"{where} that could not be dequantized ({type(error).__name__}: {error}); "
                f"{_REMEDY}"
            ) from error
        if not isinstance(found, Tensor) or tuple(found.shape) != entry.shape:
            what = (
                f"a tensor of shape {tuple(found.shape)}"
                if isinstance(found, Tensor)
                else f"a {type(found).__name__}"
            )
            raise InputError(
                f"{where}, of which dequantize() gives {what} instead of shape {entry.shape}; "
                f"{_REMEDY}"
            )
        values = found
    if values.dtype not in (*FLOATS, *FLOATS8):
        raise InputError(
            f"{where} of {values.dtype}: codes, of which nothing tells the one that means 0; "
            f"{_REMEDY}"
        )
    return values


def held_in(module: nn.Module, parameter: str, weight: Tensor) -> str | None:
    """Return what holds a weight that is not the plain numbers: torch's own quantized tensors by
    their dtype, others by their class, what is packed otherwise by the module's; else None.
    """
    if _is_quantized(weight):
        return _name_of(weight)
    return module._get_name() if _packs(module) and parameter in packed_tensors(module) else None


def _is_quantized(weight: Tensor) -> bool:
    """Return whether a tensor holds codes, and its `dequantize()` the values: torch's own quantized
    tensors, and classes that bring the method, as those of torchao do.
    """
    return weight.is_quantized or type(weight).dequantize is not Tensor.dequantize


def _name_of(weight: Tensor) -> str:
    """Return what a quantized tensor is called: torch's own by their dtype, others by their
    class.
    """
    if weight.is_quantized:
        return str(weight.dtype).removeprefix("torch.")
    return type(weight).__name__
