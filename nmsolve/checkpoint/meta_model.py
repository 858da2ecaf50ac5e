"""A checkpoint's own model, asked about its tensors: built without memory from config.json, and
planned by `nmsolve.torch.plan`.

That happens in a process of its own, so that nothing is downloaded whatever a configuration asks
for, and PyTorch takes no memory in the one that solves. Only code of the installed libraries is
run, never a checkpoint's.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nmsolve.checkpoint.folders import CONFIG
from nmsolve.errors import InputError
from nmsolve.geometry import DEPTHWISE
from nmsolve.pattern import Pattern

#: Seconds; no model takes a tenth of it.
PATIENCE = 600
#: Settings under which nothing is looked for on a network, and no process group is joined.
_ALONE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
#: Settings that would load kernels, quantize, run a checkpoint's code or fetch weights; none
#: changes what a model's layers are.
_IGNORED = (
    "quantization_config",
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "auto_map",
)
_REFUSED = ("use_pretrained_backbone", "trust_remote_code")

#: Steps of a loader that make one tensor (experts, out, in) of one matrix (out, in) per expert.
_MERGES = {"MergeModulelist", "Concatenate", "ErnieFuseAndSplitTextVisionExperts"}
#: Reasons of `nmsolve.torch.plan` that say what it does not know, so that a user may know better.
_UNKNOWN = ("an embedding", "no reduction axis")

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A model's word on a tensor.

    Attributes
    ----------
    axis : int or None
        The axis that products reduce over; None if there is none, or none is known.
    reason : str or None
        Why it stays dense, if it does.
    firm : bool
        Whether that holds even for a tensor that the user names.
    rows : int
        Blocks must not reach across a multiple of this many rows; 1 if rows are not in the model's
        order.
    depthwise : bool
        Whether every filter sees one input channel.
    """

    axis: int | None
    reason: str | None = None
    firm: bool = False
    rows: int = 0
    depthwise: bool = False

    def unfit(self, pattern: Pattern) -> str | None:
        """Return why a weight cannot have a pattern, as far as that is not seen from its shape."""
        if self.depthwise and pattern.m > 1:
            return DEPTHWISE
        if pattern.transposable and self.rows % pattern.m:
            if self.rows == 1:
                return "its rows are rearranged on loading, and blocks with them"
            return f"its parts of {self.rows} rows do not consist of blocks of {pattern.m}"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A model's answer.

    Attributes
    ----------
    by : str
        Its class and library.
    told : mapping of str to Told
        By tensor, without those that it does not have, or not as they are.
    """

    by: str
    told: Mapping[str, Told]


def ask(folder: Path, settings: Mapping[str, Any], shapes: Shapes) -> Answer | str:
    """Return what the model that a folder's config.json describes says of tensors of these shapes;
    or why it cannot be asked.

    settings : what config.json says.

    Raises
    ------
    InputError
        If it takes so long that the configuration must be wrong.
    """
    library = _library(settings)
    if library is None:
        return "it names no architecture"
    if not all(importlib.util.find_spec(name) for name in ("torch", library)):
        return f"{library} is not installed"
    path = os.pathsep.join(place or os.getcwd() for place in sys.path)
    kept = {name: value for name, value in os.environ.items() if name not in _RANKS}
    try:
        done = subprocess.run(
            [
                sys.executable,
                "-P",
                "-W",
                "ignore",
                "-c",
                "from nmsolve.checkpoint.meta_model import main; main()",
            ],
            input=json.dumps(
                [settings, {name: list(shape) for name, shape in shapes.items()}]
            ).encode(),
            capture_output=True,
            env=kept | _ALONE | {"PYTHONPATH": path},
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"{folder / CONFIG}: building its model, without weights, took more than {PATIENCE} "
            "seconds; if that file is right, pass the files of weights by themselves, in a folder "
            "without it"
        ) from error
    try:
        answer = json.loads(done.stdout)
        told = {name: Told(**fields) for name, fields in answer["told"].items()}
        return Answer(by=answer["by"], told=told) if answer["by"] else str(answer["why"])
    except (ValueError, KeyError, TypeError):
        return "its model could not be built"


def _library(settings: Mapping[str, Any]) -> str | None:
    """The library that has a configuration's model."""
    if isinstance(settings.get("model_type"), str) and _architecture(settings):
        return "transformers"
    return "timm" if isinstance(settings.get("architecture"), str) else None


