"""`plan`: which weight of a model gets which pattern, and why the others get none."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from nmsolve.errors import InputError
from nmsolve.pattern import Pattern
from nmsolve.selection import Patterns, check_used, matches, to_globs, to_patterns, unchosen
from nmsolve.table import shortened, table
from nmsolve.torch.tensors import FLOATS
from nmsolve.torch.weights.entries import Entries
from nmsolve.torch.weights.forwards import alters_weight, has_own_forward
from nmsolve.torch.weights.given_scores import check_scores
from nmsolve.torch.weights.layer_kinds import filter_groups, read_from_above, reduction_axis
from nmsolve.torch.weights.masked import Masked
from nmsolve.torch.weights.sharding import is_sharded

#: Names of the matrices that PEFT's adapters add to a weight.
_ADAPTER = re.compile(r"(^|\.)(lora|vera|hada|lokr|oft|boft|ia3)_")
PADDINGS = ("skip", "error", "pad", "dense")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """What is planned for one weight.

    name : module path. parameter : its parameter, "weight" but for attention's projections. kind :
    the module's class. shape : the weight's. pattern : None where it is skipped, and reason says
    why. axis : the weight's axis that groups lie along. padding : as for `nmsolve.torch.solve`.
    tied_to : the path of the weight that this one is the same tensor as, and shares its mask with.
    """

    name: str
    parameter: str
    kind: str
    shape: tuple[int, ...]
    pattern: Pattern | None
    axis: int | None
    padding: str
    reason: str | None
    tied_to: str | None = None

    @property
    def path(self) -> str:
        """The module path, with the parameter behind it unless that is "weight"."""
        return path_of(self.name, self.parameter)

    @property
    def owner(self) -> str:
        """The path under which a weight that several layers share is counted; elsewhere its own."""
        return self.tied_to or self.path


class Plan(Entries[LayerPlan]):
    """One entry a weight with two axes or more, in the model's order. Prints as a table.

    scores : what masks are to maximise instead of |W|, by layer path; None: |W|.
    """

    def __init__(
        self, layers: Iterable[LayerPlan], scores: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__(layers)
        self.scores = scores

    @property
    def planned(self) -> tuple[LayerPlan, ...]:
        """The entries with a pattern."""
        return tuple(layer for layer in self.layers if layer.pattern is not None)

    @property
    def patterns(self) -> dict[str, Pattern | None]:
        """Layer path → pattern, or None: what `plan` takes in place of one pattern."""
        # A glob names what lies inside a module as well, and the first that matches decides.
        deepest_first = sorted(self.layers, key=lambda layer: -layer.path.count("."))
        return {layer.path: layer.pattern for layer in deepest_first}

    def __str__(self) -> str:
        rows = [
            (
                shortened(layer.path),
                layer.kind,
                "×".join(map(str, layer.shape)),
                "-" if layer.pattern is None else str(layer.pattern),
                "-" if layer.axis is None else str(layer.axis),
                layer.reason
                or (f"shares weight and mask with {layer.tied_to}" if layer.tied_to else ""),
            )
            for layer in self.layers
        ]
        return (
            table(("layer", "kind", "shape", "pattern", "axis", "reason"), rows)
            if rows
            else "no weight with two axes or more"
        )

    def __repr__(self) -> str:
        return f"<Plan: {len(self.planned)} of {len(self)} weights have a pattern>"


def plan(
    model: nn.Module,
    pattern: Patterns,
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
    Conv2d and Conv3d (a matrix (out, in) a kernel position), of nn.MultiheadAttention's
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
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be an nn.Module, got {type(model).__name__}")
    if padding not in PADDINGS:
        raise InputError(
            f"padding must be one of {', '.join(map(repr, PADDINGS))}, got {padding!r}"
        )
    patterns = to_patterns(pattern)
    included, excluded = (
        None if include is None else to_globs(include, "include"),
        to_globs(exclude, "exclude"),
    )
    found = list(_weights(model))
    paths = [path_of(name, parameter) for name, _, parameter, _ in found]
    used = {
        "include": included or (),
        "exclude": excluded,
        "pattern": pattern if isinstance(pattern, Mapping) else (),
    }
    for argument, globs in used.items():
        check_used(globs, paths, argument, "model")
    owners: dict[int, list[str]] = {}
    for (_, _, _, weight), path in zip(found, paths, strict=True):
        owners.setdefault(id(weight), []).append(path)
    layers, above = [], read_from_above(model)
    for (name, module, parameter, weight), path in zip(found, paths, strict=True):
        chosen = next((p for glob, p in patterns.items() if matches(path, glob)), None)
        reason = unchosen(path, included, excluded)
        if reason is None and chosen is None:
            reason = "left dense: no pattern is given for it"
        named = path in (included or ()) or (isinstance(pattern, Mapping) and path in pattern)
        if reason is None and not named and _ADAPTER.search(path):
            reason = "of an adapter, which is added to a weight: merge it, and plan what that gives"
        if reason is None and id(module) in above:
            reason = (
                "the module above multiplies by its weight, transposed: groups would lie "
                "along the other axis"
            )
        reason = reason or _unsuited(module, parameter, weight, named)
        if reason is None:
            assert chosen is not None
            reason = _indivisible(module, parameter, tuple(weight.shape), chosen, padding)
            if reason is not None and padding == "error":
                raise InputError(
                    f"{path} of shape {tuple(weight.shape)}, pattern {chosen}: {reason}; exclude "
                    "it, or choose a padding"
                )
        lazy = is_lazy(weight)
        layers.append(
            LayerPlan(
                name=name,
                parameter=parameter,
                kind=kind_of(module),
                shape=() if lazy else tuple(weight.shape),
                pattern=None if reason else chosen,
                axis=reduction_axis(module, parameter),
                padding="error" if padding == "skip" else padding,
                reason=reason,
                tied_to=owners[id(weight)][0] if owners[id(weight)][0] != path else None,
            )
        )
    made = Plan(_untie(layers, list(owners.values())), scores)
    if scores is not None:
        check_scores(made.planned, scores)
    return made


def path_of(name: str, parameter: str) -> str:
    """How a weight is called: by its module, with the parameter behind it unless that is
    "weight".
    """
    return name if name and parameter == "weight" else f"{name}.{parameter}".lstrip(".")


def kind_of(module: nn.Module) -> str:
    """The class of a module, whatever masks are on it."""
    return parametrize.type_before_parametrizations(module).__name__


def _weights(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """Module path, module, parameter name and parameter, of every parameter with two axes or
    more.
    """
    for name, module in model.named_modules():
        if isinstance(module, parametrize.ParametrizationList):
            continue  # its owner is listed
        for parameter, weight in parameters_of(module).items():
            if is_lazy(weight) or weight.dim() >= 2:
                yield name, module, parameter, weight


def parameters_of(module: nn.Module) -> dict[str, Tensor]:
    """A module's own parameters by name; of parametrized ones, the tensors that are trained."""
    if isinstance(module, torch.jit.ScriptModule):
        return dict(module.named_parameters(recurse=False))
    found: dict[str, Tensor] = {name: p for name, p in module._parameters.items() if p is not None}
    lists = module._modules.get("parametrizations")
    if lists is not None and parametrize.is_parametrized(module):
        for name, tensors in lists._modules.items():
            originals = (
                []
                if tensors is None
                else [p for p in tensors._parameters.values() if p is not None]
            )
            if (
                originals
            ):  # more than one, of other shapes too, where someone else's parametrization made them
                found[name] = max(originals, key=lambda p: (p.dim(), p.numel()))
    return found


