"""A planned weight in its model: the module that has it, how it lies there, and its best mask."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from nmsolve.errors import InputError, NMSolveError
from nmsolve.geometry import Geometry, as_matrices, from_matrices
from nmsolve.torch.masks import solve
from nmsolve.torch.weights.layer_kinds import geometry_of
from nmsolve.torch.weights.layer_plan import Plan, PlannedWeight, path_of
from nmsolve.torch.weights.parameters import parameters_of
from nmsolve.torch.weights.quantized import holds_codes


def _parameter_of(module: nn.Module, name: str) -> Tensor | None:
    return parameters_of(module).get(name)


def planned_modules(
    model: nn.Module,
    plan: Plan,
    weight_of: Callable[[nn.Module, str], Tensor | None] = _parameter_of,
) -> list[nn.Module]:
    """Return the modules that a plan's entries with a pattern name; InputError if the plan was made
    for another model.

    weight_of : what a module has under a parameter's name; its parameter, unless told otherwise.
    """
    modules = dict(model.named_modules())
    found, problems, quantized = [], [], ""
    for entry in plan.planned:
        module = modules.get(entry.name)
        weight = None if module is None else weight_of(module, entry.parameter)
        if module is None or weight is None:
            problems.append(f"it has no {entry.path}")
        elif is_lazy(weight):
            problems.append(f"its {entry.path} is not initialised yet: run the model once first")
        elif tuple(weight.shape) != entry.shape:
            problems.append(f"its {entry.path} has shape {tuple(weight.shape)}, not {entry.shape}")
        else:
            found.append(module)
            continue
        if module is not None and holds_codes(module) and not quantized:
            quantized = (
                f" (if {entry.path}, a {module._get_name()} now, was quantized: mask and verify "
                "the model before that, or dequantize it first, as transformers' "
                "model.dequantize() does)"
            )
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        if any(entry.shape == () for entry in plan.planned):
            raise InputError(
                "the plan was allocated by a table alone and knows no shapes: pass nmt.plan(model, "
                "plan.patterns)"
            )
        wrapped = (
            " (is the model inside a wrapper? pass its .module)" if hasattr(model, "module") else ""
        )
        raise InputError(
            f"the plan was made for another model than this {type(model).__name__}: "
            f"{'; '.join(problems[:3])}{more}; make one with nmt.plan(model, …){wrapped}{quantized}"
        )
    return found


def check_ties(model: nn.Module, plan: Plan) -> None:
    """Raise InputError if a planned weight is also another's, to which the plan gives no mask or
    another one.
    """
    planned = {(entry.name, entry.parameter): (entry.pattern, entry.axis) for entry in plan.planned}
    owners: dict[int, list[tuple[str, str]]] = {}
    for name, module in model.named_modules():
        for parameter, weight in parameters_of(module).items():
            owners.setdefault(id(weight), []).append((name, parameter))
    for shared in owners.values():
        found = {planned.get(owner) for owner in shared}
        if len(found) > 1:
            names = ", ".join(path_of(*owner) for owner in shared)
            raise InputError(
                f"{names} are one weight, and the plan does not give all of them one mask: make a "
                "new plan for this model"
            )


def layout_of(entry: PlannedWeight, module: nn.Module) -> Geometry:
    """Return how the groups of a planned weight lie in its module."""
    return geometry_of(module, entry.parameter, entry.shape, entry.axis)


def for_solver(weight: Tensor, axis: int) -> Tensor:
    """Return a weight as `nmsolve.torch.solve` takes it, with groups along its `axis`: a view.

    That is as matrices; but (out, in, kernel …) as it is, and of a Conv1d as (out, in, 1, kernel).
    """
    if weight.dim() == 2 or axis != 1:
        return as_matrices(weight, axis)
    return weight.unsqueeze(2) if weight.dim() == 3 else weight


def from_solver(mask: Tensor, axis: int, dim: int) -> Tensor:
    """Return the inverse of `for_solver`, for a weight of `dim` axes."""
    if dim == 2 or axis != 1:
        return from_matrices(mask, axis)
    return mask.squeeze(2) if dim == 3 else mask


def solve_mask(
    entry: PlannedWeight,
    weight: Tensor,
    scores: Tensor | None,
    method: str,
    threads: int | None = None,
) -> Tensor:
    """Return the best mask of a weight, of its shape, by a method of `solve`; errors name the
    layer.
    """
    if not weight.numel():  # this rank holds no row of it
        return torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
    try:
        result = solve(
            for_solver(weight, entry.axis),
            entry.pattern,
            None if scores is None else for_solver(scores, entry.axis),
            method=method,
            threads=threads,
            padding=entry.padding,
        )
    except NMSolveError as error:
        raise type(error)(f"layer {entry.path}: {error}") from error
    return from_solver(result.mask, entry.axis, weight.dim())