def _architecture(settings: Mapping[str, Any]) -> str | None:
    named = settings.get("architectures")
    return (
        named[0]
        if isinstance(named, list) and len(named) == 1 and isinstance(named[0], str)
        else None
    )


def main() -> None:
    """Read a question from standard input, and write its answer to standard output."""
    settings, shapes = json.load(sys.stdin)
    answer: dict[str, Any] = {"by": None, "told": {}, "why": None}
    out = os.dup(1)
    os.dup2(2, 1)  # whatever libraries print is not part of the answer
    try:
        found = answer_of(settings, {name: tuple(shape) for name, shape in shapes.items()})
        answer |= {
            "by": found.by,
            "told": {name: asdict(told) for name, told in found.told.items()},
        }
    except Exception as error:  # whatever a library raises for a configuration that it cannot serve
        lines = str(error).strip().splitlines() or [""]
        answer["why"] = f"its model could not be built ({type(error).__name__}: {lines[0][:200]})"
    with os.fdopen(out, "w") as stream:
        json.dump(answer, stream)


def answer_of(settings: Mapping[str, Any], shapes: Shapes) -> Answer:
    """Return the answer of the model that a configuration describes; raise whatever the libraries
    do if they cannot build it.
    """
    import torch

    library = _library(settings)
    with torch.device("meta"):
        model = _of_timm(settings) if library == "timm" else _of_transformers(settings)
    by = f"{type(model).__name__} of {library} {version(library or '')}"
    return Answer(by=by, told=told_by(model, shapes))


def _of_transformers(settings: Mapping[str, Any]) -> Any:
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    name = _architecture(settings)
    kind: Any = getattr(transformers, str(name), None)
    if not issubclass(kind if isinstance(kind, type) else object, transformers.PreTrainedModel):
        raise LookupError(
            f"{name} is no model of transformers {transformers.__version__}; custom code is not run"
        )
    config = CONFIG_MAPPING[settings["model_type"]].from_dict(_served(settings))
    if kind.config_class is not None and not isinstance(config, kind.config_class):
        raise LookupError(
            f"{name} takes a {kind.config_class.__name__}, not a {type(config).__name__}"
        )
    return kind._from_config(config, attn_implementation="eager")


def _served(value: Any) -> Any:
    """A configuration without the settings that are ignored here, at any depth."""
    if isinstance(value, dict):
        return {
            key: key not in _REFUSED and _served(item)
            for key, item in value.items()
            if key not in _IGNORED
        }
    return [_served(item) for item in value] if isinstance(value, list) else value


def _of_timm(settings: Mapping[str, Any]) -> Any:
    import timm

    name = settings["architecture"].split(".")[0]
    if not timm.is_model(name):  # a place to load from, as its create_model takes too
        raise LookupError(f"{name} is no model of timm {timm.__version__}")
    given = settings.get("model_args") or {}
    arguments = {
        key: value
        for key, value in given.items()
        if not key.startswith(("pretrained", "checkpoint", "cache"))
    }
    if isinstance(settings.get("num_classes"), int):
        arguments.setdefault("num_classes", settings["num_classes"])
    return timm.create_model(name, pretrained=False, **arguments)


def told_by(model: Any, shapes: Shapes) -> dict[str, Told]:
    """Return what `nmsolve.torch.plan` says of a model's parameters, by the names that a
    checkpoint's tensors have on the disk.
    """
    planned = _planned(model)
    parameters = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    rename = _renaming(model)
    found: dict[str, Told] = {}
    for name, shape in shapes.items():
        renamed, targets, operations = rename(name)
        if operations is None:
            if parameters.get(renamed) == shape and renamed in planned:
                found[name] = planned[renamed]
        else:
            told = _converted(
                shape,
                [target for target in targets if target in planned],
                operations,
                planned,
                parameters,
                model,
            )
            if told is not None:
                found[name] = told
    return found


