"""SparseGPT as published, on a decoder of transformers, block by block: one sweep over the columns
of each weight, which chooses what is dropped and makes the later columns make up for it.

Frantar and Alistarh, SparseGPT: massive language models can be accurately pruned in one-shot, ICML
2023, Algorithm 1, with the choices of its code: n:m masks at each group of columns, damping 0.01,
blocks of 128 columns, one collection of XᵀX for all weights of a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

DAMPING = 0.01
COLUMNS = 128


class _Captured(Exception):
    """The first block has been reached: nothing behind it need run."""


@torch.no_grad()
def prune_decoder(
    model: nn.Module, blocks: Sequence[nn.Module], items: Iterable[Tensor], n: int, m: int
) -> None:
    """Prune every nn.Linear in consecutive blocks of a decoder to n:m, in place.

    A block runs twice for each item: to collect, and to make the inputs of the next one, which the
    published code does behind the last one too.
    """
    inputs = [_first_inputs(model, blocks[0], item) for item in items]
    for block in blocks:
        layers = [module for module in block.modules() if isinstance(module, nn.Linear)]
        squares = _squares(block, layers, inputs)
        for layer, hessian in zip(layers, squares, strict=True):
            layer.weight.copy_(sparsegpt(layer.weight, hessian, n, m))
        if block is not blocks[-1]:
            inputs = [(_run(block, hidden, rest), rest) for hidden, rest in inputs]


def sparsegpt(weight: Tensor, hessian: Tensor, n: int, m: int) -> Tensor:
    """The pruned weight (rows, cols), by XᵀX (cols, cols) of its inputs. Each group of m keeps the
    n with the largest w² / [H⁻¹]_jj, where H is of the columns from j on.
    """
    weight, hessian = weight.clone(), hessian.clone()
    cols = weight.shape[1]
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1
    weight[:, dead] = 0
    hessian.diagonal().add_(DAMPING * hessian.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    # Row j, over its diagonal, is that of the inverse of the columns from j on.
    upper = torch.linalg.cholesky(inverse, upper=True)
    for first in range(0, cols, COLUMNS):
        last = min(first + COLUMNS, cols)
        part, factor = weight[:, first:last], upper[first:last, first:last]
        dropped = torch.zeros_like(part, dtype=torch.bool)
        errors = torch.zeros_like(part)
        for j in range(last - first):
            if j % m == 0:
                saliency = (part[:, j : j + m] / factor.diagonal()[j : j + m]) ** 2
                least = saliency.topk(m - n, dim=1, largest=False).indices
                dropped[:, j : j + m].scatter_(1, least, True)
            errors[:, j] = torch.where(dropped[:, j], part[:, j], 0) / factor[j, j]
            part[:, j:] -= torch.outer(errors[:, j], factor[j, j:])
            part[dropped[:, j], j] = 0
        weight[:, last:] -= errors @ upper[first:last, last:]
    return weight


def _first_inputs(
    model: nn.Module, block: nn.Module, item: Tensor
) -> tuple[Tensor, dict[str, Any]]:
    """The hidden states that reach a block, and its other arguments, without the cache."""
    found = []

    def capture(_: nn.Module, arguments: tuple[Tensor], rest: dict[str, Any]) -> None:
        found.append((arguments[0], rest | {"past_key_values": None}))
        raise _Captured

    handle = block.register_forward_pre_hook(capture, with_kwargs=True)
    try:
        model(item)
    except _Captured:
        pass
    finally:
        handle.remove()
    return found[0]


def _squares(
    block: nn.Module, layers: Sequence[nn.Module], inputs: Sequence[tuple[Tensor, dict[str, Any]]]
) -> list[Tensor]:
    """XᵀX of each layer over all items; layers that are given the same tensor share a product."""
    totals: list[Tensor | None] = [None] * len(layers)
    last: list[Tensor] = [torch.empty(0)] * 2

    def add(index: int, _: nn.Module, arguments: tuple[Tensor]) -> None:
        if arguments[0] is not last[0]:
            x = arguments[0].flatten(end_dim=-2)
            last[:] = arguments[0], x.T @ x
        total = totals[index]
        totals[index] = last[1].clone() if total is None else total.add_(last[1])

    handles = [
        layer.register_forward_pre_hook(partial(add, index)) for index, layer in enumerate(layers)
    ]
    for hidden, rest in inputs:
        _run(block, hidden, rest)
    for handle in handles:
        handle.remove()
    return [total for total in totals if total is not None]


def _run(block: nn.Module, hidden: Tensor, rest: dict[str, Any]) -> Tensor:
    outputs = block(hidden, **rest)
    return outputs[0] if isinstance(outputs, tuple) else outputs
