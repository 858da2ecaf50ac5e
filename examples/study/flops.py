"""The training FLOPs of a whole model, of which `nmsolve` counts the masked layers."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

import nmsolve.torch as nmt


@dataclass(frozen=True)
class ForwardFlops:
    """Of one forward pass, dense. total : of the model. layers : of the weights asked for, by their
    paths.
    """

    total: int
    layers: dict[str, int]

    def relative(self, stats: nmt.Stats) -> float:
        """Training FLOPs relative to dense. Whatever has no mask counts as dense: stem, head,
        scores of attention.
        """
        saved = sum(
            self.layers[path] * (1 - layer.training_flops) for path, layer in stats.layers.items()
        )
        return 1 - saved / self.total


def forward_flops(model: nn.Module, inputs: Tensor, paths: Iterable[str]) -> ForwardFlops:
    """Count a forward pass of a dense model.

    A weight is used once a position (token, or pixel of the output), with two operations an entry.
    Positions are read off the output of the module that has the weight; where that is never called,
    as the output projection inside torch's attention, off its parent's.
    """
    model = deepcopy(model).train()
    # A pass moves the statistics of batch norm; in training mode torch's encoder has no other path.
    modules = dict(model.named_modules())
    positions: dict[str, int] = {}

    def hook(name: str) -> RemovableHandle:
        def count(module: nn.Module, _: object, output: Tensor | tuple[Tensor, ...]) -> None:
            output = output[0] if isinstance(output, tuple) else output
            channels = output.shape[1] if isinstance(module, nn.Conv2d) else output.shape[-1]
            positions[name] = output.numel() // channels

        return modules[name].register_forward_hook(count)

    handles = [hook(name) for name in modules]
    try:
        # The fused attention of processors has no FLOP formula; the plain one consists of matrix
        # products, which are counted.
        with (
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    layers = {path: 2 * _weight(model, path).numel() * _used(path, positions) for path in paths}
    total = counter.get_total_flops()
    if sum(layers.values()) > total:
        raise AssertionError(f"layers count {sum(layers.values()):,} FLOPs, the model {total:,}")
    return ForwardFlops(total, layers)


def _weight(model: nn.Module, path: str) -> Tensor:
    found = model
    for part in path.split("."):
        found = getattr(found, part)
    return found if isinstance(found, Tensor) else found.weight


def _used(path: str, positions: dict[str, int]) -> int:
    while path not in positions:
        path = path.rpartition(".")[0]
    return positions[path]
