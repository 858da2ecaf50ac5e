"""`plan` decides which weight of a model gets which pattern, and why the others get none.

`_decide` is where a weight is skipped, with all reasons in their order: the user's choice
(`selection.Selection`), the kind of layer (`layer_kinds.KINDS`), what has become of the module and
its parameter, a forward of its own (`forwards`), the shape (`geometry.Geometry.unfit`), and last
weights that are shared (`_untie`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from nmsolve.errors import InputError
from nmsolve.selection import ADAPTER, Patterns, Selection
from nmsolve.torch.tensors import FLOATS
from nmsolve.torch.weights.forwards import alters_weight
from nmsolve.torch.weights.given_scores import check_scores
from nmsolve.torch.weights.layer_kinds import (
    geometry_of,
    layer_kind,
    reasons_from_above,
    reduction_axis,
)
from nmsolve.torch.weights.layer_plan import (
    LayerPlan,
    Plan,
    PlannedWeight,
    SkippedWeight,
    path_of,
)
from nmsolve.torch.weights.masked import Masked
from nmsolve.torch.weights.parameters import check_module, class_name_of, parameters_of
from nmsolve.torch.weights.sharding import is_sharded


def plan(
    model: nn.Module,
    pattern: Patterns,
    *,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] = (),
    padding: str = "skip",
    scores: Mapping[str, Tensor] | None = None,
) -> Plan:
    """Decide which weights of a model get which pattern. Changes nothing; `sparsify_` puts the plan
    into effect.

    Parameters
    ----------
    model : nn.Module
        Meta tensors will do: only names, types and shapes are looked at.
    pattern : Pattern, str, or mapping of globs to patterns
        One for all layers, or {"encoder.*": "2:4T", "*": "2:8"}: the first glob that matches a
        layer decides; None leaves it dense. A layer that is named by its whole path is planned
        though its class has a forward that cannot be looked into.
    include, exclude : glob or globs of module paths
        Only these, and not these. A glob names a module and everything inside it, so
        exclude=["head"] covers "head.0" too.
    padding : {"skip", "error", "pad", "dense"}
        What becomes of a weight whose shape the pattern does not divide: skipped with the reason,
        an error, or masked as `nmsolve.torch.solve` pads ("pad", or "dense" for a dense remainder).
    scores : mapping of layer paths to tensors of the weights' shapes, optional
        What masks maximise instead of |W|, for `sparsify_` and `adaprune_` to find in the plan:
        from `nmsolve.torch.scores`.

    Returns
    -------
    Plan
        With an entry for every parameter of two axes or more; those that are skipped say why.

    Raises
    ------
    PatternError, InputError
        For a pattern or option that does not exist, a glob that matches no layer, with
        padding="error" a shape that does not divide, a planned layer without scores or with scores
        of another shape.

    Notes
    -----
    Groups lie along the axis that products reduce over: input channels of nn.Linear, nn.Conv1d,
    Conv2d and Conv3d (one matrix (out, in) per kernel position), of nn.MultiheadAttention's
    projections, and of Hugging Face's Conv1D, whose weight is (in, out). Groups and blocks stay
    within a filter group of a grouped convolution. Weights that several layers share get one mask,
    if every one of them can have it. A subclass with a forward of its own has that run once, on
    tensors without values: it is planned if it multiplies by its weight as it is, and skipped if it
    standardises, quantizes or otherwise computes with it first.

    Examples
    --------
    >>> convolutions = nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3)
    >>> model = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(32, 10))
    >>> print(plan(model, "2:4T", exclude="4"))
    layer  kind    shape      pattern  axis  reason
    0      Conv2d  16×3×3×3   -        1     3 input channels do not consist of groups of 4
    2      Conv2d  32×16×3×3  2:4T     1
    4      Linear  10×32      -        1     excluded
    """
    check_module(model)
    selection = Selection.of(pattern, include, exclude, padding)
    found = list(_weights(model))
    selection.check_used([weight.path for weight in found], "model")
    owners: dict[int, list[str]] = {}
    for weight in found:
        owners.setdefault(id(weight.tensor), []).append(weight.path)
    layers = [_decide(weight, selection, owners[id(weight.tensor)][0]) for weight in found]
    made = Plan(_untie(layers, list(owners.values())), scores)
    if scores is not None:
        check_scores(made.planned, scores)
    return made


def plan_for(model: nn.Module, given: Plan | Patterns) -> Plan:
    """Return a plan, or the default one for a pattern; InputError if it has nothing to do."""
    check_module(model)
    made = given if isinstance(given, Plan) else plan(model, given)
    if not made.planned:
        raise InputError(f"the plan has nothing to do, every weight is skipped:\n{made}")
    return made


@dataclass(frozen=True, slots=True)
class _Weight:
    """A parameter with two axes or more; `above` says why the module above rules it out, if so."""

    name: str
    module: nn.Module
    parameter: str
    tensor: Tensor
    above: str | None

    @property
    def path(self) -> str:
        return path_of(self.name, self.parameter)

    @property
    def shape(self) -> tuple[int, ...]:
        return () if is_lazy(self.tensor) else tuple(self.tensor.shape)


def _weights(model: nn.Module) -> Iterator[_Weight]:
    """Every parameter with two axes or more, in the model's order."""
    above = reasons_from_above(model)
    for name, module in model.named_modules():
        if isinstance(module, parametrize.ParametrizationList):
            continue  # its owner is listed
        for parameter, tensor in parameters_of(module).items():
            if is_lazy(tensor) or tensor.dim() >= 2:
                yield _Weight(name, module, parameter, tensor, above.get(id(module)))


