"""`LBC`: learning the best combination of every group, by removing candidates until one is left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from nmsolve.errors import InputError, NMSolveError
from nmsolve.lbc import combinations, removed_by
from nmsolve.pattern import Pattern
from nmsolve.torch.training.masked_layer import MaskedLayer, diverged, exchange, rate_of, together
from nmsolve.torch.training.method import Method, check_count
from nmsolve.torch.weights.candidates import Candidates, bytes_a_weight
from nmsolve.torch.weights.layer_kinds import from_groups, groups_of
from nmsolve.torch.weights.planning import LayerPlan
from nmsolve.torch.weights.sharding import is_sharded, least

if TYPE_CHECKING:
    from nmsolve.torch.training.stepping import Attachment, Step

Criterion = Literal["learned", "magnitude", "gradient", "inverse"]


@dataclass(frozen=True)
class LBC(Method):
    r"""Learning Best Combinations: every group starts with all its C(m, n) candidates and loses the
    lowest-scored until one is left.

    .. math:: \tilde W = B \circ W, \quad B_i = [\, i \text{ is in a candidate alive} \,], \quad
              S_j \leftarrow S_j - \gamma \sum_{i \in \Theta_j} W_i \, \partial L / \partial \tilde
              W_i

    Parameters
    ----------
    t_i, t_f : int
        Optimizer steps between which candidates are removed, by Eq. 6; from t_f on masks are n:m.
        The paper takes 0 and half of training.
    criterion : {"learned", "magnitude", "gradient", "inverse"}
        What candidates are removed by (Table 6): the learned scores; Σ|W|; Σ|W ∂L/∂W̃| averaged
        since the last removal; or the learned scores upside down.
    update_every : int
        Optimizer steps between removals; the paper removes once an epoch. At t_f the last go in any
        case.
    power : float
        Of Eq. 6's schedule: 3 in the paper, 4 in the released code for DeiT.
    momentum : float
        Of the SGD that learns the scores, which have no weight decay. 0 halves the time that
        learning takes and its memory; all that momentum does to scores, which only accumulate, is
        to let them lag by some steps.

    Raises
    ------
    InputError, PatternError
        For a schedule that is none; from `sparsify_` for transposable, at-most and padded layers,
        which LBC is not defined for, and for candidates that do not fit in memory, with the figure.

    Notes
    -----
    The scores' gradient is computed from the weights' own at each optimizer step: candidates alive
    hold only weights that are not masked, so nothing dense is needed. Scores are learned by SGD at
    the learning rate of the layer's group, whatever the optimizer: only their order within a group
    counts, and it is their meaning (Eq. 12) to be a plain sum of loss changes. What is removed
    stays removed, weight and momentum zeroed, for candidates alive are kept in a mask; in the
    released code momentum revives them. In groups that never had a gradient (frozen layers, inputs
    that are always zero) magnitudes decide. Of equal scores the lexicographically later goes first.

    All of this is linear, so a candidate's score is a sum over its weights, and two numbers a
    weight are learned instead of two for each of the C(m, n) candidates. Memory is 8 + C(m, n) / m
    bytes a weight (float32 score and momentum, alive); scores, gradients and momenta of candidates
    would take 12 C(m, n) / m. "gradient" takes 4 + C(m, n) / m, "magnitude" C(m, n) / m.

    References
    ----------
    Zhang et al., Learning best combination for efficient N:M sparsity, NeurIPS 2022: Eq. 5-12, Alg.
    1, Table 6.

    Examples
    --------
    >>> LBC(t_i=0, t_f=500).criterion
    'learned'
    """

    t_i: int
    t_f: int
    criterion: Criterion = "learned"
    update_every: int = 1
    power: float = 3.0
    momentum: float = 0.9

    straight_through: ClassVar[bool] = False
    uses_gradients: ClassVar[bool] = True
    needs_training: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count(self.t_i, "t_i", 0)
        check_count(self.t_f, "t_f", 1)
        check_count(self.update_every, "update_every", 1)
        if self.criterion not in get_args(Criterion):
            raise InputError(
                f"criterion must be one of {', '.join(map(repr, get_args(Criterion)))}, got "
                f"{self.criterion!r}"
            )
        if not isinstance(self.momentum, int | float) or not 0 <= self.momentum < 1:
            raise InputError(f"momentum must be in [0, 1), got {self.momentum!r}")
        if self.t_i >= self.t_f:
            raise InputError(f"t_i must be less than t_f, got t_i={self.t_i}, t_f={self.t_f}")
        removed_by(2, 0, self.t_i, self.t_f, self.power)

    @property
    def _parts(self) -> tuple[str, ...]:
        """What of `Candidates` the criterion needs."""
        if self.criterion in ("magnitude", "gradient"):
            return ("alive",) if self.criterion == "magnitude" else ("alive", "saliency")
        return ("alive", "scores", "momentum") if self.momentum else ("alive", "scores")

    def check(self, layers: Sequence[LayerPlan], weights: Sequence[Tensor]) -> None:
        needed: dict[torch.device, float] = {}
        for layer, weight in zip(layers, weights, strict=True):
            pattern, axis = layer.pattern, layer.axis
            assert pattern is not None
            assert axis is not None
            try:
                combinations(pattern)
            except NMSolveError as error:
                raise type(error)(f"layer {layer.path}: {error}") from None
            if layer.shape[axis] % pattern.m:
                raise InputError(
                    f"layer {layer.path} of shape {layer.shape}: LBC has no candidates for groups "
                    f"that padding={layer.padding!r} completes; plan with padding='skip'"
                )
            needed[weight.device] = needed.get(weight.device, 0) + weight.numel() * bytes_a_weight(
                pattern, self._parts
            )
        for device, count in needed.items():
            free = free_bytes(device)
            if free is not None and count > free:
                each = {
                    layer.pattern: bytes_a_weight(layer.pattern, self._parts)
                    for layer in layers
                    if layer.pattern
                }
                worst = max(each, key=lambda pattern: each[pattern])
                raise InputError(
                    f"LBC's candidates would take {count / 2**30:,.1f} GiB on {device}, where "
                    f"{free / 2**30:,.1f} GiB are free: pattern {worst} takes {each[worst]:,.0f} "
                    "bytes a weight; choose a pattern with fewer combinations, such as 2:4, 1:4 or "
                    "2:8, or fewer layers"
                )

    def initial(self, entry: LayerPlan, weight: Tensor, scores: Tensor | None = None) -> Tensor:
        return torch.ones(weight.shape, dtype=torch.bool, device=weight.device)

    def begin(self, layers: Sequence[MaskedLayer], attachment: Attachment) -> None:
        for layer in layers:
            self._candidates(layer)

    def _candidates(self, layer: MaskedLayer) -> Candidates:
        """A layer's candidates: fresh ones at first, and checked once, for a checkpoint may have
        brought others.
        """
        found = layer.masked.candidates
        if found is not None and found.checked:
            return found
        groups = _groups(layer, layer.weight)
        if found is None:
            found = layer.masked.candidates = Candidates.fresh(
                groups, layer.weight, _pattern(layer), self._parts
            )
        elif found.alive.shape[:-1] != groups.shape[:-1] or tuple(found.state()) != self._parts:
            raise InputError(
                f"layer {layer.path}: the checkpoint's candidates, {tuple(found.alive.shape)} with "
                f"{', '.join(found.state())}, are not those of criterion {self.criterion!r}, "
                f"momentum {self.momentum}; resume with those it was saved with"
            )
        found.checked = True
        if is_sharded(layer.parameter):  # a rank that holds no row cannot tell
            found.left = least(found.left, layer.parameter)
        return found

    def before_step(self, step: Step) -> None:
        if not step.first:
            return
        for layer, group in step.layers:
            candidates, weight, gradient = self._candidates(layer), layer.weight, layer.gradient
            assert gradient is not None
            candidates.to(weight.device)
            if self.criterion == "magnitude" or candidates.left == 1:
                continue
            if step.scale != 1.0:
                gradient = gradient / step.scale
            if self.criterion == "gradient":
                candidates.gather(weight, gradient)
            else:
                candidates.learn(
                    weight,
                    -gradient if group.get("maximize") else gradient,
                    rate_of(layer, group),
                    self.momentum,
                )

    def after_step(self, attachment: Attachment) -> None:
        due: list[tuple[MaskedLayer, Candidates, int]] = []
        for layer in attachment.layers:
            step, candidates = layer.masked.progress.step + 1, self._candidates(layer)
            count = math.comb(_pattern(layer).m, _pattern(layer).n)
            waits = step < self.t_f and step % self.update_every != 0
            gone = 0 if waits else removed_by(count, step, self.t_i, self.t_f, self.power)
            if gone > count - candidates.left:
                due.append((layer, candidates, gone))
        layers = [layer for layer, _, _ in due]
        with together(layers):
            worths = [self._worth(layer) for layer in layers]
        for (layer, candidates, gone), worth in zip(due, worths, strict=True):
            candidates.remove(worth, _pattern(layer), gone)
            if candidates.saliency is not None:
                candidates.saliency.zero_()
        self.refresh(layers, layers)
        for layer in layers:
            attachment.forget(layer)

    def refresh(self, layers: Sequence[MaskedLayer], trained: Sequence[MaskedLayer]) -> None:
        parts = []
        for layer in trained:
            candidates = layer.masked.candidates
            if candidates is None:
                parts.append(layer.masked.mask)
            else:
                parts.append(from_groups(candidates.kept(_pattern(layer)), _axis(layer)))
        exchange(layers, parts)

    def _worth(self, layer: MaskedLayer) -> Tensor:
        """What candidates are removed by, weight by weight, (…, m); InputError if any is not
        finite.
        """
        candidates = layer.masked.candidates
        assert candidates is not None
        magnitude = layer.weight.abs()
        learned = candidates.saliency if self.criterion == "gradient" else candidates.scores
        worth = magnitude if self.criterion == "magnitude" else learned
        assert worth is not None
        if not bool(torch.isfinite(worth).all() & torch.isfinite(magnitude).all()):
            raise diverged(
                layer,
                "its weights or gradients were not finite, so its candidates cannot be compared",
            )
        groups = _groups(layer, -worth if self.criterion == "inverse" else worth)
        known = groups.any(
            -1, keepdim=True
        )  # nothing is of a frozen layer, or where inputs are always zero
        return torch.where(known, groups, _groups(layer, magnitude).to(groups.dtype))

    def unfinished(self, layers: Sequence[MaskedLayer]) -> str | None:
        for layer in layers:
            candidates = layer.masked.candidates
            if candidates is None or candidates.left > 1:
                left = (
                    math.comb(_pattern(layer).m, _pattern(layer).n)
                    if candidates is None
                    else candidates.left
                )
                return (
                    f"LBC is not done: layer {layer.path} has {left} candidates a group alive "
                    f"after {layer.masked.progress.step} steps; train to step t_f={self.t_f}, or "
                    "choose a smaller t_f"
                )
        return None


def _pattern(layer: MaskedLayer) -> Pattern:
    assert layer.entry.pattern is not None
    return layer.entry.pattern


def _axis(layer: MaskedLayer) -> int:
    assert layer.entry.axis is not None
    return layer.entry.axis


def _groups(layer: MaskedLayer, tensor: Tensor) -> Tensor:
    return groups_of(tensor, _axis(layer), _pattern(layer).m)


def free_bytes(device: torch.device) -> int | None:
    """Memory that a device has left; None where that cannot be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    memory = Path("/proc/meminfo")
    if device.type != "cpu" or not memory.exists():
        return None
    lines: dict[str, Any] = dict(
        line.split(":", 1) for line in memory.read_text().splitlines() if ":" in line
    )
    return int(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else None
