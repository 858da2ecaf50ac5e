"""Plans of one budget: the same pattern everywhere, searched for, and allocated exactly."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

import nmsolve
import nmsolve.torch as nmt
from examples.pruning.dense import calibration, calibration_batches, dense, retrain_order
from examples.pruning.measured import Measured
from examples.study.measure import loss
from examples.study.tasks import Task
from examples.study.training import fit

M = 16
Unit = Literal["params", "flops"]
#: What is kept, of 16, under each budget, which is that of the uniform plan.
KEPT: dict[Unit, tuple[int, ...]] = {"params": (4, 2), "flops": (2,)}
#: DominoSearch's β for each budget, in the order of the supplement's Table 4; the first is the
#: default.
BETAS: dict[Unit, tuple[tuple[float, float], ...]] = {
    "params": ((0.5, 0.5), (0.0, 1.0)),
    "flops": ((0.8, 0.2), (1.0, 0.0)),
}
#: λ and K_c: ten times the paper's 0.1, and a tenth of its 100, so that weights shrink as much
#: between checks, and a search takes some thousand iterations instead of some ten thousand.
DECAY, CHECK = 1.0, 10
#: Of retraining: its length and learning rate, as shares of training's.
STEPS, RATE = 0.5, 0.3
#: Candidates of the exact allocation that mixes row-wise and transposable patterns of several m.
MIXED = (
    "1:16",
    "2:16",
    "4:16",
    "8:16",
    "1:8",
    "2:8",
    "4:8",
    "1:4",
    "2:4",
    "2:16T",
    "4:16T",
    "8:16T",
    "2:8T",
    "4:8T",
    "1:4T",
    "2:4T",
    None,
)
POWERS = ("1:16", "2:16", "4:16", "8:16", None)


STAGES = ("masked", "AdaPrune", "retrained")


@dataclass(frozen=True)
class Scheme:
    """A way to a plan, one of `ways`. A search serves "domino, fixed n" too, which only writes its
    plan in other terms.
    """

    way: str
    unit: Unit
    kept: int

    @property
    def start(self) -> str:
        """What the results of all stages begin with."""
        return f"{self.way} | {self.unit} {self.kept}/{M}"

    def name(self, stage: str) -> str:
        """What the result of a stage is saved under."""
        return f"{self.start} | {stage}"

    @property
    def schemes(self) -> tuple[Scheme, ...]:
        """Those that come of one run."""
        return (self, replace(self, way=FIXED_N)) if self.way == "domino" else (self,)

    @property
    def names(self) -> tuple[str, ...]:
        """All results of a run."""
        return tuple(scheme.name(stage) for scheme in self.schemes for stage in STAGES)


FIXED_N = "domino, fixed n"


def ways(unit: Unit) -> tuple[str, ...]:
    """All ways to a plan, in the order of tables."""
    other = [f"domino, β = {first:g}, {second:g}" for first, second in BETAS[unit][1:]]
    return ("uniform", "domino", FIXED_N, "domino, η off", *other, *EXACT)


#: What is minimised: the score that masks lose, the relative error of layers' outputs (with more
#: candidates, too), and the rise of the calibration's loss when a layer alone is pruned by
#: AdaPrune.
EXACT = ("exact, score", "exact, error", "exact, error, mixed", "exact, loss")
SCHEMES = tuple(
    Scheme(way, unit, kept)
    for unit in BETAS
    for kept in KEPT[unit]
    for way in ways(unit)
    if way != FIXED_N
)


def allocate(task: Task, scheme: Scheme, seed: int) -> dict[str, Measured]:
    """The plan for the dense model, which is then masked, adjusted, and retrained by SR-STE."""
    model = dense(task, seed)
    counted = task.part("validation")[0][0][:1]
    costs = _costs(model, counted, task)
    whole = {unit: sum(cost[unit] for cost in costs.values()) for unit in BETAS}
    limit = round(whole[scheme.unit] * scheme.kept / M)
    budget = nmt.Params(limit) if scheme.unit == "params" else nmt.FLOPs(limit)
    began = time.perf_counter()
    plan, steps = _plan(task, scheme, seed, model, budget, counted)
    seconds = time.perf_counter() - began
    found = {}
    for each in scheme.schemes:
        patterns = {path: pattern for path, pattern in plan.patterns.items() if path in costs}
        if each.way == FIXED_N:
            patterns = {path: p and nmsolve.Pattern(1, M // p.n) for path, p in patterns.items()}
        settled = nmt.plan(dense(task, seed), patterns, exclude=task.dense)
        known: dict[str, Any] = {
            "seconds": seconds,
            "steps": steps,
            "patterns": {p: str(q or "dense") for p, q in patterns.items()},
        }
        for unit in BETAS:
            kept = sum(
                costs[path][unit] * (1.0 if pattern is None else pattern.density)
                for path, pattern in patterns.items()
            )
            known[unit] = kept / whole[unit]
        assert known[scheme.unit] <= scheme.kept / M + 1e-9, (scheme, known)
        for stage in STAGES:
            found[each.name(stage)] = Measured.of(
                task, _pruned(task, seed, settled, stage), **known
            )
    return found


def _pruned(task: Task, seed: int, plan: nmt.Plan, stage: str) -> nn.Module:
    model = dense(task, seed)
    if stage == "masked":
        nmt.sparsify_(model, plan, nmt.Fixed()).finalize_()
    elif stage == "AdaPrune":
        nmt.adaprune_(model, plan, calibration(task, seed))
    else:
        sparse = nmt.sparsify_(model, plan, nmt.SRSTE(decay=task.decay))
        fit(
            task,
            model,
            max(1, round(STEPS * task.steps)),
            retrain_order(seed),
            sparse=sparse,
            rate=RATE,
        )
        sparse.finalize_()
    assert nmt.verify(model, plan)
    return model


def _plan(
    task: Task,
    scheme: Scheme,
    seed: int,
    model: nn.Module,
    budget: nmt.Params | nmt.FLOPs,
    counted: torch.Tensor,
) -> tuple[nmt.Plan, int | None]:
    """The plan, and the iterations of its search."""
    if scheme.way == "uniform":
        return nmt.plan(model, f"{scheme.kept}:{M}", exclude=task.dense), None
    if scheme.way in EXACT:
        inputs = calibration(task, seed) if "error" in scheme.way else None
        candidates = MIXED if "mixed" in scheme.way else POWERS
        losses = nmt.losses(
            model, candidates, calibration=inputs, example_inputs=counted, exclude=task.dense
        )
        if scheme.way == "exact, loss":
            losses = losses.with_values(_rises(task, seed, losses))
        return nmt.allocate(losses, budget=budget), None
    order = torch.Generator().manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a budget that is not met
        found = nmt.domino_search(
            model.train(),
            lambda model: loss(model, *task.data().sample(task.batch, order)),
            budget,
            M,
            decay=DECAY,
            check_every=CHECK,
            layerwise="off" not in scheme.way,
            betas=BETAS[scheme.unit][1] if "β" in scheme.way else BETAS[scheme.unit][0],
            example_inputs=counted,
            exclude=task.dense,
        )
    return found, found.steps


def _rises(task: Task, seed: int, losses: nmt.Losses) -> dict[str, dict[str, float]]:
    """By how much the loss on the calibration rises when a layer alone is pruned, by layer and
    candidate; not below zero.
    """
    inputs = calibration(task, seed)
    batches = calibration_batches(task, seed)

    @torch.no_grad()
    def measured(model: nn.Module) -> float:
        return sum(float(loss(model, *batch)) for batch in batches) / len(batches)

    start = measured(dense(task, seed))
    found: dict[str, dict[str, float]] = {}
    for layer in losses:
        for option in layer.options:
            rise = 0.0
            if option.pattern is not None:
                model = dense(task, seed)
                nmt.adaprune_(model, {layer.path: option.pattern}, inputs)
                rise = max(0.0, measured(model) - start)
            found.setdefault(layer.path, {})[str(option.pattern or "dense")] = rise
    return found


def _costs(model: nn.Module, counted: torch.Tensor, task: Task) -> dict[str, dict[Unit, float]]:
    """Weights and multiply-adds of every layer that has groups, dense."""
    found = nmt.losses(model, [f"1:{M}"], example_inputs=counted, exclude=task.dense)
    costs: dict[str, dict[Unit, float]] = {}
    for layer in found:
        if layer.options:
            assert layer.positions is not None
            weights = math.prod(layer.entry.shape)
            costs[layer.path] = {"params": weights, "flops": weights * layer.positions}
    return costs
