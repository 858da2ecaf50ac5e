"""Tensors as matrices of scores: what is refused and why, and how convolution weights are laid out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.parameter import is_lazy

from nmsolve.errors import InputError
from nmsolve.validate import bfloat16

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: Computed in float32, whose 24 bits hold them; wider ones in float64.
SMALL_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.uint16)
INTEGERS = (*SMALL_INTEGERS, torch.int32, torch.int64, torch.uint32, torch.uint64)


def check_tensor(tensor: object, name: str, purpose: str) -> Tensor:
    """The tensor itself, detached; InputError for what is no plain tensor of numbers in memory.

    Raises
    ------
    InputError
        By name: anything but a tensor, meta, sparse, quantized, complex and wrapped tensors, other dtypes, no element.
    """
    if isinstance(tensor, Mapping):
        known = ", ".join(map(str, list(tensor)[:3]))
        raise InputError(
            f"{name} is a {type(tensor).__name__}, tensors by layer: pass that of the layer, {name}[…] (it has {known})"
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
    if tensor.dtype not in (*FLOATS, *INTEGERS, torch.bool):
        raise InputError(
            f"{name} has dtype {tensor.dtype}, shape {tuple(tensor.shape)}: {purpose} takes float16, bfloat16, float32, float64 "
            f"and integers; convert with {name}.float()"
        )
    if tensor.ndim < 2:
        raise InputError(
            f"{name} has shape {tuple(tensor.shape)}: {purpose} needs (rows, cols) with groups along the last axis, a batch "
            f"of such, or a convolution weight; for one row pass {name}[None, :]"
        )
    if tensor.ndim > 5:
        raise InputError(
            f"{name} has shape {tuple(tensor.shape)}: {purpose} takes matrices (rows, cols), batches of them (batch, rows, cols) "
            f"and convolution weights (out, in, kernel …) with two or three kernel axes; flatten the batch axes into one"
        )
    if tensor.numel() == 0:
        raise InputError(f"{name} has shape {tuple(tensor.shape)}, without any element: {purpose} has nothing to choose from")
    return tensor.detach().as_subclass(Tensor).resolve_neg()


def _problem(tensor: Tensor, name: str) -> str | None:
    """What keeps a tensor's values from being read as they are, with the remedy."""
    kind = type(tensor).__name__
    if tensor.device.type == "meta":
        return "is on the meta device and has no values; materialise it first (module.to_empty, then load its weights)"
    if is_lazy(tensor):
        return "is not initialised yet; run the lazy module once first"
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return "is inside a transform of torch.func (vmap, grad, …), where it has no values of its own; solve outside of it"
    if tensor.is_nested:
        return f"is a nested tensor; pass its parts, {name}.unbind()"
    if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        remedy = {
            "DTensor": f"pass its {name}.full_tensor(), or solve the local shard {name}.to_local()",
            "SparseSemiStructuredTensorCUTLASS": f"it is 2:4 already; {name}.to_dense() gives the dense weight",
            "SparseSemiStructuredTensorCUSPARSELT": f"it is 2:4 already; {name}.to_dense() gives the dense weight",
        }.get(kind, "pass the plain tensor that it wraps")
        return f"is a {kind}, a wrapper around other tensors; {remedy}"
    if tensor.layout != torch.strided:
        return f"is sparse ({str(tensor.layout).removeprefix('torch.')}); pass {name}.to_dense()"
    if tensor.is_quantized:
        return f"is quantized ({tensor.dtype}); pass {name}.dequantize(), or {name}.int_repr() for one scale a tensor"
    if tensor.is_complex():
        return f"is complex ({tensor.dtype}); pass the scores to maximise, for example {name}.abs()"
    return None


def is_convolution(tensor: Tensor) -> bool:
    """Whether a tensor is taken for a convolution weight (out, in, kernel …)."""
    return tensor.ndim >= 4


def as_matrices(tensor: Tensor) -> Tensor:
    """(rows, cols) and (batch, rows, cols) as they are; (out, in, kernel …) as (kernel …, out, in). A view."""
    if not is_convolution(tensor):
        return tensor
    kernel = range(2, tensor.ndim)
    return tensor.permute(*kernel, 0, 1)


def from_matrices(matrices: Tensor, like: Tensor) -> Tensor:
    """The inverse of `as_matrices`, in memory laid out like the given weight."""
    if not is_convolution(like):
        return matrices
    axes = matrices.ndim
    view = matrices.permute(axes - 2, axes - 1, *range(axes - 2))
    return torch.empty_like(like, dtype=matrices.dtype, requires_grad=False).copy_(view)


def as_array(tensor: Tensor) -> NDArray[Any]:
    """A CPU tensor as a NumPy array on the same memory; bfloat16 through its bits."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16).view(bfloat16)
    return tensor.numpy()


def explain_layout(error: InputError, tensor: Tensor) -> InputError:
    """An error of the core, which saw matrices, with the user's own shape beside it."""
    shape = tuple(tensor.shape)
    if tensor.ndim == 3:
        return type(error)(
            f"{error} (a tensor of shape {shape} is a batch of matrices {shape[1:]}; "
            "a Conv1d weight is passed as weights.unsqueeze(2))"
        )
    if not is_convolution(tensor):
        return error
    return type(error)(
        f"{error} (the convolution weight of shape {shape} is solved as matrices (out, in), one a kernel position: "
        f"axes here are {tuple(as_matrices(tensor).shape)}, of yours (kernel …, out, in))"
    )


def compute_dtype(dtype: torch.dtype, signed_blocks: bool) -> torch.dtype:
    """What scores are computed in: float32 where it holds them, but float64 for blocks of signed scores, which cancel."""
    narrow = dtype in (torch.float16, torch.bfloat16, torch.float32, *SMALL_INTEGERS)
    return torch.float32 if narrow and not signed_blocks else torch.float64


def tolerance(dtype: torch.dtype) -> float:
    """The relative gap up to which a mask counts as optimal, as in the core."""
    return 1e-6 if dtype in (torch.float16, torch.bfloat16, torch.float32) else 1e-12
