"""`verify` for whole models: what each planned layer keeps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor, nn

from nmsolve.errors import InputError
from nmsolve.feasibility import Report
from nmsolve.pattern import Pattern
from nmsolve.selection import Patterns
from nmsolve.table import shortened, table
from nmsolve.torch.masks import verify as verify_tensor
from nmsolve.torch.weights.entries import entry_of
from nmsolve.torch.weights.layer_plan import Plan, PlannedWeight
from nmsolve.torch.weights.masked import masked_parameters, original
from nmsolve.torch.weights.parameters import parameters_of
from nmsolve.torch.weights.planned import for_solver, planned_modules
from nmsolve.torch.weights.planning import plan as make_plan
from nmsolve.torch.weights.sharding import whole


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReport:
    """The check of a planned weight.

    Attributes
    ----------
    path : str
        The weight's path.
    report : Report
        How many groups, how many of them keep a wrong number, where the first is.
    """

    path: str
    report: Report

    @property
    def name(self) -> str:
        """The weight's path."""
        return self.path

    @property
    def ok(self) -> bool:
        """True if the layer satisfies its pattern."""
        return self.report.ok


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    """The check of a model. True in a condition if every layer satisfies its pattern.
    Prints as a table.

    Attributes
    ----------
    layers : tuple of LayerReport
        The planned weights that are there.
    gone : tuple of str
        Paths of planned weights that are not, because the model has changed since; only
        `SparseModel.finalize_` leaves such, `verify` refuses a plan that is another model's.
    """

    layers: tuple[LayerReport, ...]
    gone: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True if every layer that is there satisfies its pattern."""
        return all(layer.ok for layer in self.layers)

    @property
    def violations(self) -> int:
        """Groups that keep a wrong number, over all layers."""
        return sum(layer.report.violations for layer in self.layers)

    @property
    def density(self) -> float:
        """The share of the planned weights that is kept."""
        sizes = [math.prod(layer.report.shape) for layer in self.layers]
        return sum(
            layer.report.density * size for layer, size in zip(self.layers, sizes, strict=True)
        ) / max(1, sum(sizes))

    def __getitem__(self, path: str) -> Report:
        """Return the report of a layer, by its path."""
        return entry_of({layer.path: layer.report for layer in self.layers}, path)

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        head = ("layer", "pattern", "groups", "violations", "density", "first violation")
        rows = []
        for layer in self.layers:
            report = layer.report
            first = (
                ""
                if report.first is None
                else f"from index {list(report.first[0])}: keeps {report.first[1]}"
            )
            numbers = (str(report.groups), str(report.violations), f"{report.density:.4f}")
            rows.append((shortened(layer.path), str(report.pattern), *numbers, first))
        rows += [
            (shortened(path), "-", "", "", "", "gone: the model has it no more, or without a mask")
            for path in self.gone
        ]
        return table(head, rows, {2, 3, 4})


@overload
def verify(subject: nn.Module, pattern: Plan | Patterns) -> ModelReport: ...
@overload
def verify(
    subject: Tensor, pattern: Pattern | str, *, at_most: bool | None = None, padding: str = "error"
) -> Report: ...
def verify(
    subject: Tensor | nn.Module,
    pattern: Plan | Patterns,
    *,
    at_most: bool | None = None,
    padding: str = "error",
) -> Report | ModelReport:
    """Verify a model against a plan, or a tensor against a pattern: `nmsolve.verify` for them, on
    the host.

    Parameters
    ----------
    subject : nn.Module, or (rows, cols), (batch, rows, cols) or (out, in, kernel …) tensor
        A model, with masks on it or finalized; a bool mask; or weights of any other dtype, of which
        at most n of a group may be nonzero. Tensors are laid out as for `solve`.
    pattern : Plan, or Pattern or str
        For a model the plan that it was sparsified with; a pattern means the default plan.
    at_most, padding
        For a tensor, as in `nmsolve.verify`. For a model the plan holds both.

    Returns
    -------
    ModelReport or Report
        True in a condition if all is well. A model's has a report for each layer, and counts
        groups; masks that are on a model are held to exactly n. Indices of convolution weights are
        those of the matrices (kernel …, out, in).

    Raises
    ------
    PatternError, InputError
        If the pattern or the shape cannot be checked, the tensor has no values (meta, sparse, …),
        or the plan is another model's.

    Notes
    -----
    Where weights are sharded, every rank has to call this.

    Examples
    --------
    >>> verify(torch.tensor([[True, False, True, False]]), "2:4").ok
    True
    >>> print(verify(nn.Sequential(nn.Linear(8, 2)), "2:4"))
    layer  pattern  groups  violations  density  first violation
    0      2:4           4           4   1.0000  from index [0, 0]: keeps 4
    """
    if not isinstance(subject, nn.Module):
        if isinstance(pattern, Pattern | str):
            return verify_tensor(subject, pattern, at_most=at_most, padding=padding)
        raise InputError(
            "a tensor is verified against one pattern, such as '2:4', not a "
            f"{type(pattern).__name__}"
        )
    if at_most is not None or padding != "error":
        raise InputError(
            "at_most and padding are for tensors: a model's are in its plan, nmt.plan(model, "
            "'<=2:4', padding=…)"
        )
    plan = pattern if isinstance(pattern, Plan) else make_plan(subject, pattern)
    if not plan.planned:
        raise InputError(
            f"there is nothing to verify: no weight has a pattern in this plan\n{plan}"
        )
    return report_on(zip(plan.planned, planned_modules(subject, plan), strict=True))


def report_on(
    entries: Iterable[tuple[PlannedWeight, nn.Module]], gone: tuple[str, ...] = ()
) -> ModelReport:
    """Return the report on planned weights, each with the module whose parameter it is."""
    layers = tuple(
        LayerReport(path=entry.path, report=_report(entry, module)) for entry, module in entries
    )
    return ModelReport(layers=layers, gone=gone)


def _report(entry: PlannedWeight, module: nn.Module) -> Report:
    masked = masked_parameters(module).get(entry.parameter)
    dense = (
        parameters_of(module)[entry.parameter]
        if masked is None
        else original(module, entry.parameter)
    )
    weight = whole(dense.detach())
    if masked is not None:
        # A mask under an exactly-pattern keeps exactly n; the weights under it may be zero.
        report = verify_tensor(
            for_solver(masked.mask, entry.axis), entry.pattern, padding=entry.padding
        )
        if not report:
            return report
        weight = torch.where(masked.mask, weight, 0)
    return verify_tensor(for_solver(weight, entry.axis), entry.pattern, padding=entry.padding)
