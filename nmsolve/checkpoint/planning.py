"""The plan of a checkpoint: which tensors get which pattern, and why the others get none.

A checkpoint knows names and shapes, not modules. Where its config.json names a model that an
installed library has, that model is asked (`meta_model`); elsewhere a closed world of names says
what is a weight of a product (`names`). What neither knows stays dense, and the reason says so.
`docs/checkpoints.md` lists the rules.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nmsolve.checkpoint.folders import CONFIG
from nmsolve.checkpoint.meta_model import Answer, Told, ask
from nmsolve.checkpoint.names import Names
from nmsolve.checkpoint.scales import Companions
from nmsolve.checkpoint.stored import UNSOLVED, Stored, StoredNumbers, WeightFile
from nmsolve.checkpoint.ties import untie
from nmsolve.geometry import DEPTHWISE, Geometry, other_axis
from nmsolve.pattern import Pattern
from nmsolve.selection import Selection

#: That NumPy has, less one: solving needs a view with one more.
MOST_AXES = 63
#: What says that a folder holds an adapter of a model, not a model.
ADAPTER = "adapter_config.json"
_OF_ADAPTER = (
    f"of an adapter ({ADAPTER}), which is added to a model's weights: merge it (PEFT's "
    "merge_and_unload), and prune what that gives"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlan:
    """A tensor and what is planned for it: a `PlannedTensor` or a `SkippedTensor`.

    Attributes
    ----------
    file : str
        The file that it is in.
    tensor : Stored
    pattern : Pattern or None
        None where it stays dense.
    axis : int or None
        The axis that groups lie along.
    padding : str or None
        As `nmsolve.solve` takes it.
    reason : str or None
        Why it stays dense.
    note : str or None
        Where it was read off what a tensor is, if config.json was asked.
    """

    file: str
    tensor: Stored
    pattern: Pattern | None
    axis: int | None
    padding: str | None
    reason: str | None
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTensor(TensorPlan):
    """A tensor that gets a mask.

    Attributes
    ----------
    tensor : StoredNumbers
    pattern : Pattern
    axis : int
    padding : str
    reason : None
    file, note
        As of every `TensorPlan`.
    """

    tensor: StoredNumbers
    pattern: Pattern
    axis: int
    padding: str
    reason: None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedTensor(TensorPlan):
    """A tensor that stays dense.

    Attributes
    ----------
    pattern, axis, padding : None
    reason : str
    file, tensor, note
        As of every `TensorPlan`.
    """

    reason: str
    pattern: None = None
    axis: None = None
    padding: None = None


def plan_tensors(files: Sequence[WeightFile], selection: Selection) -> tuple[TensorPlan, ...]:
    """Return one entry for each tensor, in the order of the files and of the tensors in them.

    Raises
    ------
    InputError
        For a glob that matches nothing, and with padding="error" for a shape that does not divide.
    """
    selection.check_used([tensor.name for file in files for tensor in file.tensors], "checkpoint")
    companions = Companions(
        {tensor.name: tensor.shape for file in files for tensor in file.tensors}
    )
    folders = _folders(files)
    plans = [
        _decide(file, tensor, selection, folders[file.path.parent], companions)
        for file in files
        for tensor in file.tensors
    ]
    tied = untie(
        files,
        {plan.tensor.name for plan in plans if plan.pattern is not None},
        {
            plan.tensor.name: plan.reason
            for plan in plans
            if plan.reason is not None and len(plan.tensor.shape) > 1
        },
        {
            tensor.name
            for file in files
            if folders[file.path.parent].tied
            for tensor in file.tensors
        },
    )
    return tuple(
        SkippedTensor(
            file=plan.file, tensor=plan.tensor, reason=tied[plan.tensor.name], note=plan.note
        )
        if plan.tensor.name in tied
        else plan
        for plan in plans
    )


def _decide(
    file: WeightFile,
    tensor: Stored,
    selection: Selection,
    folder: _Folder,
    companions: Companions,
) -> TensorPlan:
    """Decide about a tensor by itself: the reasons why one is skipped, in their order. What tensors
    that are stored twice get, `untie` says afterwards (`ties.py`).
    """

    def skipped(reason: str) -> SkippedTensor:
        return SkippedTensor(file=file.name, tensor=tensor, reason=reason, note=folder.note)

    pattern = selection.choose(tensor.name)
    if isinstance(pattern, str):
        return skipped(pattern)
    numbers = _solvable(tensor)
    if isinstance(numbers, str):
        return skipped(numbers)
    axis = _axis(numbers, file.arrays, selection.names(tensor.name), folder, pattern)
    if isinstance(axis, str):
        return skipped(axis)
    reason = companions.reason(tensor, axis, other_axis(axis), pattern)
    if reason is not None:
        return skipped(reason)
    reason = Geometry(tensor.shape, axis).unfit(pattern, selection.padding)
    if reason is not None:
        subject = f"{file.path}: tensor {tensor.name!r}"
        selection.refuse(subject, tensor.shape, pattern, reason)
        return skipped(reason)
    return PlannedTensor(
        file=file.name,
        tensor=numbers,
        pattern=pattern,
        axis=axis,
        padding=selection.solver_padding,
        note=folder.note,
    )


@dataclass(frozen=True, slots=True)
class _Folder:
    """Facts of the tensors of one folder.

    Attributes
    ----------
    shapes : mapping of str to tuple of int
    names : Names
    told : mapping of str to Told
        By name, what their model says.
    tied : bool
        Whether their configuration ties the head to the embedding.
    adapter : bool
        Whether they are of an adapter.
    note : str or None
        How the model was asked.
    """

    shapes: Mapping[str, tuple[int, ...]]
    names: Names
    told: Mapping[str, Told]
    tied: bool
    adapter: bool
    note: str | None


def _folders(files: Sequence[WeightFile]) -> dict[Path, _Folder]:
    """Facts of the folders that files are in."""
    inside: dict[Path, dict[str, tuple[int, ...]]] = {}
    for file in files:
        of_folder = inside.setdefault(file.path.parent, {})
        if not file.arrays:
            of_folder.update({tensor.local: tensor.shape for tensor in file.tensors})
    found = {}
    for folder, shapes in inside.items():
        settings = _settings(folder) if shapes else None
        answer = ask(folder, settings, shapes) if settings is not None else None
        note = None
        if isinstance(answer, Answer):
            rest = sum(len(shape) > 1 and name not in answer.told for name, shape in shapes.items())
            note = (
                f"{folder / CONFIG}: which tensors are weights of products is what the modules "
                f"of {answer.by} say"
            )
            note += (
                f"; of {rest} that it does not have, or not as they are, their names"
                if rest
                else ""
            )
        elif answer is not None:
            note = (
                f"{folder / CONFIG}: which tensors are weights of products is read off their "
                f"names, since {answer}"
            )
        told = answer.told if isinstance(answer, Answer) else {}
        tied = _tied(settings) and not isinstance(answer, Answer)  # a model knows what it ties
        found[folder] = _Folder(
            shapes, Names(shapes), told, tied, (folder / ADAPTER).exists(), note
        )
    return found


def _settings(folder: Path) -> dict[str, Any] | None:
    """The contents of config.json; None if there is none, or none that can be read."""
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return settings if isinstance(settings, dict) else None


def _tied(settings: Mapping[str, Any] | None) -> bool:
    """Return whether a configuration says that a head and an embedding are one tensor."""
    inner = [value for value in (settings or {}).values() if isinstance(value, dict)]
    return any(part.get("tie_word_embeddings") is True for part in (settings or {}, *inner))


def _solvable(tensor: Stored) -> StoredNumbers | str:
    """The tensor, as one that masks are solved for; or why they are not, whatever its use."""
    if len(tensor.shape) < 2:
        return "fewer than two axes"
    if 0 in tensor.shape:
        return "it has no element"
    if len(tensor.shape) > MOST_AXES:
        return f"more than {MOST_AXES} axes"
    if not isinstance(tensor, StoredNumbers):
        return f"dtype {tensor.dtype} is not solved{UNSOLVED.get(tensor.dtype, '')}"
    return tensor


def _axis(
    tensor: Stored, array: bool, by_name: bool, folder: _Folder, pattern: Pattern
) -> int | str:
    """The axis that groups lie along; or why a tensor cannot have a pattern, whatever its shape.

    by_name : whether the user named this very tensor, so that what its name suggests does not
    count.
    """
    shape, name = tensor.shape, tensor.local
    if array:
        return len(shape) - 1
    form = _OF_ADAPTER if folder.adapter else folder.names.form(name)
    if form is not None:
        return form
    told = folder.told.get(name)
    if told is not None and (told.axis is not None or told.firm or not by_name):
        return by_model(told, pattern)
    return (
        folder.names.named_axis(name, pattern.transposable)
        if by_name
        else by_names(folder.names, name, shape, pattern)
    )


def by_model(told: Told, pattern: Pattern) -> int | str:
    """Return the axis that a model tells, or why there is none for a pattern; shapes that do not
    divide apart.
    """
    if told.axis is None:
        return str(told.reason)
    return told.reason or told.unfit(pattern) or told.axis


def by_names(names: Names, name: str, shape: tuple[int, ...], pattern: Pattern) -> int | str:
    """Return the axis that names tell, or why there is none for a pattern; shapes that do not
    divide apart.
    """
    reason = names.form(name)
    if reason is not None:
        return reason
    axis = names.axis(name)
    if isinstance(axis, int) and len(shape) > 2 and shape[1] == 1 and pattern.m > 1:
        return DEPTHWISE
    return axis
