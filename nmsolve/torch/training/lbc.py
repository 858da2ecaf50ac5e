"""`LBC`: learning the best combination of every group, by removing candidates until one is left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from nmsolve.errors import InputError, NMSolveError
from nmsolve.geometry import as_groups, from_groups
from nmsolve.lbc import combinations, removed_by
from nmsolve.torch.options import is_number
from nmsolve.torch.training.attached_layers import AttachedLayers, Step
from nmsolve.torch.training.masked_layer import MaskedLayer, diverged, rate_of
from nmsolve.torch.training.method import Method, check_count
from nmsolve.torch.training.refreshing import exchange, together
from nmsolve.torch.weights.candidates import Candidates, bytes_a_weight
from nmsolve.torch.weights.layer_plan import PlannedWeight
from nmsolve.torch.weights.sharding import is_sharded, least

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
        The rule by which candidates are removed (Table 6): the learned scores; Σ|W|; Σ|W ∂L/∂W̃|
        averaged since the last removal; or the learned scores upside down.
    update_every : int
        Optimizer steps between removals; the paper removes once per epoch. At t_f the last go in
        any case.
    power : float
        Of Eq. 6's schedule: 3 in the paper, 4 in the released code for DeiT.
    momentum : float
        Of the SGD that learns the scores, which have no weight decay. 0 halves the time and the
        memory that learning takes; momentum only lets scores, which accumulate, lag by some
        steps.

    Raises
    ------
    InputError, PatternError
        If no schedule has these numbers; from `sparsify_` for transposable, at-most and padded
        layers, which LBC is not defined for, and for candidates that do not fit in memory, with the
        figure.

    Notes
    -----
    The scores' gradient is computed from the weights' own at each optimizer step: candidates alive
    hold only weights that are not masked, so nothing dense is needed. Scores are learned by SGD at
    the learning rate of the layer's group, whatever the optimizer: only their order within a group
    counts, and it is their meaning (Eq. 12) to be a plain sum of loss changes. What is removed
    stays removed, weight and momentum zeroed, for candidates alive are kept in a mask; in the
    released code momentum revives them. In groups that never had a gradient (frozen layers, inputs
    that are always zero) magnitudes decide. Of equal scores the lexicographically later goes first.

    All of this is linear, so a candidate's score is a sum over its weights, and two numbers per
    weight are learned instead of two for each of the C(m, n) candidates. Memory is 8 + C(m, n) / m
    bytes per weight (float32 score and momentum, alive); scores, gradients and momenta of
    candidates would take 12 C(m, n) / m. "gradient" takes 4 + C(m, n) / m, "magnitude" C(m, n) / m.

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
    _: KW_ONLY
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
        if not is_number(self.momentum) or not 0 <= self.momentum < 1:
            raise InputError(f"momentum must be in [0, 1), got {self.momentum!r}")
        if self.t_i >= self.t_f:
            raise InputError(f"t_i must be less than t_f, got t_i={self.t_i}, t_f={self.t_f}")
        self._removed_by(2, 0)  # checks the power

    def _removed_by(self, candidates: int, step: int) -> int:
        """Return how many of a group's candidates are gone after a step."""
        return removed_by(candidates, step, start=self.t_i, end=self.t_f, power=self.power)

    @property
    def _parts(self) -> tuple[str, ...]:
        """The parts of `Candidates` that the criterion needs."""
        if self.criterion in ("magnitude", "gradient"):
            return ("alive",) if self.criterion == "magnitude" else ("alive", "saliency")
        return ("alive", "scores", "momentum") if self.momentum else ("alive", "scores")

    def check(self, layers: Sequence[PlannedWeight], weights: Sequence[Tensor]) -> None:
        needed: dict[torch.device, float] = {}
        for layer, weight in zip(layers, weights, strict=True):
            pattern, axis = layer.pattern, layer.axis
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
                    layer.pattern: bytes_a_weight(layer.pattern, self._parts) for layer in layers
                }
                worst = max(each, key=lambda pattern: each[pattern])
                raise InputError(
                    f"LBC's candidates would take {count / 2**30:,.1f} GiB on {device}, where "
                    f"{free / 2**30:,.1f} GiB are free: pattern {worst} takes {each[worst]:,.0f} "
                    "bytes a weight; choose a pattern with fewer combinations, such as 2:4, 1:4 or "
                    "2:8, or fewer layers"
                )

    def initial(self, entry: PlannedWeight, weight: Tensor, scores: Tensor | None = None) -> Tensor:
        return torch.ones(weight.shape, dtype=torch.bool, device=weight.device)

    def begin(self, layers: Sequence[MaskedLayer], attachment: AttachedLayers) -> None:
        for layer in layers:
            self._candidates(layer)

    def _candidates(self, layer: MaskedLayer) -> Candidates:
        """Return a layer's candidates: fresh ones at first, and checked once, for a checkpoint may
        have brought others.
        """
        found = layer.masked.candidates
        if found is not None and found.checked:
            return found
        groups = _groups(layer, layer.weight)
        if found is None:
            found = layer.masked.candidates = Candidates.fresh(
                groups, layer.weight, layer.entry.pattern, self._parts
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
        for (layer, group), gradient in zip(step.layers, step.gradients, strict=True):
            candidates, weight = self._candidates(layer), layer.weight
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

    def after_step(self, attachment: AttachedLayers) -> None:
        due: list[tuple[MaskedLayer, Candidates, int]] = []
        for layer in attachment.layers:
            step, candidates = layer.masked.progress.step + 1, self._candidates(layer)
            count = math.comb(layer.entry.pattern.m, layer.entry.pattern.n)
            waits = step < self.t_f and step % self.update_every != 0
            gone = 0 if waits else self._removed_by(count, step)
            if gone > count - candidates.left:
                due.append((layer, candidates, gone))
        layers = [layer for layer, _, _ in due]
        with together(layers):
            worths = [self._worth(layer, candidates) for layer, candidates, _ in due]
        for (layer, candidates, gone), worth in zip(due, worths, strict=True):
            candidates.remove(worth, layer.entry.pattern, gone)
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
                parts.append(from_groups(candidates.kept(layer.entry.pattern), layer.entry.axis))
        exchange(layers, parts)

    def _worth(self, layer: MaskedLayer, candidates: Candidates) -> Tensor:
        """Return what candidates are removed by, weight by weight, (…, m); raise InputError if any
        is not finite.
        """
        magnitude = layer.weight.abs()
        if self.criterion == "magnitude":
            worth = magnitude
        else:
            worth = candidates.state()["saliency" if self.criterion == "gradient" else "scores"]
        if not bool(torch.isfinite(worth).all() & torch.isfinite(magnitude).all()):
            raise diverged(
                layer,
                "its weights or gradients were not finite, so its candidates cannot be compared",
            )
        groups = _groups(layer, -worth if self.criterion == "inverse" else worth)
        # Nothing is known of a frozen layer, or where inputs are always zero.
        known = groups.any(-1, keepdim=True)
        return torch.where(known, groups, _groups(layer, magnitude).to(groups.dtype))

    def unfinished(self, layers: Sequence[MaskedLayer]) -> str | None:
        for layer in layers:
            candidates = layer.masked.candidates
            if candidates is None or candidates.left > 1:
                left = (
                    math.comb(layer.entry.pattern.m, layer.entry.pattern.n)
                    if candidates is None
                    else candidates.left
                )
                return (
                    f"LBC is not done: layer {layer.path} has {left} candidates a group alive "
                    f"after {layer.masked.progress.step} steps; train to step t_f={self.t_f}, or "
                    "choose a smaller t_f"
                )
        return None


def _groups(layer: MaskedLayer, tensor: Tensor) -> Tensor:
    return as_groups(tensor, layer.entry.axis, layer.entry.pattern.m)


def free_bytes(device: torch.device) -> int | None:
    """Return the bytes that a device has left; None where that cannot be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    memory = Path("/proc/meminfo")
    if device.type != "cpu" or not memory.exists():
        return None
    lines: dict[str, Any] = dict(
        line.split(":", 1) for line in memory.read_text().splitlines() if ":" in line
    )
    return int(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else None
