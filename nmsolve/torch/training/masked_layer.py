"""`MaskedLayer`: a planned weight while it is trained, and where it is now."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from nmsolve.errors import InputError
from nmsolve.torch.weights.layer_plan import PlannedWeight
from nmsolve.torch.weights.masked import Masked, masked_parameters, original
from nmsolve.torch.weights.sharding import local


@dataclass(slots=True, eq=False)
class MaskedLayer:
    """A planned weight in a model, with its mask.

    Attributes
    ----------
    entry : PlannedWeight
        Its plan.
    module : nn.Module
        The module that it is a parameter of.
    masked : Masked
        The mask, with counters and LBC's candidates.
    tied : list of (PlannedWeight, nn.Module)
        Further modules that hold the same parameter, each after its plan.
    """

    entry: PlannedWeight
    module: nn.Module
    masked: Masked
    tied: list[tuple[PlannedWeight, nn.Module]] = field(default_factory=list)

    @property
    def path(self) -> str:
        """The weight's path in the model."""
        return self.entry.path

    @property
    def has_mask(self) -> bool:
        """True while the mask is on it."""
        return masked_parameters(self.module).get(self.entry.parameter) is self.masked

    @property
    def parameter(self) -> Tensor:
        """The dense parameter as it is now: FSDP replaces it."""
        return original(self.module, self.entry.parameter)

    @property
    def weight(self) -> Tensor:
        """The dense weight on this rank, outside autograd."""
        return local(self.parameter.detach())

    @property
    def gradient(self) -> Tensor | None:
        """Its gradient on this rank."""
        gradient = self.parameter.grad
        return None if gradient is None else local(gradient)


def rate_of(layer: MaskedLayer, group: dict[str, Any]) -> float:
    """Return the learning rate of an optimizer's group."""
    if group.get("lr") is None:
        raise InputError(
            f"layer {layer.path}: its optimizer has no learning rate (lr=None), which this method "
            "goes by: give it one (Adafactor: lr=1e-3, relative_step=False)"
        )
    return float(group["lr"])


def diverged(layer: MaskedLayer, what: str) -> InputError:
    """Return the error for a layer with numbers that are not finite: during training another remedy
    helps than the solver's.
    """
    return InputError(
        f"layer {layer.path}: {what}. Masks and counters are as before this step, but the "
        "optimizer has changed the weights: resume from the last checkpoint, with a lower learning "
        "rate or with gradients clipped"
    )
