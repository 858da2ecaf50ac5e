"""`Masked`: the parametrization that puts a mask on a weight, and how it is put on a module and taken off again.

torch.nn.utils.parametrize rather than new module classes: fused paths (attention, nn.TransformerEncoderLayer) read `weight` past
any forward, and so get the masked one. What torch leaves open is mended here: state dicts with plain names, torch.save of the whole
module, and taking masks off a deep copy, which shares its class with the original.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nmsolve.pattern import Pattern
from nmsolve.torch.shards import placed_like

if TYPE_CHECKING:
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
        self.register_buffer("mask", mask, persistent=False)  # checkpoints hold it in bits: see checkpoint.py
        self.pattern = pattern
        self.axis = axis
        self.padding = padding
        self.straight_through = straight_through
        self.backend = "dense"
        self.progress = Progress()
        self._counted: tuple[tuple[int, int], float] | None = None
        self.candidates: Candidates | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """W∘M; of a sharded weight, read outside the model's forward, sharded too."""
        mask = placed_like(self.mask, weight)
        if self.straight_through:
            masked: Tensor = _StraightThrough.apply(weight, mask)  # type: ignore[no-untyped-call]
            return masked
        return weight * mask

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Assigning module.weight sets the dense weight underneath."""
        return weight

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


def put_on(module: nn.Module, parameter: str, masked: Masked) -> None:
    """Put a mask on a module's parameter, which stays the same object; `masked` may be on several."""
    first = not parametrize.is_parametrized(module)
    if first:
        module._dense_order = tuple(module._parameters)  # type: ignore[assignment]
    # unsafe: that skips a trial run, it gives up no check that could fail here.
    parametrize.register_parametrization(module, parameter, masked, unsafe=True)
    from nmsolve.torch.training import checkpoint

    for part in checkpoint.PARTS:  # torch.distributed.checkpoint looks up what a state dict names
        setattr(type(module), f"{parameter}_{part}", property(partial(checkpoint.saved_part, parameter=parameter, part=part)))
    if first:
        type(module).__reduce_ex__ = _reduce  # type: ignore[assignment]
        if checkpoint.save_masks not in module._state_dict_hooks.values():
            module.register_state_dict_post_hook(checkpoint.save_masks)  # type: ignore[no-untyped-call]
            module.register_load_state_dict_pre_hook(checkpoint.load_masks)  # type: ignore[no-untyped-call]


def take_off(module: nn.Module) -> None:
    """Take all masks off a module: its own class and parameters again, the parameters as they are.

    torch's remove_parametrizations deletes the property from the class, which deep copies share; this leaves the class alone.
    """
    from nmsolve.torch.training import checkpoint

    originals = {name: original(module, name) for name in masked_parameters(module)}
    del module._modules["parametrizations"]
    module.__class__ = type(module).__bases__[0]
    order: Any = module.__dict__.pop("_dense_order")
    parameters: dict[str, Any] = {**originals, **module._parameters}
    # Parameters in the order in which they were: optimizers' state dicts count them.
    module._parameters = {name: parameters[name] for name in (*order, *(set(parameters) - set(order)))}
    for hooks in (module._state_dict_hooks, module._load_state_dict_pre_hooks):
        for key, hook in list(hooks.items()):
            if getattr(hook, "hook", hook) in (checkpoint.save_masks, checkpoint.load_masks):
                del hooks[key]


def _reduce(module: nn.Module, protocol: Any) -> tuple[Any, ...]:
    """How a module with masks is pickled: as its own class, whose masks are put on again when it is read."""
    masks = masked_parameters(module)
    state = dict(module.__dict__)
    state["_modules"] = {name: child for name, child in module._modules.items() if name != "parametrizations"}
    tensors = {name: (original(module, name), masked) for name, masked in masks.items()}
    kind = type(module).__bases__[0]
    return _blank, (kind,), (state, tensors), None, None, _restore


def _blank(kind: type[nn.Module]) -> nn.Module:
    return kind.__new__(kind)


def _restore(module: nn.Module, pickled: tuple[dict[str, Any], dict[str, tuple[nn.Parameter, Masked]]]) -> None:
    state, tensors = pickled
    module.__dict__.update(state)
    parameters = {**module._parameters, **{name: parameter for name, (parameter, _) in tensors.items()}}
    module._parameters = {name: parameters[name] for name in state["_dense_order"]}
    for name, (_, masked) in tensors.items():
        put_on(module, name, masked)
