"""A linear layer, dense against a 2:4 backend: whether the backend is right at the recorded shapes,
then how fast it is.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nmsolve.errors import InputError
from nmsolve.torch.device.failures import explain, first_line, is_lost
from nmsolve.torch.dispatch.algorithms import Memory, fastest, offered, remembered, sorted_out
from nmsolve.torch.dispatch.availability import machine_at, why_not
from nmsolve.torch.dispatch.decisions import Timing
from nmsolve.torch.dispatch.packed_linear import PackedLinear
from nmsolve.torch.dispatch.packing import pack, packed_linear, packed_parts, padded
from nmsolve.torch.dispatch.recording import Call
from nmsolve.torch.dispatch.sparse_linear import SparseLinear
from nmsolve.torch.dispatch.timing import call_times, medians_us, rotation_beyond_cache


class Product(NamedTuple):
    """x Wᵀ + b, by what an algorithm's speed depends on.

    Attributes
    ----------
    rows, cols : int
        The shape of W.
    tokens : int
        Rows of x when padded.
    dtype : torch.dtype
    bias : bool
        Whether there is a b.
    device : torch.device
    """

    rows: int
    cols: int
    tokens: int
    dtype: torch.dtype
    bias: bool
    device: torch.device


class Searched(NamedTuple):
    """The result of a search for the algorithms of a product.

    Attributes
    ----------
    algorithm : int
        The fastest right one.
    wrong : mapping of int to str
        What is wrong with those that are not right.
    """

    algorithm: int
    wrong: Mapping[int, str]


def measure(
    weight: Tensor,
    bias: Tensor | None,
    calls: Mapping[Call, int],
    backend: str,
    *,
    training: bool,
    searched: dict[Product, Searched] | None = None,
) -> Timing:
    """Time all recorded calls of a layer, dense and by a backend.

    Parameters
    ----------
    weight : (out_features, in_features) tensor
        2:4 (training: transposable), zeros in place. In training it is cast to the calls' dtype
        each time, as autocast does.
    bias : (out_features,) tensor, optional
    calls : mapping of Call to int
        How often each input shape was seen.
    backend : {"cusparselt", "cutlass"}
    training : bool
        True: forward, backward and the packing for both. False: the forward alone, of a weight
        packed before.
    searched : dict of Product to Searched, optional
        Products whose algorithms were searched before, for other layers; those of this one are
        added.

    Returns
    -------
    Timing
        `failure` is set where the backend raises, or its numbers are wrong (see `wrong_result`).

    Raises
    ------
    RuntimeError
        What a device raised that is lost for this process (`failures.is_lost`): nothing that is
        measured there any more is true.

    Notes
    -----
    A call counts as what a loop over it takes: the larger of the device's and the host's time,
    because launching takes the host longer for sparse layers than for dense ones, and small layers
    are done before the host has launched the next.

    For cuSPARSELt the fastest right algorithm of each product is searched first, once for all
    layers with such a product; it is checked by value again with this layer's weight. Dense and
    sparse are then timed again: the fastest of many scattered times looks faster than it is.
    """
    searched = {} if searched is None else searched
    dense_us = sparse_us = 0.0
    algorithms: Memory = ()
    wrong: dict[int, str] = {}
    what = f"a weight of shape {tuple(weight.shape)}, {weight.dtype}"
    try:
        if not training:
            pack(weight, backend)  # refuses what cannot be packed; a PackedLinear would stay dense
        for call, times in calls.items():
            if call.tokens == 0:
                continue
            what = f"{call.tokens} tokens for a weight of shape {tuple(weight.shape)}, {call.dtype}"
            memory: Memory = ()
            if (
                backend == "cusparselt"
                and why_not(backend, tuple(weight.shape), call.dtype, call.device) is None
            ):
                memory = _fastest(weight, bias, call, training, searched, wrong)
            if 0 in wrong:  # which whatever is not measured would use
                return Timing(dense_us=None, sparse_us=None, failure=f"wrong result: {wrong[0]}")
            pair = _time(weight, bias, call, backend, training, memory)
            if isinstance(pair, str) and memory:
                # Right with the weight it was searched with, but not with this one.
                memory = ()
                pair = _time(weight, bias, call, backend, training, memory)
            if isinstance(pair, str):
                return Timing(dense_us=None, sparse_us=None, failure=pair)
            dense_us, sparse_us = dense_us + times * pair[0], sparse_us + times * pair[1]
            algorithms += memory
    except (RuntimeError, InputError) as error:  # a kernel refuses, memory runs out, or `pack` does
        if is_lost(error, weight.device):
            raise
        failure = first_line(explain(error, what, weight.device) or error)
        return Timing(dense_us=None, sparse_us=None, failure=f"failed with {failure}")
    return Timing(
        dense_us=dense_us,
        sparse_us=sparse_us,
        failure=None,
        algorithms=algorithms,
        wrong=tuple(sorted(wrong)),
    )


def _fastest(
    weight: Tensor,
    bias: Tensor | None,
    call: Call,
    training: bool,
    searched: dict[Product, Searched],
    wrong: dict[int, str],
) -> Memory:
    """Return the fastest right algorithms for a call's products, each of which has a shape of its
    own; add wrong ones to `wrong`.
    """
    weight = weight.detach().to(call.dtype)
    bias = None if bias is None else bias.detach().to(call.dtype)
    found = []
    for factor, added in (
        ((weight, bias), (weight.t().contiguous(), None)) if training else ((weight, bias),)
    ):
        rows, cols = factor.shape
        product = Product(
            rows, cols, padded(call.tokens), call.dtype, added is not None, factor.device
        )
        if product not in searched:
            searched[product] = _search(factor, added, call.tokens)
        wrong.update(searched[product].wrong)
        found.append(searched[product].algorithm)
    return remembered(machine_at(weight.device.index), call.dtype, call.tokens, *found)


def _search(weight: Tensor, bias: Tensor | None, tokens: int) -> Searched:
    """Check every algorithm for x Wᵀ + b, x (tokens, in_features), by value, and time the right
    ones.
    """
    rows, cols = weight.shape
    rotation = rotation_beyond_cache(
        (weight.numel() + tokens * cols) * weight.element_size(), weight.device
    )
    xs = [_drawn((tokens, cols), weight, seed) for seed in range(rotation)]
    values = [packed_parts(weight, "cusparselt")[0] for _ in range(rotation)]

    def multiply(algorithm: int, i: int) -> Tensor:
        return packed_linear(xs[i], values[i], None, bias, (rows, cols), "cusparselt", algorithm)

    with torch.no_grad():
        count = offered(values[0], xs[0])
        dense = F.linear(xs[0], weight, bias)
        truth = F.linear(xs[0].float(), weight.float(), None if bias is None else bias.float())
        right, wrong = sorted_out(
            count,
            lambda number: wrong_result([multiply(number, 0)], [dense], [truth]),
            weight.device,
        )
        if len(right) == 1 or 0 in wrong:
            return Searched(0, wrong)
        # Few repeats: there may be dozens, and the one that is taken is timed again.
        times = medians_us(
            [functools.partial(multiply, number) for number in right],
            weight.device,
            rotation,
            repeats=5,
        )
    return Searched(fastest(dict(zip(right, times, strict=True))), wrong)


def _drawn(shape: tuple[int, ...], like: Tensor, seed: int) -> Tensor:
    """Return N(0, 1), of the dtype and on the device of another tensor; the global random numbers
    stay as they were.
    """
    generator = torch.Generator(like.device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=like.device, dtype=torch.float32).to(
        like.dtype
    )


def _time(
    weight: Tensor,
    bias: Tensor | None,
    call: Call,
    backend: str,
    training: bool,
    algorithms: Memory,
) -> tuple[float, float] | str:
    """Return microseconds of one call, dense and sparse, or what is wrong with the result."""
    size = (
        weight.numel() * weight.element_size() + call.tokens * weight.shape[1] * call.dtype.itemsize
    )
    rotation = rotation_beyond_cache(size, call.device)
    like = weight.new_empty(0, dtype=call.dtype)
    xs = [
        _drawn((call.tokens, weight.shape[1]), like, seed).requires_grad_(training)
        for seed in range(rotation)
    ]
    dy = _drawn((call.tokens, weight.shape[0]), like, rotation)
    # The layers themselves are timed, not their products: what they do on the host counts.
    dense = [_linear(weight, bias, training) for _ in range(rotation)]
    sparse = [_sparse(layer, backend, training, algorithms) for layer in dense]

    def run(layers: Sequence[nn.Module], i: int) -> tuple[Tensor, ...]:
        with torch.autocast(call.device.type, dtype=call.dtype, enabled=weight.dtype != call.dtype):
            y = layers[i](xs[i])
        if not training:
            return (y,)
        return (y, *torch.autograd.grad(y, [xs[i], *dense[i].parameters()], dy))

    with torch.set_grad_enabled(training):
        ours, theirs = run(sparse, 0), run(dense, 0)
        truth = _reference(xs[0], dense[0].weight, dense[0].bias, dy, training)
        wrong = wrong_result(ours, theirs, truth, weight != 0 if training else None)
        if wrong is not None:
            return f"wrong result: {wrong}"
        dense_time, sparse_time = call_times(
            [lambda i: run(dense, i), lambda i: run(sparse, i)], call.device, rotation
        )
    return dense_time.in_use_us, sparse_time.in_use_us


def _linear(weight: Tensor, bias: Tensor | None, training: bool) -> nn.Linear:
    """Return the dense layer, with copies of its parameters."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta", bias=bias is not None)
    layer.weight = nn.Parameter(weight.detach().clone(), training)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), training)
    return layer