def _unsuited(module: nn.Module, parameter: str, weight: Tensor, named: bool) -> str | None:
    """Why a weight cannot have a mask, whatever the pattern.

    named : whether the user named this very layer, and so knows what its forward does.
    """
    kind = kind_of(module)
    if isinstance(module, torch.jit.ScriptModule):
        return "scripted: what its forward does is fixed"
    if is_lazy(weight):
        return "not initialised yet: run the lazy module once first"
    if kind in ("SparseLinear", "PackedLinear"):
        return f"a {kind} has a mask of its own"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "an embedding looks up rows, it reduces over nothing"
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return "a transposed convolution reduces over its first axis, which no sparse kernel serves"
    if reduction_axis(module, parameter) is None:
        if reduction_axis(module, "weight") is not None and "weight" not in parameters_of(module):
            return (
                "its weight is computed by a hook: make it permanent "
                "(torch.nn.utils.prune.remove, remove_weight_norm)"
            )
        return f"no reduction axis is known for {parameter} of {kind}"
    if parametrize.is_parametrized(module):
        lists = module.parametrizations.values()  # type: ignore[operator]
        if not all(isinstance(part, Masked) for parts in lists for part in parts):
            return (
                "parametrized: torch.nn.utils.parametrize.remove_parametrizations makes its "
                "weight a parameter"
            )
    if is_sharded(weight):
        return "sharded already: plan and sparsify the model first, then fully_shard it"
    if weight.dtype not in FLOATS:
        return f"{weight.dtype} cannot be trained"
    why = alters_weight(module, weight) if has_own_forward(module) and not named else None
    return (
        why
        and f"{why}; if its weight multiplies as it is, name the layer by its whole path, in the "
        "patterns or in include"
    )


def _indivisible(
    module: nn.Module, parameter: str, shape: tuple[int, ...], pattern: Pattern, padding: str
) -> str | None:
    """Why the shape of a weight does not hold a pattern."""
    axis = reduction_axis(module, parameter)
    assert axis is not None
    inputs, outputs, groups, m = shape[axis], shape[1 - axis], filter_groups(module), pattern.m
    if 0 in shape:
        return "it has no element"
    inside = f" within each of its {groups} filter groups" if groups > 1 else ""
    if groups > 1 and inputs == 1 and m > 1:
        return "depthwise: every filter sees one input channel"
    if pattern.transposable and groups > 1 and outputs // groups % m:
        return f"{outputs // groups} output channels{inside} do not consist of blocks of {m}"
    if padding in ("pad", "dense"):
        if padding == "dense" and (inputs < m or (pattern.transposable and outputs < m)):
            return (
                "its matrices are smaller than one "
                f"{'block' if pattern.transposable else 'group'} of {m}"
            )
        return None
    if inputs % m:
        return f"{inputs} input channels{inside} do not consist of groups of {m}"
    if pattern.transposable and outputs % m:
        return f"{outputs} output channels do not consist of blocks of {m}"
    return None


def _untie(layers: list[LayerPlan], owners: list[list[str]]) -> Iterator[LayerPlan]:
    """Skip weights that are shared with a layer that cannot have the same mask."""
    by_path = {layer.path: layer for layer in layers}
    reasons: dict[str, str] = {}
    for shared in owners:
        if len(shared) == 1:
            continue
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
        if layer.path in reasons:
            yield replace(layer, pattern=None, reason=reasons[layer.path])
        else:
            yield layer
