"""Layer by layer through a model, all or nothing: collect a layer's moments, prune it, go on with
the pruned one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nmsolve.errors import SolverError
from nmsolve.torch.calibration.inputs import Calibration, Item
from nmsolve.torch.progress import progress_bar
from nmsolve.torch.pruning.batch_norm import (
    Statistics,
    estimate_again,
    norms_of,
    put,
    statistics_of,
)
from nmsolve.torch.pruning.collect import Collected, collect_moments
from nmsolve.torch.pruning.problem import Problem, Solution
from nmsolve.torch.pruning.pruned_layer import PrunedLayer, layers_of
from nmsolve.torch.pruning.reconstruction import LayerReconstruction, Reconstruction
from nmsolve.torch.pruning.stages import explore, stages_of
from nmsolve.torch.running import undisturbed
from nmsolve.torch.verification import verify
from nmsolve.torch.weights.layer_plan import Plan

#: A layer's plain mask, from its problem; its new weights, from both.
PlainMask = Callable[[Problem], Tensor]
Prune = Callable[[Problem, Tensor], Solution]


def prune_layers(
    model: nn.Module,
    plan: Plan,
    calibration: Iterable[Item],
    plain_mask: PlainMask,
    prune: Prune,
    *,
    sequential: bool,
    keep_samples: bool = False,
    progress: bool | None,
) -> Reconstruction:
    """Replace the planned weights of a model by pruned ones, in place.

    Whatever happens, the model is either pruned and satisfies the plan, or is as it was.

    Parameters
    ----------
    model, plan, calibration, progress
        As for `adaprune_`.
    plain_mask : function of a Problem
        Its mask before weights are adjusted.
    prune : function of a Problem and that mask
        Its Solution.
    sequential : bool
        Inputs of a layer are outputs of the pruned layers before it, and its wanted outputs those
        of the dense layer for dense inputs.
    keep_samples : bool
        Keep the samples of the layer at work, for updates that draw from them.
    """
    items = Calibration(calibration)
    layers = layers_of(model, plan)
    found = []
    with torch.no_grad(), _all_or_nothing(layers, statistics_of(norms_of(model))):
        with undisturbed(model, training=False):
            order, norms = explore(model, layers, items, progress)
            with progress_bar(
                about="pruning", total=len(order), unit="layer", progress=progress
            ) as bar:
                for stage in stages_of(order, sequential):
                    bar.set_postfix_str(stage[0].entry.path)
                    began = time.perf_counter()
                    collected = collect_moments(
                        model, stage, order, items, sequential, keep_samples
                    )
                    share = (time.perf_counter() - began) / len(stage)
                    for layer in stage:
                        found.append(
                            _prune(
                                layer, collected.pop(layer.entry.owner), plain_mask, prune, share
                            )
                        )
                        bar.update()
            statistics = estimate_again(model, norms, items, progress)
        report = verify(model, plan)
        if not report:
            raise SolverError(f"pruned weights do not satisfy the plan\n{report}")
        put(statistics)
    return Reconstruction(tuple(found), len(statistics))


@contextmanager
def _all_or_nothing(layers: Sequence[PrunedLayer], statistics: Statistics) -> Iterator[None]:
    """Errors inside leave weights and batch norms as they were."""
    try:
        yield
    except BaseException:
        for layer in layers:
            layer.parameter.data = layer.own
            layer.own.copy_(layer.dense)
        put(statistics)
        raise


def _prune(
    layer: PrunedLayer, collected: Collected, plain_mask: PlainMask, prune: Prune, seconds: float
) -> LayerReconstruction:
    """Put a layer's new weights in place."""
    began = time.perf_counter()
    moments = collected.moments
    problem = Problem(
        entry=layer.entry,
        layout=layer.layout,
        weight=layer.weight,
        moments=moments,
        samples=collected.samples,
        precise=layer.dense.dtype == torch.float64,
    )
    mask = plain_mask(problem)
    plain = torch.where(mask, problem.weight, 0)
    solution = prune(problem, mask)
    new = solution.weight.to(layer.dense.dtype).double()
    before, after = moments.error(plain), moments.error(new)
    # By rounding to the weight's dtype, or where an update does not go down, rows may be worse.
    worse = ~(after <= before)
    if layer.entry.pattern.transposable and not torch.equal(mask, solution.mask):
        worse = (~(after.sum() <= before.sum())).expand_as(worse)  # rows of two masks make no third
    new = torch.where(worse.unsqueeze(-1), plain, new)
    layer.own.copy_(layer.layout.weight(new))
    layer.pruned = True
    energy = float(moments.energy.sum()) or 1.0
    return LayerReconstruction(
        path=layer.entry.path,
        pattern=layer.entry.pattern,
        shape=layer.entry.shape,
        before=float(before.sum()) / energy,
        after=float(moments.error(new).sum()) / energy,
        iterations=solution.iterations,
        residual=solution.residual,
        damping=solution.damping,
        seconds=seconds + time.perf_counter() - began,
    )
