"""A layer pruned: its problem, the solution that does best on held-out inputs, and its new weights
in place.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nmsolve.errors import InputError
from nmsolve.torch.pruning.dense_copies import DenseCopies
from nmsolve.torch.pruning.gathered import Gathered
from nmsolve.torch.pruning.objective import Objective
from nmsolve.torch.pruning.problem import Problem, Solution
from nmsolve.torch.pruning.pruned_layer import PrunedLayer
from nmsolve.torch.pruning.reconstruction import LayerReconstruction

#: A layer's plain mask, from its problem; its new weights, from both and the masked weights.
PlainMask = Callable[[Problem], Tensor]
Prune = Callable[[Problem, Tensor, Tensor], Solution]

#: Errors of inputs that weights are fitted to, and of others.
Objectives = tuple[Objective, Objective | None]


@dataclass(kw_only=True)
class LayerStep:
    """Prunes one layer after the other.

    Attributes
    ----------
    plain_mask, prune : callables
    bias : bool
        Whether biases are fitted along.
    precise : bool
        Whether to compute in float64.
    copies : DenseCopies
        That keep what is changed.
    layers : list of LayerReconstruction
        Those that are done.
    """

    plain_mask: PlainMask
    prune: Prune
    bias: bool
    precise: bool
    copies: DenseCopies
    layers: list[LayerReconstruction] = field(default_factory=list)

    def __call__(self, layer: PrunedLayer, gathered: Gathered, seconds: float) -> None:
        """Put a layer's new weights in place, and a bias that fits them; without samples, leave
        it as it is.
        """
        if not bool(gathered.fitted.count.all()):
            return
        began = time.perf_counter()
        for sums in (gathered.fitted, gathered.held_out):
            if not sums.in_range:
                raise InputError(
                    f"layer {layer.entry.path}: squares of its inputs leave the range of float64; "
                    "scale the calibration inputs down, or leave the layer out (exclude=…)"
                )
        kind = torch.float64 if self.precise else torch.float32
        weight = layer.weight.to(torch.promote_types(layer.own.dtype, kind))
        about = gathered.fitted.means if self.bias and layer.bias is not None else None
        problem = Problem(
            entry=layer.entry,
            layout=layer.layout,
            weight=weight,
            sums=gathered.fitted,
            about=about,
            held_out_sums=gathered.held_out,
            hessians=gathered.hessians,
            samples=gathered.samples,
        )
        mask = self.plain_mask(problem)
        plain = torch.where(mask, weight, 0)
        solution = self.prune(problem, mask, plain)
        new = _no_worse(problem, solution, plain, layer)
        if about is None:
            masking = _Way(plain, "masking", False, *problem.shares(plain))
            ways = [_Way(new, solution.method, False, *problem.shares(new))]
        else:
            # Masking alone leaves the bias as it is; all errors are shares of the same energy.
            alone = problem.objectives(None)
            masking = _Way(plain, "masking", False, *_shares(alone, plain - weight, alone))
            ways = [
                _Way(one, method, True, *_shares(fits, one - weight, alone))
                for one, method in ((new, solution.method), (plain, "masking, bias fitted"))
                for fits in ((problem.objective, problem.held_out),)
            ]
        best = min([*ways, masking], key=lambda way: way.judged)
        self._install(layer, gathered, weight, best)
        self.layers.append(
            LayerReconstruction(
                path=layer.entry.path,
                pattern=layer.entry.pattern,
                shape=layer.entry.shape,
                before=masking.fitted,
                after=best.fitted,
                held_out_before=masking.held_out,
                held_out_after=best.held_out,
                samples=int(gathered.fitted.count.min()),
                columns=weight.shape[-1],
                method=best.method,
                iterations=solution.iterations,
                residual=solution.residual,
                damping=solution.damping,
                seconds=seconds + time.perf_counter() - began,
            )
        )

    def _install(self, layer: PrunedLayer, gathered: Gathered, weight: Tensor, way: _Way) -> None:
        bias = layer.bias if way.with_bias else None
        self.copies.keep([layer.own] if bias is None else [layer.own, bias])
        if bias is not None:
            mean, of_dense = (m.unsqueeze(2) for m in gathered.fitted.means)
            change = weight.double() @ of_dense - way.weight.double() @ mean
            bias += change.flatten().to(bias.dtype)
        layer.own.copy_(layer.layout.weight(way.weight))  # which `weight` may be a view of
        layer.pruned = True


@dataclass(frozen=True, slots=True)
class _Way:
    """Weights that a layer may get, and their errors relative to the outputs' energy."""

    weight: Tensor
    method: str
    with_bias: bool
    fitted: float
    held_out: float | None

    @property
    def judged(self) -> float:
        """The error that decides."""
        error = self.fitted if self.held_out is None else self.held_out
        return float("inf") if error != error else error


def _shares(
    objectives: Objectives, change: Tensor, energies: Objectives
) -> tuple[float, float | None]:
    """Errors of a change on both kinds of inputs, as shares of the energies of others."""
    fitted, held_out = (
        None
        if one is None or energy is None
        else one.share(one.rise(change)) * one.energy / (energy.energy or 1.0)
        for one, energy in zip(objectives, energies, strict=True)
    )
    return fitted or 0.0, held_out


def _no_worse(problem: Problem, solution: Solution, plain: Tensor, layer: PrunedLayer) -> Tensor:
    """New weights as the model's dtype holds them, without rows that are worse than masked ones: by
    rounding, or where an update does not go down.
    """
    new = solution.weight.to(layer.own.dtype).to(solution.weight.dtype)
    before, after = (problem.rises(one)[0] for one in (plain, new))
    worse = ~(after <= before)
    if problem.entry.pattern.transposable and not torch.equal(plain != 0, solution.mask):
        worse = (~(after.sum() <= before.sum())).expand_as(worse)  # rows of two masks make no third
    return torch.where(worse.unsqueeze(-1), plain, new) if bool(worse.any()) else new
