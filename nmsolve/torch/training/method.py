"""How masks are chosen and moved while a model trains: `Fixed`, `STE`, `SRSTE`. `LBC` has a file of
its own.

A method is a frozen description; what changes during training is in the layers, so that checkpoints
hold it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from nmsolve import api
from nmsolve.errors import InputError
from nmsolve.torch.training.masked_layer import (
    MaskedLayer,
    Score,
    rate_of,
    refresh,
    scores_of,
    solve_mask,
)
from nmsolve.torch.weights.given_scores import check_scores
from nmsolve.torch.weights.planning import LayerPlan

if TYPE_CHECKING:
    from nmsolve.torch.training.stepping import Attachment, Step


class Method:
    """What `sparsify_` and an optimizer's steps ask of a training method.

    straight_through : whether gradients reach dropped weights. uses_gradients : whether `before` is
    needed. needs_training : whether masks come about only by training, so that a frozen layer would
    get none. forgets : whether dropped weights and their momenta are to be zero. takes_scores :
    whether masks are those of scores given with the plan; other methods would replace them.
    """

    straight_through: ClassVar[bool]
    uses_gradients: ClassVar[bool] = False
    needs_training: ClassVar[bool] = False
    forgets: ClassVar[bool] = False
    takes_scores: ClassVar[bool] = False

    def check(self, layers: Sequence[LayerPlan], weights: Sequence[Tensor]) -> None:
        """InputError if the method cannot serve the planned layers; nothing has been changed
        yet.
        """

    def check_scores(self, layers: Sequence[LayerPlan], scores: object) -> None:
        """InputError if masks cannot be chosen by scores that are given beforehand."""
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

    def initial(self, entry: LayerPlan, weight: Tensor, scores: Tensor | None = None) -> Tensor:
        """A layer's first mask; scores are given to methods that take them."""
        raise NotImplementedError

    def begin(self, layers: Sequence[MaskedLayer], attachment: Attachment) -> None:
        """When an optimizer that holds these layers is attached."""

    def before_step(self, step: Step) -> None:
        """Before the optimizer's update, with gradients as it will use them."""

    def after_step(self, attachment: Attachment) -> None:
        """After the update. `progress.step` still counts the steps before this one."""

    def refresh(self, layers: Sequence[MaskedLayer], trained: Sequence[MaskedLayer]) -> None:
        """Choose masks anew, outside of the steps; of a copy of the model, whose layers as they are
        trained are `trained`.
        """
        raise NotImplementedError

    def density(self, layer: MaskedLayer) -> float:
        """The share of a layer's mask that is kept, for the count of every step."""
        return layer.masked.density

    def unfinished(self, layers: Sequence[MaskedLayer]) -> str | None:
        """Why masks do not satisfy their patterns yet, with the remedy."""
        return None


@dataclass(frozen=True, kw_only=True)
class _Solved(Method):
    """Methods whose masks are solved from the weights."""

    solver: str = "exact"
    score: str | Score = "magnitude"

    def check(self, layers: Sequence[LayerPlan], weights: Sequence[Tensor]) -> None:
        if self.score != "magnitude" and not callable(self.score):
            raise InputError(
                f"score must be 'magnitude' or a function of (weight, gradient), got {self.score!r}"
            )
        for pattern in {layer.pattern for layer in layers}:
            assert pattern is not None
            api.check_method(self.solver, pattern)

    def initial(self, entry: LayerPlan, weight: Tensor, scores: Tensor | None = None) -> Tensor:
        given = scores_of(entry, weight, None, self.score) if scores is None else scores
        return solve_mask(entry, weight, given, self.solver)

    def density(self, layer: MaskedLayer) -> float:
        pattern = (
            layer.masked.pattern
        )  # counting every new mask would take a tenth as long as solving it
        known = layer.masked.padding == "error" and not pattern.at_most
        return pattern.density if known else layer.masked.density

    def refresh(self, layers: Sequence[MaskedLayer], trained: Sequence[MaskedLayer]) -> None:
        refresh(layers, self.solver, self.score)


@dataclass(frozen=True, kw_only=True)
class Fixed(_Solved):
    r"""The mask is solved once, from the weights as they are; then what is kept is trained.
    NVIDIA's ASP.

    .. math:: \tilde W = M \circ W, \quad \nabla_W = M \circ \nabla_{\tilde W}

    Parameters
    ----------
    solver : str
        Method of `nmsolve.torch.solve`.
    score : "magnitude" or function
        What the mask maximises: |W|, or a function of (weight, gradient), which returns a tensor of
        the weight's shape. The gradient is None before the first step, and as the optimizer used it
        after: with SR-STE's decay under SGD.

    Notes
    -----
    Dropped weights become zero at the first step of an optimizer that is attached, and so do the
    momenta that it has for them; after every step they are zeroed again, so that no optimizer
    revives them.

    Examples
    --------
    >>> Fixed()
    Fixed(solver='exact', score='magnitude')
    """

    straight_through: ClassVar[bool] = False
    forgets: ClassVar[bool] = True
    takes_scores: ClassVar[bool] = True

    def after_step(self, attachment: Attachment) -> None:
        weights = [layer.weight for layer in attachment.layers]
        if weights:  # else all of them are frozen
            torch._foreach_mul_(
                weights, [attachment.factor(layer, kept=True) for layer in attachment.layers]
            )


