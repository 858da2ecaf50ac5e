"""Layer by layer through a model: gather what a layer is given and should give, prune it, go on
with the pruned one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from tqdm import tqdm

from nmsolve.errors import InputError, SolverError
from nmsolve.selection import Patterns
from nmsolve.torch.calibration.inputs import Calibration, Item
from nmsolve.torch.pruning.batch_norm import Statistics, estimate_anew, norms_of, put, statistics_of
from nmsolve.torch.pruning.collect import (
    Gathered,
    PrunedLayer,
    explore,
    gather,
    layers_of,
    stages_of,
)
from nmsolve.torch.pruning.problem import Problem, Solution
from nmsolve.torch.pruning.reconstruction import LayerReconstruction, Reconstruction
from nmsolve.torch.running import undisturbed
from nmsolve.torch.verification import verify
from nmsolve.torch.weights.planning import Plan
from nmsolve.torch.weights.planning import plan as make_plan

#: From a layer's problem its plain mask; from both, its new weights.
PlainMask = Callable[[Problem], Tensor]
Prune = Callable[[Problem, Tensor], Solution]


def prune_layers(
    model: nn.Module,
    plan: Plan | Patterns,
    calibration: Iterable[Item],
    plain_mask: PlainMask,
    prune: Prune,
    *,
    sequential: bool,
    keep_samples: bool = False,
    progress: bool | None,
) -> Reconstruction:
    """Replace the planned weights of a model by pruned ones, in place.

    Whatever happens, the model is either pruned and satisfies the plan, or is as it was. sequential
    : layers are given what the pruned layers before them give, and should give what the dense ones
    did for dense inputs. keep_samples : for solvers that draw.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be an nn.Module, got {type(model).__name__}")
    plan = plan if isinstance(plan, Plan) else make_plan(model, plan)
    if not plan.planned:
        raise InputError(f"the plan has nothing to do, every weight is skipped:\n{plan}")
    items = Calibration(calibration)
    layers = layers_of(model, plan)
    found = []
    with torch.no_grad(), _all_or_nothing(layers, statistics_of(norms_of(model))):
        with undisturbed(model, training=False):
            order, norms = explore(model, layers, items, progress)
            with tqdm(
                total=len(order),
                desc="pruning",
                unit="layer",
                leave=False,
                disable=None if progress is None else not progress,
            ) as bar:
                for stage in stages_of(order, sequential):
                    bar.set_postfix_str(stage[0].entry.path)
                    began = time.perf_counter()
                    gathered = gather(model, stage, order, items, sequential, keep_samples)
                    share = (time.perf_counter() - began) / len(stage)
                    for layer in stage:
                        found.append(
                            _prune(layer, gathered.pop(layer.entry.owner), plain_mask, prune, share)
                        )
                        bar.update()
            statistics = estimate_anew(model, norms, items, progress)
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
    layer: PrunedLayer, gathered: Gathered, plain_mask: PlainMask, prune: Prune, seconds: float
) -> LayerReconstruction:
    """Put a layer's new weights in place."""
    began = time.perf_counter()
    moments, pattern = gathered.moments, layer.entry.pattern
    assert pattern is not None
    problem = Problem(
        layer.entry,
        layer.layout,
        layer.weight,
        moments,
        gathered.samples,
        layer.dense.dtype == torch.float64,
    )
    mask = plain_mask(problem)
    plain = torch.where(mask, problem.weight, 0)
    solution = prune(problem, mask)
    new = solution.weight.to(layer.dense.dtype).double()
    before, after = moments.error(plain), moments.error(new)
    worse = ~(
        after <= before
    )  # by rounding to the weight's dtype, or where the solver was no solver
    if pattern.transposable and not torch.equal(mask, solution.mask):
        worse = (~(after.sum() <= before.sum())).expand_as(
            worse
        )  # rows of two masks do not make a third
    new = torch.where(worse.unsqueeze(-1), plain, new)
    layer.own.copy_(layer.layout.weight(new))
    layer.pruned = True
    energy = float(moments.energy.sum()) or 1.0
    return LayerReconstruction(
        name=layer.entry.path,
        pattern=pattern,
        shape=layer.entry.shape,
        before=float(before.sum()) / energy,
        after=float(moments.error(new).sum()) / energy,
        iterations=solution.iterations,
        residual=solution.residual,
        damping=solution.damping,
        seconds=seconds + time.perf_counter() - began,
    )