def _sparse(layer: nn.Linear, backend: str, training: bool, algorithms: Memory) -> nn.Module:
    """Return the layer that would take the dense one's place; of a SparseLinear the parameters are
    the dense one's.
    """
    if training:
        return SparseLinear.from_linear(
            layer, layer.weight != 0, backend=backend, algorithms=algorithms
        )
    return PackedLinear.from_linear(layer, backend, algorithms=algorithms)


def _reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, dy: Tensor, training: bool
) -> tuple[Tensor, ...]:
    """Return what dense and sparse approximate: the same operands, rounded to the calls' dtype
    first, multiplied in float32.
    """
    x32, w32, dy32 = (tensor.detach().to(x.dtype).float() for tensor in (x, weight, dy))
    y = F.linear(x32, w32, None if bias is None else bias.detach().to(x.dtype).float())
    if not training:
        return (y,)
    gradients = (y, dy32 @ w32, dy32.t() @ x32)
    return gradients if bias is None else (*gradients, dy32.sum(0))


def wrong_result(
    sparse: Sequence[Tensor],
    dense: Sequence[Tensor],
    reference: Sequence[Tensor],
    kept: Tensor | None = None,
) -> str | None:
    """Return what is wrong with a layer's y (training: and gradients of x, W and b); None if they
    are as good as the dense ones.

    Largest errors against the reference are compared, tensor by tensor: the sparse may be off by 4
    × what dense is, plus one unit of the dtype relative to the largest value. kept : the mask, if
    gradients of the weight are masked.
    """
    for name, ours, theirs, truth in zip(
        ("y", "dx", "dW", "db"), sparse, dense, reference, strict=False
    ):
        if kept is not None and name == "dW":
            theirs, truth = torch.where(kept, theirs, 0), torch.where(kept, truth, 0)
        error, usual = (
            float((tensor.detach().float() - truth).abs().max()) for tensor in (ours, theirs)
        )
        allowed = 4 * usual + torch.finfo(dense[0].dtype).eps * float(truth.abs().max())
        if not error <= allowed:  # so that a NaN is wrong
            return f"{name} is off by {error:.3g}, {allowed:.3g} are allowed"
    return None