@dataclass(frozen=True, kw_only=True)
class STE(_Solved):
    r"""Straight-through estimator: masks follow the dense weights, which all get the gradient of
    the masked ones.

    .. math:: \tilde W = E \circ W, \quad \nabla_W = \nabla_{\tilde W},
        \quad E = \text{best mask of } W

    Parameters
    ----------
    update_every : int
        Optimizer steps between masks. 1 in the SR-STE paper; 40 for transposable masks in theirs,
        because solving exactly took too long there.
    freeze_after : int, optional
        The step after which masks stay as they are.
    solver, score
        As for `Fixed`; "greedy" and "cover" are the transposable paper's approximations.

    Examples
    --------
    >>> STE(update_every=40).solver
    'exact'
    """

    update_every: int = 1
    freeze_after: int | None = None
    straight_through: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count(self.update_every, "update_every", 1)
        if self.freeze_after is not None:
            check_count(self.freeze_after, "freeze_after", 0)

    def after_step(self, attachment: Attachment) -> None:
        due = [layer for layer in attachment.layers if self._due(layer.masked.progress.step + 1)]
        refresh(due, self.solver, self.score)

    def _due(self, step: int) -> bool:
        return step % self.update_every == 0 and (
            self.freeze_after is None or step <= self.freeze_after
        )


@dataclass(frozen=True)
class SRSTE(STE):
    r"""Sparse-refined straight-through estimator: STE, with a decay on what is dropped.

    .. math:: W_{t+1} = W_t - \gamma_t
        \left( \nabla_{\tilde W_t} + \lambda (1 - E_t) \circ W_t \right)

    Parameters
    ----------
    decay : float
        λ, 2e-4 in the paper. The transposable paper's five-fold weight decay on dropped weights is
        four times the optimizer's.
    decoupled : bool, optional
        False adds the decay to the gradient, True takes γ λ (1 − E) ∘ W from the weights directly,
        as AdamW decays. None: False for torch.optim.SGD, True for every other optimizer, which
        would rescale what is added to gradients. A decoupled λ is of the size of AdamW's weight
        decay, 0.01 and more; 2e-4 does little there.
    update_every, freeze_after, solver, score
        As for `STE`.

    Notes
    -----
    The decay is applied in the optimizer's step, to unscaled, accumulated, reduced and clipped
    gradients. The released code does it in backward, where loss scaling by 1024 leaves 2e-7 of
    2e-4.

    References
    ----------
    Zhou et al., Learning N:M fine-grained structured sparse neural networks from scratch, ICLR
    2021. Adam: Lu et al., STEP, arXiv:2302.01172.

    Examples
    --------
    >>> SRSTE(decay=2e-4).update_every
    1
    """

    decay: float = 2e-4
    decoupled: bool | None = None

    uses_gradients: ClassVar[bool] = True

    def __post_init__(self) -> None:
        STE.__post_init__(self)
        if (
            not isinstance(self.decay, int | float)
            or isinstance(self.decay, bool)
            or not 0 <= self.decay < float("inf")
        ):
            raise InputError(
                f"decay must be a number that is not negative, such as 2e-4, got {self.decay!r}"
            )
        if self.decoupled not in (None, True, False):
            raise InputError(f"decoupled must be True, False or None, got {self.decoupled!r}")

    def before_step(self, step: Step) -> None:
        if not step.layers or not self.decay:
            return
        attachment = step.attachment
        decoupled = self.decoupled
        if decoupled is None:
            decoupled = not isinstance(attachment.optimizer, torch.optim.SGD)
        weights = [layer.weight for layer, _ in step.layers]
        dropped = [attachment.factor(layer, kept=False) for layer, _ in step.layers]
        if decoupled:
            if not step.first:
                return
            rates = [-rate_of(layer, group) * self.decay for layer, group in step.layers]
            torch._foreach_addcmul_(weights, weights, dropped, rates)
        else:
            gradients = [
                gradient for layer, _ in step.layers if (gradient := layer.gradient) is not None
            ]
            signs = [-1.0 if group.get("maximize") else 1.0 for _, group in step.layers]
            torch._foreach_addcmul_(
                gradients, weights, dropped, [sign * self.decay * step.scale for sign in signs]
            )


def check_count(value: object, name: str, least: int) -> None:
    """InputError unless a number of steps is an integer from `least` on."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(
            f"{name} counts optimizer steps: an integer from {least} on, got {value!r}"
        )
