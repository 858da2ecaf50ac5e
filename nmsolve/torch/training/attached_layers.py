"""The optimizer as methods see it: the layers whose weights it holds, and a step of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from nmsolve.torch.training.masked_layer import MaskedLayer
from nmsolve.torch.weights.sharding import first_axis, local


class AttachedLayers:
    """The layers whose weights one optimizer holds.

    Attributes
    ----------
    optimizer : torch.optim.Optimizer
    layers : list of MaskedLayer
        Those that have their masks still.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.layers: list[MaskedLayer] = []
        self._factors: dict[int, tuple[tuple[int, int], Tensor]] = {}

    def factor(self, layer: MaskedLayer, *, kept: bool) -> Tensor:
        """Return this rank's mask as 1 where kept (or where dropped) and 0 elsewhere, in the
        weight's dtype: faster than bools.
        """
        weight = layer.weight
        version = layer.masked.version
        found = self._factors.get(id(layer))
        if (
            found is not None
            and found[0] == version
            and found[1].dtype == weight.dtype
            and found[1].device == weight.device
        ):
            return found[1]
        mask = layer.masked.mask[first_axis(layer.parameter)]
        factor = (
            found[1]
            if found is not None and found[1].dtype == weight.dtype
            else torch.empty_like(weight)
        )
        factor = factor.to(weight.device)
        factor.copy_(mask) if kept else torch.logical_not(mask, out=factor)
        self._factors[id(layer)] = version, factor
        return factor

    def forget(self, layer: MaskedLayer) -> None:
        """Zero what a layer's mask drops: in the weight, and in the momenta that would move it or
        fade to subnormals.
        """
        mask = layer.masked.mask[first_axis(layer.parameter)]
        layer.weight.mul_(mask)
        for tensor in self.optimizer.state.get(layer.parameter, {}).values():
            if (
                isinstance(tensor, Tensor)
                and tensor.shape == layer.parameter.shape
                and tensor.is_floating_point()
            ):
                local(tensor).mul_(mask)


@dataclass(slots=True)
class Step:
    """A step that is about to be taken.

    Attributes
    ----------
    attachment : AttachedLayers
        All layers of the optimizer.
    layers : list of (MaskedLayer, dict)
        Those that have a gradient, each with the optimizer's group that it is in.
    gradients : list of Tensor
        Their gradients on this rank.
    scale : float
        The factor that gradients still have where a gradient scaler leaves unscaling to a fused
        optimizer; 1 otherwise.
    first : bool
        False when a closure is evaluated again within the step.
    """

    attachment: AttachedLayers
    layers: list[tuple[MaskedLayer, dict[str, Any]]]
    gradients: list[Tensor]
    scale: float
    first: bool
