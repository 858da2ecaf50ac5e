"""Methods whose masks are solved from the weights: `Fixed`, `STE`, `SRSTE`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nmsolve import api
from nmsolve.errors import InputError
from nmsolve.renamed import renamed
from nmsolve.torch.options import is_number
from nmsolve.torch.training.attached_layers import AttachedLayers, Step
from nmsolve.torch.training.masked_layer import MaskedLayer, rate_of
from nmsolve.torch.training.method import Method, check_count
from nmsolve.torch.training.refreshing import Score, refresh, scores_of
from nmsolve.torch.weights.layer_plan import PlannedWeight
from nmsolve.torch.weights.planned import solve_mask


@dataclass(frozen=True, kw_only=True)
class _Solved(Method):
    """Methods whose masks are solved from the weights."""

    mask_method: str = "exact"
    score: str | Score = "magnitude"

    def check(self, layers: Sequence[PlannedWeight], weights: Sequence[Tensor]) -> None:
        if self.score != "magnitude" and not callable(self.score):
            raise InputError(
                f"score must be 'magnitude' or a function of (weight, gradient), got {self.score!r}"
            )
        for pattern in {layer.pattern for layer in layers}:
            api.check_method(self.mask_method, pattern)

    def initial(self, entry: PlannedWeight, weight: Tensor, scores: Tensor | None = None) -> Tensor:
        given = scores_of(entry, weight, None, self.score) if scores is None else scores
        return solve_mask(entry, weight, given, self.mask_method)

    def density(self, layer: MaskedLayer) -> float:
        # Counting every new mask would take a tenth as long as solving it.
        pattern = layer.masked.pattern
        known = layer.masked.padding == "error" and not pattern.at_most
        return pattern.density if known else layer.masked.density

    def refresh(self, layers: Sequence[MaskedLayer], trained: Sequence[MaskedLayer]) -> None:
        refresh(layers, self.mask_method, self.score)


@renamed(old="solver", new="mask_method")
@dataclass(frozen=True, kw_only=True)
class Fixed(_Solved):
    r"""A mask that is solved once, from the weights as they are; then what is kept is trained.
    NVIDIA's ASP.

    .. math:: \tilde W = M \circ W, \quad \nabla_W = M \circ \nabla_{\tilde W}

    Parameters
    ----------
    mask_method : str
        The method of `nmsolve.torch.solve`.
    score : "magnitude" or function
        The rule for what the mask maximises: |W|, or a function of (weight, gradient) that returns
        a tensor of the weight's shape. The gradient is None before the first step, and as the
        optimizer used it after: with SR-STE's decay under SGD.

    Notes
    -----
    Dropped weights become zero at the first step of an optimizer that is attached, and so do the
    momenta that it has for them; after every step they are zeroed again, so that no optimizer
    revives them.

    Examples
    --------
    >>> Fixed()
    Fixed(mask_method='exact', score='magnitude')
    """

    straight_through: ClassVar[bool] = False
    forgets: ClassVar[bool] = True
    takes_scores: ClassVar[bool] = True

    def after_step(self, attachment: AttachedLayers) -> None:
        weights = [layer.weight for layer in attachment.layers]
        if weights:  # else all of them are frozen
            torch._foreach_mul_(
                weights, [attachment.factor(layer, kept=True) for layer in attachment.layers]
            )


@renamed(old="solver", new="mask_method")
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
    mask_method, score
        As for `Fixed`; "greedy" and "cover" are the transposable paper's approximations.

    Examples
    --------
    >>> STE(update_every=40).mask_method
    'exact'
    """

    update_every: int = 1
    freeze_after: int | None = None
    straight_through: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count(self.update_every, "update_every", 1)
        if self.freeze_after is not None:
            check_count(self.freeze_after, "freeze_after", 0)

    def after_step(self, attachment: AttachedLayers) -> None:
        due = [layer for layer in attachment.layers if self._due(layer.masked.progress.step + 1)]
        refresh(due, self.mask_method, self.score)

    def _due(self, step: int) -> bool:
        return step % self.update_every == 0 and (
            self.freeze_after is None or step <= self.freeze_after
        )


@renamed(old="solver", new="mask_method")
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
    update_every, freeze_after, mask_method, score
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
    _: KW_ONLY
    decoupled: bool | None = None

    uses_gradients: ClassVar[bool] = True

    def __post_init__(self) -> None:
        STE.__post_init__(self)
        if not is_number(self.decay) or self.decay < 0:
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
            signs = [-1.0 if group.get("maximize") else 1.0 for _, group in step.layers]
            torch._foreach_addcmul_(
                step.gradients, weights, dropped, [sign * self.decay * step.scale for sign in signs]
            )