def _planned(model: Any) -> dict[str, Told]:
    """Every parameter with two axes or more, by each of its names, and what the plan says of it."""
    from nmsolve.torch.weights.layer_plan import PlannedWeight
    from nmsolve.torch.weights.planned import layout_of
    from nmsolve.torch.weights.planning import plan

    modules, by_module = dict(model.named_modules()), {}
    for layer in plan(model, "1:1"):  # which divides every shape: what is left are reasons of kind
        module = modules[layer.name]
        if isinstance(layer, PlannedWeight):
            layout = layout_of(layer, module)
            told = Told(axis=layer.axis, rows=layout.rows, depthwise=layout.is_depthwise)
        else:
            reason = str(layer.reason)
            told = Told(
                axis=None,
                reason=f"{reason} ({type(model).__name__})",
                firm=not reason.startswith(_UNKNOWN),
            )
        by_module[id(module), layer.parameter] = told
    found = {}
    for name, module in model.named_modules(
        remove_duplicate=False
    ):  # a shared module has several names
        for parameter, _ in module.named_parameters(recurse=False):
            if (id(module), parameter) in by_module:
                found[f"{name}.{parameter}".lstrip(".")] = by_module[id(module), parameter]
    return found


def _renaming(model: Any) -> Callable[[str], tuple[str, list[str], list[Any] | None]]:
    """The renaming that a loader does of a checkpoint's tensor: the name, all names that it
    becomes, and what is done to it on the way.
    """
    state = model.state_dict()
    prefix = getattr(model, "base_model_prefix", None)
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            rename_source_key,
        )
    except (
        ImportError
    ):  # timm without transformers, or a transformers that renames nothing but its prefixes

        def plain(name: str) -> tuple[str, list[str], list[Any] | None]:
            short = name.removeprefix(f"{prefix}.")
            return (
                next((n for n in (name, f"{prefix}.{name}", short) if n in state), name),
                [],
                None,
            )

        return plain
    if prefix is None:
        return lambda name: (name, [], None)
    transforms = get_model_conversion_mapping(model)
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    by_pattern = {
        pattern: converter for converter in converters for pattern in converter.source_patterns
    }

    def rename(name: str) -> tuple[str, list[str], list[Any] | None]:
        renamed, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if renamed not in state and name in state:
            renamed, pattern = rename_source_key(name, [], [], prefix, state)
        if pattern is None:
            return renamed, [], None
        converter = by_pattern[pattern]
        first, *others = converter.target_patterns
        return (
            renamed,
            [renamed, *(renamed.replace(first, other) for other in others)],
            list(converter.operations),
        )

    return rename


def _converted(
    shape: tuple[int, ...],
    targets: list[str],
    operations: list[Any],
    planned: Mapping[str, Told],
    parameters: Shapes,
    model: Any,
) -> Told | None:
    """A model's word on a tensor that is cut, joined or rearranged on loading; None: it has none,
    and names must do.
    """
    if not targets:
        return None
    steps = [(type(step).__name__, getattr(step, "dim", None)) for step in operations]
    kinds = {kind for kind, _ in steps}
    told = [planned[target] for target in targets]
    if kinds <= _MERGES and "Concatenate" not in steps[0] and len(shape) == 2:
        module = model.get_submodule(targets[0].rpartition(".")[0])
        if len(parameters[targets[0]]) == 3 and getattr(module, "is_transposed", None) is False:
            return Told(
                axis=1, rows=shape[0]
            )  # (experts, out, in), stacked of one matrix (out, in) per expert
        return None
    dense = next((entry for entry in told if entry.axis is None), None)
    if dense is not None:
        return dense
    if any(entry.axis != 1 for entry in told) or not all(
        kind == "PermuteForRope"
        or (kind in ("Chunk", "Split", "Concatenate", "Interleave") and dim == 0)
        for kind, dim in steps
    ):
        return Told(
            axis=None,
            reason=f"rearranged on loading: {', '.join(kind for kind, _ in steps)}",
            firm=True,
        )
    rows = math.gcd(*(parameters[target][0] for target in targets), *(entry.rows for entry in told))
    if kinds & {"PermuteForRope", "Interleave"}:
        rows = 1
    elif "Concatenate" in kinds:
        rows = math.gcd(rows, shape[0])
    return Told(axis=1, rows=rows, depthwise=any(entry.depthwise for entry in told))
