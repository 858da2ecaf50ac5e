"""`Masked`: the parametrization that makes a weight the masked one.

torch.nn.utils.parametrize rather than new module classes: fused paths (attention, nn.TransformerEncoderLayer) read `weight` past
any forward, and so get the masked one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nmsolve.errors import InputError
from nmsolve.pattern import Pattern
from nmsolve.torch.shards import placed_like
from nmsolve.torch.training.candidates import Candidates


@dataclass(slots=True)
class Progress:
    """What has happened to a mask, in numbers that a checkpoint holds.

    step : optimizer steps taken. refreshes : masks solved after the first. sad : entries that differ between the last two masks.
    flips : the sum of sad over all refreshes. density_sum : the mask's density summed over the steps.
    """

    step: int = 0
    refreshes: int = 0
    sad: int = 0
    flips: int = 0
    density_sum: float = 0.0


class _StraightThrough(torch.autograd.Function):
    """W∘M forward, the identity backward: what is dropped goes on learning."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, mask: Tensor) -> Tensor:
        return weight * mask

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _ForwardToo(_StraightThrough):
    """The same with a derivative for forward mode, which the compiler does not take."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, mask_tangent: None) -> Tensor:
        return tangent.view_as(tangent)


class Masked(nn.Module):
    """W ↦ M∘W for a parametrized weight.

    mask : bool buffer of the weight's shape, True = keep; every rank of a sharded weight holds all of it. straight_through :
    whether gradients reach what is dropped. backend : who multiplies, where a layer is accelerated. candidates : LBC's, once it is
    attached.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, pattern: Pattern, axis: int, padding: str, straight_through: bool) -> None:
        super().__init__()
        if mask.is_inference():
            with torch.inference_mode(False):
                mask = mask.clone()
        self.register_buffer("mask", mask, persistent=False)  # checkpoints hold it in bits: see checkpoint.py
        self.pattern = pattern
        self.axis = axis
        self.padding = padding
        self.straight_through = straight_through
        self.backend = "dense"
        self.progress = Progress()
        self._counted: tuple[tuple[int, int], float] | None = None
        self.candidates: Candidates | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As nn.Module's; what casts everything, as model.type(dtype) does, leaves the mask bool."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.mask.dtype != torch.bool:
            self.mask = self.mask != 0
        return self

    def forward(self, weight: Tensor) -> Tensor:
        """W∘M; of a sharded weight, read outside the model's forward, sharded too."""
        mask = placed_like(self.mask, weight)
        if not self.straight_through:
            return weight * mask
        compiling = torch.compiler.is_compiling()
        if not compiling and torch._C._get_tracing_state() is not None:  # a trace of torch.jit holds no Python functions
            return torch.where(mask, weight, weight - weight.detach())
        function = _StraightThrough if compiling else _ForwardToo
        masked: Tensor = function.apply(weight, mask)  # type: ignore[no-untyped-call]
        return masked

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Assigning module.weight copies a tensor into the dense weight underneath."""
        if isinstance(weight, nn.Parameter):  # the weight itself, when the mask is put on
            return weight
        if weight.shape != self.mask.shape:
            raise InputError(f"the weight has shape {tuple(self.mask.shape)}; a tensor of shape {tuple(weight.shape)} was assigned")
        if weight.requires_grad or torch._C._functorch.is_functorch_wrapped_tensor(weight):
            raise InputError(
                "a masked weight is a copy of what is assigned, without its gradient: assign weight.detach(), or give "
                "torch.func.functional_call the names of model.named_parameters() (parametrizations.weight.original)"
            )
        return weight.clone()

    def put(self, mask: Tensor) -> int:
        """Exchange the mask, in place for compiled code; the number of entries that changed."""
        if mask.device.type == "cpu":  # NumPy counts bools an order of magnitude faster
            changed = int(np.count_nonzero(mask.numpy() != self.mask.numpy()))
        else:
            changed = int(torch.count_nonzero(mask ^ self.mask))
        self.mask.copy_(mask)
        return changed

    @property
    def version(self) -> tuple[int, int]:
        """Changes whenever the mask does, whoever changes it: a refresh, a checkpoint, a broadcast."""
        return id(self.mask), self.mask._version

    @property
    def density(self) -> float:
        """The share of the mask that is kept; counted again only when the mask has changed."""
        if self._counted is None or self._counted[0] != self.version:
            self._counted = self.version, int(torch.count_nonzero(self.mask)) / self.mask.numel()
        return self._counted[1]

    def extra_repr(self) -> str:
        """The pattern."""
        return f"pattern={self.pattern}"


def masked_parameters(module: nn.Module) -> dict[str, Masked]:
    """The masks on a module's own parameters, by parameter name."""
    if not parametrize.is_parametrized(module):
        return {}
    lists: Any = module.parametrizations
    return {name: parts[0] for name, parts in lists.items() if isinstance(parts[0], Masked)}


def original(module: nn.Module, parameter: str) -> Tensor:
    """The dense parameter under a mask."""
    lists: Any = module.parametrizations
    tensor: Tensor = lists[parameter].original
    return tensor
