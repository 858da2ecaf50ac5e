"""Tensors as matrices of scores: what is refused and why, and how convolution weights are laid
out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.parameter import is_lazy

from nmsolve import geometry
from nmsolve.elements import POWERS, as_type, bfloat16
from nmsolve.errors import InputError

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: Stored as bytes, with their names in `nmsolve.elements`: torch computes with few of them, and
#: trains none.
FLOATS8 = {
    torch.float8_e4m3fn: "float8_e4m3fn",
    torch.float8_e5m2: "float8_e5m2",
    torch.float8_e4m3fnuz: "float8_e4m3fnuz",
    torch.float8_e5m2fnuz: "float8_e5m2fnuz",
    torch.float8_e8m0fnu: "float8_e8m0fnu",
}
#: Computed in float32, whose 24 bits hold them; wider ones in float64.
SMALL_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.uint16)
INTEGERS = (*SMALL_INTEGERS, torch.int32, torch.int64, torch.uint32, torch.uint64)
#: Why a dtype is not taken, where there is more to say than that torch computes nothing with it.
_PACKED = {torch.float4_e2m1fn_x2: "it packs two values into a byte, and torch unpacks none"}


def check_tensor(tensor: object, name: str, purpose: str) -> Tensor:
    """Return the tensor itself, detached; InputError unless it is a plain tensor of numbers.

    Raises
    ------
    InputError
        By name: anything but a tensor, meta, sparse, quantized, complex and wrapped tensors, other
        dtypes, no element.
    """
    if isinstance(tensor, Mapping):
        known = ", ".join(map(str, list(tensor)[:3]))
        raise InputError(
            f"{name} is a {type(tensor).__name__}, tensors by layer: pass that of the layer, "
            f"{name}[…] (it has {known})"
        )
    if not isinstance(tensor, Tensor):
        raise InputError(
            f"{name} is a {type(tensor).__name__}: nmsolve.torch takes tensors for {purpose}; "
            f"pass torch.as_tensor({name}), or call nmsolve for arrays"
        )
    problem = _problem(tensor, name)
    if problem:
        shapeless = tensor.is_nested or is_lazy(tensor)
        shape = "without one shape" if shapeless else f"of shape {tuple(tensor.shape)}"
        raise InputError(f"{name} {shape} {problem}; {purpose} needs its values in memory")
    if tensor.dtype not in (*FLOATS, *FLOATS8, *INTEGERS, torch.bool):
        raise InputError(
            f"{name} has dtype {tensor.dtype}, shape {tuple(tensor.shape)}: {purpose} takes "
            "float8, float16, bfloat16, float32, float64 and integers of 8 bits and more; "
            f"{_PACKED.get(tensor.dtype, 'torch converts none of this dtype')}, so unpack it with "
            "the library that made it, to float32 or int8"
        )
    if tensor.ndim < 2:
        raise InputError(
            f"{name} has shape {tuple(tensor.shape)}: {purpose} needs (rows, cols) with groups "
            "along the last axis, a batch of such, or a convolution weight; for one row pass "
            f"{name}[None, :]"
        )
    if tensor.ndim > 5:
        raise InputError(
            f"{name} has shape {tuple(tensor.shape)}: {purpose} takes matrices (rows, cols), "
            "batches of them (batch, rows, cols) and convolution weights (out, in, kernel …) with "
            "two or three kernel axes; flatten the batch axes into one"
        )
    if tensor.numel() == 0:
        raise InputError(
            f"{name} has shape {tuple(tensor.shape)}, without any element: {purpose} has nothing "
            "to choose from"
        )
    return tensor.detach().as_subclass(Tensor).resolve_neg()


def check_weight(tensor: object, name: str, purpose: str) -> Tensor:
    """Return the tensor as `check_tensor` does, for a planned weight, which is computed with:
    InputError for dtypes that torch does not train.

    A plan has none of them, but a model may have been converted since.
    """
    checked = check_tensor(tensor, name, purpose)
    if checked.dtype not in FLOATS:
        raise InputError(
            f"{name} has dtype {checked.dtype}, which cannot be trained: convert the model back, "
            "or make a new plan, which skips it; nmsolve.torch.solve finds the mask of such a "
            "tensor by itself"
        )
    return checked


def _problem(tensor: Tensor, name: str) -> str | None:
    """Return what keeps a tensor's values from being read as they are, with the remedy."""
    kind = type(tensor).__name__
    if tensor.device.type == "meta":
        return (
            "is on the meta device and has no values; materialise it first (module.to_empty, "
            "then load its weights)"
        )
    if is_lazy(tensor):
        return "is not initialised yet; run the lazy module once first"
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return (
            "is inside a transform of torch.func (vmap, grad, …), where it has no values of its "
            "own; solve outside of it"
        )
    if tensor.is_nested:
        return f"is a nested tensor; pass its parts, {name}.unbind()"
    if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        remedy = {
            "DTensor": f"pass its {name}.full_tensor(), or solve the local shard {name}.to_local()",
            "SparseSemiStructuredTensorCUTLASS": f"it is 2:4 already; {name}.to_dense() gives the "
            "dense weight",
            "SparseSemiStructuredTensorCUSPARSELT": f"it is 2:4 already; {name}.to_dense() gives "
            "the dense weight",
        }.get(
            kind, f"pass the plain tensor that it wraps, or of a quantised one {name}.dequantize()"
        )
        return f"is a {kind}, a wrapper around other tensors; {remedy}"
    if tensor.layout != torch.strided:
        return f"is sparse ({str(tensor.layout).removeprefix('torch.')}); pass {name}.to_dense()"
    if tensor.is_quantized:
        return (
            f"is quantized ({tensor.dtype}); pass {name}.dequantize(), or {name}.int_repr() for "
            "one scale a tensor"
        )
    if tensor.is_complex():
        return f"is complex ({tensor.dtype}); pass the scores to maximise, for example {name}.abs()"
    return None


