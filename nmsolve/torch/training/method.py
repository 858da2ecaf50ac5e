"""`Method`: what `sparsify_` and an optimizer's steps ask of a training method.

`Fixed`, `STE` and `SRSTE` are in solved_methods.py, `LBC` in lbc.py. A method is a frozen
description; what changes during training is in the layers, so that checkpoints hold it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from nmsolve.errors import InputError
from nmsolve.renamed import warn_renamed
from nmsolve.torch.options import is_integer
from nmsolve.torch.training.attached_layers import AttachedLayers, Step
from nmsolve.torch.training.masked_layer import MaskedLayer
from nmsolve.torch.weights.given_scores import check_scores
from nmsolve.torch.weights.layer_plan import PlannedWeight

#: Names that methods of subclasses had, and have now.
_FORMER_NAMES = {"before": "before_step", "after": "after_step"}


class Method:
    """A training method: how masks are chosen first, and how steps move them.

    Attributes
    ----------
    straight_through : bool
        Whether gradients reach dropped weights.
    uses_gradients : bool
        Whether `before_step` is needed.
    needs_training : bool
        Whether masks come about only by training, so that a frozen layer would get none.
    forgets : bool
        Whether dropped weights and their momenta are to be zero.
    takes_scores : bool
        Whether masks are those of scores given with the plan; other methods would replace them.

    Notes
    -----
    Subclasses that define `before` and `after`, the former names of `before_step` and `after_step`,
    work for one release, with a DeprecationWarning.
    """

    straight_through: ClassVar[bool]
    uses_gradients: ClassVar[bool] = False
    needs_training: ClassVar[bool] = False
    forgets: ClassVar[bool] = False
    takes_scores: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for old, new in _FORMER_NAMES.items():
            nearest = next(vars(c) for c in cls.__mro__ if old in vars(c) or new in vars(c))
            if new not in nearest:
                warn_renamed(f"{cls.__name__}.{old}", new)
                setattr(cls, new, nearest[old])
            elif new in vars(cls) and old not in vars(cls):
                setattr(cls, old, nearest[new])
        # A dataclass that gives the field another default under its former name.
        if "solver" in cls.__annotations__:
            warn_renamed(f"{cls.__name__}.solver", "mask_method")
            cls.__annotations__["mask_method"] = cls.__annotations__.pop("solver")
            if "solver" in vars(cls):
                cls.mask_method = vars(cls)["solver"]  # type: ignore[attr-defined]
                del cls.solver  # type: ignore[attr-defined]

    def check(self, layers: Sequence[PlannedWeight], weights: Sequence[Tensor]) -> None:
        """Raise InputError if the method cannot serve the planned layers. Nothing has been changed
        yet.
        """

    def check_scores(self, layers: Sequence[PlannedWeight], scores: object) -> None:
        """Raise InputError if masks cannot be chosen by scores that are given beforehand."""
        name = type(self).__name__
        if not self.takes_scores:
            raise InputError(
                f"{name} chooses masks anew while it trains, so that scores given beforehand would "
                f"be lost at its first step: use nmt.Fixed(), {name}(score=…) with a function of "
                "weight and gradient if it has one, or a plan without scores: nmt.plan(model, "
                "plan.patterns)"
            )
        if callable(getattr(self, "score", None)):
            raise InputError(
                f"{name} has a score function already, and scores are given: choose one of them"
            )
        check_scores(layers, scores)

    def initial(self, entry: PlannedWeight, weight: Tensor, scores: Tensor | None = None) -> Tensor:
        """Return a layer's first mask, a bool tensor of the weight's shape and device.

        Scores, of the weight's shape too, are given to methods that take them.
        """
        raise NotImplementedError

    def begin(self, layers: Sequence[MaskedLayer], attachment: AttachedLayers) -> None:
        """Prepare layers when an optimizer that holds them is attached."""

    def before_step(self, step: Step) -> None:
        """Act before the optimizer's update, with gradients as it will use them."""

    def after_step(self, attachment: AttachedLayers) -> None:
        """Act after the update. `progress.step` still counts the steps before this one."""

    before, after = before_step, after_step  # for super().before(…) in those subclasses

    def refresh(self, layers: Sequence[MaskedLayer], trained: Sequence[MaskedLayer]) -> None:
        """Choose masks again, outside of the steps.

        `layers` may be those of a copy of the model; `trained` are the same layers as they are
        trained.
        """
        raise NotImplementedError

    def density(self, layer: MaskedLayer) -> float:
        """Return the share of a layer's mask that is kept, for the count of every step."""
        return layer.masked.density

    def unfinished(self, layers: Sequence[MaskedLayer]) -> str | None:
        """Return why masks do not satisfy their patterns yet, with the remedy; None if they do."""
        return None


def check_count(value: object, name: str, least: int) -> None:
    """Raise InputError unless a number of steps is an integer from `least` on."""
    if not is_integer(value, least):
        raise InputError(
            f"{name} counts optimizer steps: an integer from {least} on, got {value!r}"
        )
