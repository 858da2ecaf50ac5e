"""`verify` for whole models: what each planned layer keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
from nmsolve.torch.tensors import check_tensor
from nmsolve.torch.weights.coverage import Coverage, coverage_of
from nmsolve.torch.weights.entries import entry_of
from nmsolve.torch.weights.layer_plan import Plan, PlannedWeight
from nmsolve.torch.weights.masked import masked_parameters, original
from nmsolve.torch.weights.planned import for_solver, planned_modules
from nmsolve.torch.weights.planning import plan as make_plan
from nmsolve.torch.weights.quantized import dequantized, held_in, packed_tensors, stored_weight
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
    dequantized : str or None
        What held the weight, if it was quantized: a dtype of torch, a class of tensors, or a class
        of modules that packs it. The check is then of what `dequantize()` gives.
    """

    path: str
    report: Report
    dequantized: str | None = None

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
    coverage : Coverage
        Which share of the model's parameters they are: `.covered`, `.parameters`, `.share`.
    gone : tuple of str
        Paths of planned weights that are not, because the model has changed since; only
        `SparseModel.finalize_` leaves such, `verify` refuses a plan that is another model's.
    """

    layers: tuple[LayerReport, ...]
    coverage: Coverage
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
        head = ["layer", "pattern", "groups", "violations", "density", "first violation"]
        rows = []
        for layer in self.layers:
            report = layer.report
            first = (
                ""
                if report.first is None
                else f"from index {list(report.first[0])}: keeps {report.first[1]}"
            )
            numbers = (str(report.groups), str(report.violations), f"{report.density:.4f}")
            rows.append([shortened(layer.path), str(report.pattern), *numbers, first])
        rows += [
            [shortened(path), "-", "", "", "", "gone: the model has it no more, or without a mask"]
            for path in self.gone
        ]
        if any(layer.dequantized for layer in self.layers):
            held = [layer.dequantized or "" for layer in self.layers] + [""] * len(self.gone)
            head.append("dequantized from")
            rows = [[*row, name] for row, name in zip(rows, held, strict=True)]
        return f"{table(head, rows, {2, 3, 4})}\n{self.coverage}"


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
        A model, with masks on it, finalized, or quantized since; a bool mask; or weights of any
        other dtype, of which at most n of a group may be nonzero. Tensors are laid out as for
        `solve`.
    pattern : Plan, or Pattern or str
        For a model the plan that it was sparsified with; a pattern means the default plan, which
        lacks layers whose module a quantization has replaced.
    at_most, padding
        For a tensor, as in `nmsolve.verify`. For a model the plan holds both.

    Returns
    -------
    ModelReport or Report
        True in a condition if all is well. A model's has a report for each layer, counts groups,
        and says which share of the model's parameters it covers; masks that are on a model are held
        to exactly n. Indices of convolution weights are those of the matrices (kernel …, out, in).

    Raises
    ------
    PatternError, InputError
        If the pattern or the shape cannot be checked, the tensor has no values (meta, sparse, …),
        the plan is another model's, or a layer is quantized in a way that does not tell its values,
        naming it.

    Notes
    -----
    Where weights are sharded, every rank has to call this.

    A quantized layer is verified by what it multiplies by, and named in the report: tensors that
    bring a `dequantize()`, as torchao's do, torch's own quantized tensors, and the modules of
    torch.ao.nn.quantized. Formats that represent 0 exactly keep a pattern; those whose zero lies
    between two codes, such as GGUF's Q4_1, may break it, and that is reported as violations.

    Examples
    --------
    >>> verify(torch.tensor([[True, False, True, False]]), "2:4").ok
    True
    >>> print(verify(nn.Sequential(nn.Linear(8, 2)), "2:4"))
    layer  pattern  groups  violations  density  first violation
    0      2:4           4           4   1.0000  from index [0, 0]: keeps 4
    covers 16 of 18 parameters (88.9 %)
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
            + _packing_of(subject)
        )
    modules = planned_modules(subject, plan, stored_weight)
    return report_on(subject, list(zip(plan.planned, modules, strict=True)))


def _packing_of(model: nn.Module) -> str:
    """Return the remedy for a model that was quantized before it was planned."""
    packed = [name for name, module in model.named_modules() if packed_tensors(module)]
    if not packed:
        return ""
    return (
        f"\nquantized layers, such as {packed[0]}, are in no plan: verify them with the plan that "
        "was made before they were quantized"
    )


def report_on(
    model: nn.Module,
    entries: Sequence[tuple[PlannedWeight, nn.Module]],
    gone: tuple[str, ...] = (),
) -> ModelReport:
    """Return the report on planned weights of a model, each with the module whose weight it is."""
    with torch.no_grad():
        layers = tuple(_report(entry, module) for entry, module in entries)
    return ModelReport(layers=layers, coverage=coverage_of(model, entries), gone=gone)


def _report(entry: PlannedWeight, module: nn.Module) -> LayerReport:
    masked = masked_parameters(module).get(entry.parameter)
    if masked is None:
        stored = stored_weight(module, entry.parameter)
        assert stored is not None  # planned_modules has seen it
        held = whole(stored)
        weight = check_tensor(
            dequantized(entry, module, held),
            f"the weight of layer {entry.path}",
            f"pattern {entry.pattern}",
        )
        return LayerReport(
            path=entry.path,
            report=_check(entry, weight),
            dequantized=held_in(module, entry.parameter, held),
        )
    # A mask under an exactly-pattern keeps exactly n; the weights under it may be zero.
    report = _check(entry, masked.mask)
    if report:
        weight = whole(original(module, entry.parameter).detach())
        report = _check(entry, torch.where(masked.mask, weight, 0))
    return LayerReport(path=entry.path, report=report)


def _check(entry: PlannedWeight, weight: Tensor) -> Report:
    """The report on a weight or its mask, as it lies in its module."""
    return verify_tensor(for_solver(weight, entry.axis), entry.pattern, padding=entry.padding)
