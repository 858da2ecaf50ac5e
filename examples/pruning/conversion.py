"""Dense models converted to a pattern without retraining, by every way of adjusting weights."""

from __future__ import annotations

import time
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils import parametrize

import nmsolve.torch as nmt
from examples.pruning.dense import calibration, dense, retrain_order
from examples.pruning.measured import Measured
from examples.study.tasks import Task
from examples.study.training import fit

PATTERNS = ("2:4", "1:4", "2:4T", "4:8T", "8:16T")
#: How weights are adjusted, in the order of tables. "masked" leaves them, and batch norms with
#: their statistics.
METHODS = (
    "masked",
    "masked, norms anew",
    "AdaPrune, Adam",
    "AdaPrune",
    "AdaPrune, not sequential",
    "AdaPrune, activations",
    "second order",
)
#: Share of zeros, and length of groups, of the conversion of unstructured-sparse models.
UNSTRUCTURED, GROUP = 0.75, 8


@dataclass(frozen=True)
class Conversion:
    """To a pattern; None converts an unstructured-sparse model, to the patterns that match its
    layers.
    """

    pattern: str | None

    @property
    def start(self) -> str:
        """The name of the model that is converted."""
        return "dense" if self.pattern else "unstructured"

    def name(self, method: str) -> str:
        """What a result is saved under."""
        return f"{self.pattern or 'matching'} {method}"

    @property
    def names(self) -> tuple[str, ...]:
        """All results."""
        return (self.start, *(self.name(method) for method in METHODS))


CONVERSIONS = tuple(Conversion(pattern) for pattern in (*PATTERNS, None))


def convert(task: Task, conversion: Conversion, seed: int) -> dict[str, Measured]:
    """Every method, on the same model with the same calibration."""
    start = dense(task, seed) if conversion.pattern else _unstructured(task, seed)
    inputs = calibration(task, seed)
    plan = (
        nmt.plan(start, conversion.pattern, exclude=task.dense)
        if conversion.pattern
        else nmt.matching_plan(start, m=GROUP, exclude=task.dense)
    )
    density = nmt.verify(start, plan).density if conversion.pattern is None else 1.0
    found = {conversion.start: Measured.of(task, start, params=density)}
    for method in METHODS:
        model = dense(task, seed) if conversion.pattern else _copy(start, task)
        began = time.perf_counter()
        error = _apply(method, model, plan, inputs)
        seconds = time.perf_counter() - began
        report = nmt.verify(model, plan)
        assert report
        patterns = (
            None
            if conversion.pattern
            else {layer.path: str(layer.pattern or "dense") for layer in plan}
        )
        found[conversion.name(method)] = Measured.of(
            task, model, seconds=seconds, error=error, params=report.density, patterns=patterns
        )
    return found


def _apply(method: str, model: nn.Module, plan: nmt.Plan, inputs: list[Tensor]) -> float | None:
    """Prune a model in place; the error of its layers, summed, where it is known."""
    if method == "masked":
        nmt.mask_(model, plan)
        return None
    if method == "second order":
        found = nmt.sparsegpt_(model, plan, inputs)
    elif method == "AdaPrune, Adam":  # as in the paper: every layer for itself
        found = nmt.adaprune_(
            model, plan, inputs, update="adam", criterion="magnitude", sequential=False
        )
    elif method == "AdaPrune, activations":
        found = nmt.adaprune_(model, plan, inputs, criterion="activation")
    elif method == "masked, norms anew":  # so much damping that nothing moves
        found = nmt.adaprune_(
            model,
            plan,
            inputs,
            update=nmt.LeastSquares(damping=1e12),
            criterion="magnitude",
            bias=False,
            sequential=False,
        )
    else:
        found = nmt.adaprune_(
            model, plan, inputs, criterion="magnitude", sequential="not" not in method
        )
    return sum(layer.after for layer in found)


class _Kept(nn.Module):
    """Only the largest weights of a parameter, and nothing in the place of the others."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        threshold = (
            weight.detach().abs().flatten().kthvalue(round(UNSTRUCTURED * weight.numel())).values
        )
        self.register_buffer("mask", weight.detach().abs() > threshold)

    def forward(self, weight: Tensor) -> Tensor:
        """The parametrized weight."""
        return weight * self.mask


def _unstructured(task: Task, seed: int) -> nn.Module:
    """The dense model with the smallest weights of each planned layer removed, trained on for half
    as long.
    """
    model = dense(task, seed)
    layers = [
        (model.get_submodule(entry.name), entry.parameter)
        for entry in nmt.plan(model, "1:1", exclude=task.dense).planned
    ]
    for module, parameter in layers:
        parametrize.register_parametrization(module, parameter, _Kept(getattr(module, parameter)))
    fit(task, model, task.steps // 2, retrain_order(seed), rate=0.3)
    for module, parameter in layers:
        parametrize.remove_parametrizations(module, parameter)
    return model.eval()


def _copy(model: nn.Module, task: Task) -> nn.Module:
    """A copy of its state in a model of the task: what was parametrized has a class of its own."""
    copied = task.model()
    copied.load_state_dict(model.state_dict())
    return copied.eval()
