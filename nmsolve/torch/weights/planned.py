"""A planned weight in its model: the module that has it, how it lies there, and its best mask."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nmsolve.errors import InputError, NMSolveError
from nmsolve.geometry import Geometry, as_matrices, from_matrices
from nmsolve.torch.masks import solve
from nmsolve.torch.weights.layer_kinds import geometry_of
from nmsolve.torch.weights.layer_plan import Plan, PlannedWeight
from nmsolve.torch.weights.parameters import parameters_of


def planned_modules(model: nn.Module, plan: Plan) -> list[nn.Module]:
    """Return the modules that a plan's entries with a pattern name; InputError if the plan was made
    for another model.
    """
    modules = dict(model.named_modules())
    found, problems = [], []
    for entry in plan.planned:
        module = modules.get(entry.name)
        weight = None if module is None else parameters_of(module).get(entry.parameter)
        if module is None or weight is None:
            problems.append(f"it has no {entry.path}")
        elif tuple(weight.shape) != entry.shape:
            problems.append(f"its {entry.path} has shape {tuple(weight.shape)}, not {entry.shape}")
        else:
            found.append(module)
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
            f"{'; '.join(problems[:3])}{more}; make one with nmt.plan(model, …){wrapped}"
        )
    return found


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
