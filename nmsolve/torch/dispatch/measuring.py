"""A linear layer, dense against a 2:4 backend: first whether the backend is right at the recorded shapes, then how fast."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nmsolve.errors import InputError
from nmsolve.torch.dispatch.acceleration import Timing
from nmsolve.torch.dispatch.masked_linear import masked_linear
from nmsolve.torch.dispatch.packed_linear import packed_product
from nmsolve.torch.dispatch.packing import pack
from nmsolve.torch.dispatch.recording import Call
from nmsolve.torch.dispatch.timing import medians_us, rotation_beyond_cache

#: A linear layer as a function of x, W and b.
Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def measure(weight: Tensor, bias: Tensor | None, calls: Mapping[Call, int], backend: str, training: bool) -> Timing:
    """Time all recorded calls of a layer, dense and by a backend.

    Parameters
    ----------
    weight : (out_features, in_features) tensor
        2:4 (training: transposable), zeros in place. In training it is cast to the calls' dtype each time, as autocast does.
    calls : how often each input shape was seen.
    training : forward, backward and the packing for both; else the forward alone, of a weight packed before.

    Returns
    -------
    Timing
        `failure` is set where the backend raises, or its numbers are wrong (see `wrong_result`).
    """
    dense_us = sparse_us = 0.0
    try:
        for call, times in calls.items():
            if call.tokens == 0:
                continue
            pair = _time(weight, bias, call, backend, training)
            if isinstance(pair, str):
                return Timing(dense_us=None, sparse_us=None, failure=pair)
            dense_us, sparse_us = dense_us + times * pair[0], sparse_us + times * pair[1]
    except (RuntimeError, InputError) as error:  # a kernel refuses, memory runs out, or `pack` does
        first = (str(error) or type(error).__name__).strip().splitlines()[0]
        return Timing(dense_us=None, sparse_us=None, failure=f"failed with {first}")
    return Timing(dense_us=dense_us, sparse_us=sparse_us, failure=None)


def _time(weight: Tensor, bias: Tensor | None, call: Call, backend: str, training: bool) -> tuple[float, float] | str:
    """Microseconds of one call, dense and sparse; or what is wrong with the sparse result."""
    generator = torch.Generator(call.device).manual_seed(0)  # the global one stays as it was
    size = weight.numel() * weight.element_size() + call.tokens * weight.shape[1] * call.dtype.itemsize
    rotation = rotation_beyond_cache(size, call.device)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=call.device, dtype=torch.float32).to(call.dtype)

    xs = [drawn(call.tokens, weight.shape[1]).requires_grad_(training) for _ in range(rotation)]
    weights = [weight.detach().clone().requires_grad_(training) for _ in range(rotation)]
    bias = None if bias is None else bias.detach().clone().requires_grad_(training)
    dy = drawn(call.tokens, weight.shape[0])
    sparse = _trained(weight, backend) if training else _packed(weights, backend)

    def run(linear: Linear, i: int) -> tuple[Tensor, ...]:
        with torch.autocast(call.device.type, dtype=call.dtype, enabled=weight.dtype != call.dtype):
            y = linear(xs[i], weights[i], bias)
        if not training:
            return (y,)
        wanted = [xs[i], weights[i]] if bias is None else [xs[i], weights[i], bias]
        return (y, *torch.autograd.grad(y, wanted, dy))

    with torch.set_grad_enabled(training):
        wrong = wrong_result(
            run(sparse, 0), run(F.linear, 0), _reference(xs[0], weights[0], bias, dy, training), _kept(weight, training)
        )
        if wrong is not None:
            return f"wrong result: {wrong}"
        dense_us, sparse_us = medians_us([lambda i: run(F.linear, i), lambda i: run(sparse, i)], call.device, rotation)
    return dense_us, sparse_us


def _packed(weights: Sequence[Tensor], backend: str) -> Linear:
    """As PackedLinear multiplies, with every weight of the rotation packed in advance."""
    parts = {}
    for weight in weights:
        packed = pack(weight, backend)
        assert packed.packed is not None
        parts[id(weight)] = packed.packed, packed.meta

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = packed_product(x, *parts[id(weight)], bias, weight.shape[0], weight.shape[1], backend)
        return y

    return linear


def _trained(weight: Tensor, backend: str) -> Linear:
    """As SparseLinear multiplies."""
    mask = weight != 0
    return lambda x, weight, bias: masked_linear(x, weight, mask, bias, backend=backend)


def _kept(weight: Tensor, training: bool) -> Tensor | None:
    return weight != 0 if training else None


def _reference(x: Tensor, weight: Tensor, bias: Tensor | None, dy: Tensor, training: bool) -> tuple[Tensor, ...]:
    """What dense and sparse approximate: the same operands, rounded to the calls' dtype first, multiplied in float32."""
    x32, w32, dy32 = (tensor.detach().to(x.dtype).float() for tensor in (x, weight, dy))
    y = F.linear(x32, w32, None if bias is None else bias.detach().to(x.dtype).float())
    if not training:
        return (y,)
    gradients = (y, dy32 @ w32, dy32.t() @ x32)
    return gradients if bias is None else (*gradients, dy32.sum(0))


def wrong_result(
    sparse: Sequence[Tensor], dense: Sequence[Tensor], reference: Sequence[Tensor], kept: Tensor | None = None
) -> str | None:
    """What is wrong with a layer's y (training: and gradients of x, W and b); None if they are as good as the dense ones.

    Largest errors against the reference are compared, tensor by tensor: the sparse may be off by 4 × what dense is, plus one unit
    of the dtype relative to the largest value. kept : the mask, if gradients of the weight are masked.
    """
    for name, ours, theirs, truth in zip(("y", "dx", "dW", "db"), sparse, dense, reference, strict=False):
        if kept is not None and name == "dW":
            theirs, truth = torch.where(kept, theirs, 0), torch.where(kept, truth, 0)
        error, usual = (float((tensor.detach().float() - truth).abs().max()) for tensor in (ours, theirs))
        allowed = 4 * usual + torch.finfo(dense[0].dtype).eps * float(truth.abs().max())
        if not error <= allowed:  # so that a NaN is wrong
            return f"{name} is off by {error:.3g}, {allowed:.3g} are allowed"
    return None