def is_convolution(tensor: Tensor) -> bool:
    """Return whether a tensor is taken for a convolution weight (out, in, kernel …)."""
    return tensor.ndim >= 4


def as_matrices(tensor: Tensor) -> Tensor:
    """Return a view: (rows, cols) and (batch, rows, cols) as they are, (out, in, kernel …) as
    (kernel …, out, in).
    """
    return geometry.as_matrices(tensor, 1) if is_convolution(tensor) else tensor


def from_matrices(matrices: Tensor, like: Tensor) -> Tensor:
    """Return the weight that `as_matrices` takes to these, in memory laid out like `like`."""
    if not is_convolution(like):
        return matrices
    mask = torch.empty_like(like, dtype=matrices.dtype, requires_grad=False)
    return mask.copy_(geometry.from_matrices(matrices, 1))


def as_array(tensor: Tensor) -> NDArray[Any]:
    """Return a NumPy array on a CPU tensor's memory; bfloat16 and float8 through their bits."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16).view(bfloat16)
    if tensor.dtype in FLOATS8:
        return tensor.view(torch.uint8).numpy().view(as_type(FLOATS8[tensor.dtype]))
    return tensor.numpy()


def is_nonzero(tensor: Tensor) -> Tensor:
    """Return where a tensor is not zero; −0 is, NaN is not. float8 is compared by its bits: other
    comparisons would convert the 0 as well.
    """
    if tensor.dtype not in FLOATS8:
        return tensor != 0
    name, code = FLOATS8[tensor.dtype], tensor.view(torch.uint8)
    if name == POWERS:
        return torch.ones_like(code, dtype=torch.bool)
    return (code if name.endswith("fnuz") else code & 0x7F) != 0


def explain_layout(error: InputError, tensor: Tensor) -> InputError:
    """Return an error of the core, which saw matrices, with the user's own shape beside it."""
    shape = tuple(tensor.shape)
    if tensor.ndim == 3:
        return type(error)(
            f"{error} (a tensor of shape {shape} is a batch of matrices {shape[1:]}; a Conv1d "
            "weight is passed as weights.unsqueeze(2))"
        )
    if not is_convolution(tensor):
        return error
    return type(error)(
        f"{error} (the convolution weight of shape {shape} is solved as matrices (out, in), one a "
        f"kernel position: axes here are {tuple(as_matrices(tensor).shape)}, of yours (kernel …, "
        "out, in))"
    )


def compute_dtype(dtype: torch.dtype, signed_blocks: bool) -> torch.dtype:
    """Return the dtype that scores are computed in: float32 where it holds them, but
    float64 for blocks of signed scores, which cancel.
    """
    narrow = dtype in (torch.float16, torch.bfloat16, torch.float32, *FLOATS8, *SMALL_INTEGERS)
    return torch.float32 if narrow and not signed_blocks else torch.float64


def tolerance(dtype: torch.dtype) -> float:
    """Return the relative gap up to which a mask counts as optimal, as in the core."""
    return 1e-6 if dtype in (torch.float16, torch.bfloat16, torch.float32, *FLOATS8) else 1e-12