def _decide(weight: _Weight, selection: Selection, owner: str) -> LayerPlan:
    """Decide about a weight; `owner` is the first path of its tensor, which several may share."""
    path, axis = weight.path, reduction_axis(weight.module, weight.parameter)
    described: dict[str, Any] = {
        "name": weight.name,
        "parameter": weight.parameter,
        "kind": class_name_of(weight.module),
        "shape": weight.shape,
        "padding": selection.solver_padding,
        "tied_to": owner if owner != path else None,
    }
    pattern = selection.choose(path)
    if isinstance(pattern, str):
        return SkippedWeight(axis=axis, reason=pattern, **described)
    reason = _unsuited(weight, selection.names(path))
    if axis is None or reason is not None:
        return SkippedWeight(axis=axis, reason=reason or _unknown(weight), **described)
    geometry = geometry_of(weight.module, weight.parameter, weight.shape, axis)
    reason = geometry.unfit(pattern, selection.padding, channels=True)
    if reason is not None:
        selection.refuse(path, weight.shape, pattern, reason)
        return SkippedWeight(axis=axis, reason=reason, **described)
    return PlannedWeight(pattern=pattern, axis=axis, **described)


def _unsuited(weight: _Weight, named: bool) -> str | None:
    """Return why a weight cannot have a mask, whatever the pattern; None where only its axis may be
    unknown.

    named : whether the user named this very layer, and so knows what its forward does.
    """
    module, tensor = weight.module, weight.tensor
    if not named and ADAPTER.search(weight.path):
        return "of an adapter, which is added to a weight: merge it, and plan what that gives"
    if weight.above is not None:
        return weight.above
    if isinstance(module, torch.jit.ScriptModule):
        return "scripted: what its forward does is fixed"
    if is_lazy(tensor):
        return "not initialised yet: run the lazy module once first"
    kind = layer_kind(module)
    if kind is None or weight.parameter not in kind.weights:
        return None if kind is None else kind.reason
    if parametrize.is_parametrized(module):
        lists = module.parametrizations.values()  # type: ignore[operator]
        if not all(isinstance(part, Masked) for parts in lists for part in parts):
            return (
                "parametrized: torch.nn.utils.parametrize.remove_parametrizations makes its "
                "weight a parameter"
            )
    if is_sharded(tensor):
        return "sharded already: plan and sparsify the model first, then fully_shard it"
    if tensor.dtype not in FLOATS:
        return f"{tensor.dtype} cannot be trained"
    why = None if named else alters_weight(module, tensor)
    return (
        why
        and f"{why}; if its weight multiplies as it is, name the layer by its whole path, in the "
        "patterns or in include"
    )


def _unknown(weight: _Weight) -> str:
    """Return why no axis is known that products of a parameter sum over."""
    module = weight.module
    if reduction_axis(module, "weight") is not None and "weight" not in parameters_of(module):
        return (
            "its weight is computed by a hook: make it permanent "
            "(torch.nn.utils.prune.remove, remove_weight_norm)"
        )
    return f"no reduction axis is known for {weight.parameter} of {class_name_of(module)}"


def _untie(layers: list[LayerPlan], owners: list[list[str]]) -> Iterator[LayerPlan]:
    """Skip weights that are shared with a layer that cannot have the same mask."""
    by_path = {layer.path: layer for layer in layers}
    reasons: dict[str, str] = {}
    for shared in owners:
        entries = [by_path[path] for path in shared]
        for entry in entries:
            if entry.pattern is None:
                continue
            other = next(
                (e for e in entries if (e.pattern, e.axis) != (entry.pattern, entry.axis)), None
            )
            if other is not None:
                why = other.reason or f"that has pattern {other.pattern}"
                reasons[entry.path] = f"its weight is tied to {other.path}, a {other.kind}: {why}"
    for layer in layers:
        yield layer.skipped(reasons[layer.path]) if layer.path in reasons else layer
