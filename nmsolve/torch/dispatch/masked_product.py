"""`masked_linear`: y = x (W∘M)ᵀ + b on sparse tensor cores, forward and backward, from a dense W
and our own mask.

Both products are opaque operators that pack inside, so nothing packed outlives a call: a
checkpoint's recomputation, an optimizer step or a sharded parameter cannot leave a stale copy
behind, and `torch.compile` sees one operator of known shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nmsolve.errors import InputError
from nmsolve.torch.dispatch.algorithms import Memory, recall
from nmsolve.torch.dispatch.availability import check_backend, machine_at, warn_once, why_not
from nmsolve.torch.dispatch.packing import packed_linear, packed_parts


def masked_linear(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    *,
    backend: str = "dense",
    straight_through: bool = False,
    algorithms: Memory = (),
) -> Tensor:
    r"""Multiply by a masked weight, differentiably.

    .. math:: y = x (W \circ M)^T + b, \quad
              dx = dy (W \circ M), \quad dW = M \circ (dy^T x), \quad db = \textstyle\sum dy

    Parameters
    ----------
    x : (..., in_features) tensor
    weight : (out_features, in_features) tensor
        The dense parameter; not changed.
    mask : (out_features, in_features) bool tensor
        True = keep. For a backend other than "dense" it **must be transposable 2:4** (at most 2 of
        4 in rows and columns, see `is_2to4`): W∘M and its transpose are packed without another
        check, which would cost more than the packing.
    bias : (out_features,) tensor, optional
    backend : {"dense", "cusparselt", "cutlass"}
        The one that multiplies. What it cannot serve (a CPU, float32, a shape) is multiplied
        densely by the masked weight, with a warning once per process.
    straight_through : bool
        Leave dW unmasked, so that dropped weights go on learning (STE, SR-STE).
    algorithms : tuple of int
        cuSPARSELt's algorithms by size of the input, as `SparseLinear.algorithms` holds them; its
        own choice for all others.

    Returns
    -------
    (..., out_features) tensor

    Raises
    ------
    InputError
        If shapes, dtypes or devices do not fit together, or the backend does not exist.

    Notes
    -----
    Under autocast x, W and b are cast as `torch.nn.functional.linear` would. Twice differentiable;
    under torch.func transforms and forward-mode differentiation the product is dense. Dropped
    values are replaced, not multiplied by zero: a NaN among them does no harm while gradients are
    masked.

    Examples
    --------
    >>> x, W = torch.ones(3, 4), torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    >>> masked_linear(x, W, W > 2).tolist()
    [[7.0], [7.0], [7.0]]
    """
    check_backend(backend)
    x, weight, bias = autocast(x), autocast(weight), None if bias is None else autocast(bias)
    _check_operands(x, weight, mask, bias)
    if transformed():
        return F.linear(
            x, _through(weight, mask) if straight_through else masked(weight, mask), bias
        )
    y: Tensor = sparse_linear(
        x.reshape(-1, x.shape[-1]), weight, mask, bias, backend, straight_through, algorithms
    )
    return y.reshape(*x.shape[:-1], weight.shape[0])


def transformed() -> bool:
    """Return whether a transform of torch.func or forward-mode differentiation is at work, which
    know nothing of operators of our own.
    """
    if torch.compiler.is_compiling():
        return False
    forward_mode = torch.autograd.forward_ad._current_level >= 0
    return forward_mode or torch._C._functorch.peek_interpreter_stack() is not None


def _through(weight: Tensor, mask: Tensor) -> Tensor:
    """Return W∘M, with the gradient of W."""
    return masked(weight, mask).detach() + (weight - weight.detach())


def masked(weight: Tensor, mask: Tensor) -> Tensor:
    """Return W∘M, contiguous; what is dropped becomes +0 whatever it was."""
    return torch.where(mask, weight, 0).contiguous()


def autocast(tensor: Tensor) -> Tensor:
    """Return the tensor as `torch.nn.functional.linear` would cast it: operators of our own are
    unknown to autocast.
    """
    kind = tensor.device.type
    if (
        not torch.is_autocast_enabled(kind)
        or not tensor.is_floating_point()
        or tensor.dtype == torch.float64
    ):
        return tensor
    return tensor.to(torch.get_autocast_dtype(kind))


def _check_operands(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> None:
    if weight.dim() != 2 or mask.shape != weight.shape or mask.dtype != torch.bool:
        raise InputError(
            "weight is (out_features, in_features) and mask bool of the same shape, got "
            f"{tuple(weight.shape)} and {mask.dtype} {tuple(mask.shape)}"
        )
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise InputError(
            f"x must be (..., {weight.shape[1]}) for a weight of shape {tuple(weight.shape)}, got "
            f"{tuple(x.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InputError(
            f"bias must be ({weight.shape[0]},) for a weight of shape {tuple(weight.shape)}, got "
            f"{tuple(bias.shape)}"
        )
    for name, tensor in (("x", x), ("bias", bias)):
        if tensor is not None and tensor.dtype != weight.dtype:
            raise InputError(
                f"{name} must have the weight's {weight.dtype}, got {tensor.dtype}; convert it, or "
                "use autocast"
            )
    for name, tensor in (("x", x), ("mask", mask), ("bias", bias)):
        if tensor is not None and tensor.device != weight.device:
            raise InputError(
                f"{name} must be on the weight's device {weight.device}, is on {tensor.device}"
            )


def _product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    backend: str,
    algorithms: Sequence[int],
    backward: bool = False,
) -> Tensor:
    """Return x weightᵀ + b by a backend, or densely where it cannot serve; the weight is 2:4
    already.
    """
    # Operands were cast, or not, by the caller.
    with torch.autocast(x.device.type, enabled=False):
        if backend == "dense":
            return F.linear(x, weight, bias)
        reason = why_not(backend, tuple(weight.shape), weight.dtype, weight.device)
        if reason is None:
            values, meta = packed_parts(weight, backend)
            algorithm = recall(
                algorithms, machine_at(x.device.index), x.dtype, x.shape[0], backward
            )
            return packed_linear(
                x,
                values,
                meta,
                bias,
                (weight.shape[0], weight.shape[1]),
                backend,
                algorithm,
            )
        warn_once(
            "masked dense",
            f"nmsolve multiplies by the masked dense weight where {backend} cannot serve; here: "
            f"{reason}",
        )
        return F.linear(x, weight, bias)


# Schemas are spelled out: torch cannot derive them where annotations are strings. What is
# remembered of algorithms is looked up inside the operators, where the number of tokens is a
# number: outside, a compiler would guard on it.
@torch.library.custom_op(
    "nmsolve::sparse_linear",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor mask, Tensor? bias, str backend, bool "
    "straight_through, int[] algorithms=[]) -> Tensor",
)
def sparse_linear(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None,
    backend: str,
    straight_through: bool,
    algorithms: Sequence[int] = (),
) -> Tensor:
    """Return x (W∘M)ᵀ + b for x (tokens, in_features)."""
    return _product(x, masked(weight, mask), bias, backend, algorithms)


@torch.library.custom_op(
    "nmsolve::sparse_linear_grad_input",
    mutates_args=(),
    schema="(Tensor dy, Tensor weight, Tensor mask, str backend, bool straight_through, int[] "
    "algorithms=[]) -> Tensor",
)
def sparse_linear_grad_input(
    dy: Tensor,
    weight: Tensor,
    mask: Tensor,
    backend: str,
    straight_through: bool,
    algorithms: Sequence[int] = (),
) -> Tensor:
    """Return dy (W∘M) for dy (tokens, out_features): the product with the packed transpose."""
    return _product(
        dy, masked(weight, mask).t().contiguous(), None, backend, algorithms, backward=True
    )


@sparse_linear.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None,
    backend: str,
    straight_through: bool,
    algorithms: Sequence[int] = (),
) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]))


@sparse_linear_grad_input.register_fake
def _(
    dy: Tensor,
    weight: Tensor,
    mask: Tensor,
    backend: str,
    straight_through: bool,
    algorithms: Sequence[int] = (),
) -> Tensor:
    return dy.new_empty((dy.shape[0], weight.shape[1]))


def _weight_gradient(dy: Tensor, x: Tensor, mask: Tensor, straight_through: bool) -> Tensor:
    gradient = dy.t() @ x
    return gradient if straight_through else torch.where(mask, gradient, 0)


def _save_operands(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    moving, weight, mask = inputs[:3]
    ctx.options = inputs[-3:]
    # Of each operand only the other's gradient needs it: a frozen weight keeps no activations.
    ctx.save_for_backward(
        moving if ctx.needs_input_grad[1] else None,
        weight if ctx.needs_input_grad[0] else None,
        mask,
    )


def _linear_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, mask = ctx.saved_tensors
    backend, straight_through, algorithms = ctx.options
    dx = (
        None
        if weight is None
        else sparse_linear_grad_input(dy, weight, mask, backend, straight_through, algorithms)
    )
    dw = None if x is None else _weight_gradient(dy, x, mask, straight_through)
    return dx, dw, None, dy.sum(0) if ctx.needs_input_grad[3] else None, None, None, None


def _grad_input_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    """dx = dy (W∘M) is linear in dy and in W: its own gradients are g (W∘M)ᵀ and M ∘ (dyᵀ g)."""
    dy, weight, mask = ctx.saved_tensors
    backend, straight_through, algorithms = ctx.options
    ddy = (
        None
        if weight is None
        else sparse_linear(g, weight, mask, None, backend, straight_through, algorithms)
    )
    dw = None if dy is None else _weight_gradient(dy, g, mask, straight_through)
    return ddy, dw, None, None, None, None


sparse_linear.register_autograd(_linear_backward, setup_context=_save_operands)
sparse_linear_grad_input.register_autograd(_grad_input_backward, setup_context=_save_operands)
