"""Which tensors of a checkpoint get which pattern, and why the others get none.

A checkpoint knows names and shapes, not modules. Where its config.json names a model that an
installed library has, that model is asked (`meta_model`); elsewhere a closed world of names says
what is a weight of a product (`names`). What neither knows stays dense, and the reason says so.
`docs/checkpoints.md` lists the rules.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nmsolve.checkpoint.folders import CONFIG
from nmsolve.checkpoint.meta_model import DEPTHWISE, Answer, Told, ask
from nmsolve.checkpoint.names import Names
from nmsolve.checkpoint.scales import Companions
from nmsolve.checkpoint.stored import UNSOLVED, Stored, WeightFile
from nmsolve.checkpoint.ties import untie
from nmsolve.errors import InputError
from nmsolve.pattern import Pattern
from nmsolve.selection import Patterns, check_used, matches, to_globs, to_patterns, unchosen

PADDINGS = ("skip", "error", "pad", "dense")
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
    """What is planned for a tensor: a pattern with groups along an axis, or None and the reason.

    note : where it was read off what a tensor is, if config.json was asked.
    """

    file: str
    tensor: Stored
    pattern: Pattern | None
    axis: int | None
    padding: str | None
    reason: str | None
    note: str | None = None


def plan_tensors(
    files: Sequence[WeightFile],
    pattern: Patterns,
    include: str | Iterable[str] | None,
    exclude: str | Iterable[str],
    padding: str,
) -> tuple[TensorPlan, ...]:
    """One entry a tensor, in the order of the files and of the tensors in them.

    Raises
    ------
    PatternError, InputError
        For a pattern or option that does not exist, a glob that matches nothing, with
        padding="error" a shape that does not divide.
    """
    if padding not in PADDINGS:
        raise InputError(
            f"padding must be one of {', '.join(map(repr, PADDINGS))}, got {padding!r}"
        )
    patterns = to_patterns(pattern)
    included, excluded = (
        None if include is None else to_globs(include, "include"),
        to_globs(exclude, "exclude"),
    )
    names = [tensor.name for file in files for tensor in file.tensors]
    used = {
        "include": included or (),
        "exclude": excluded,
        "pattern": pattern if isinstance(pattern, Mapping) else (),
    }
    for argument, globs in used.items():
        check_used(globs, names, argument, "checkpoint")
    companions = Companions(
        {tensor.name: tensor.shape for file in files for tensor in file.tensors}
    )
    folders = _folders(files)
    plans = []
    for file in files:
        folder = folders[file.path.parent]
        for tensor in file.tensors:
            glob = next((glob for glob in patterns if matches(tensor.name, glob)), None)
            chosen = None if glob is None else patterns[glob]
            reason = unchosen(tensor.name, included, excluded)
            axis: int | None = None
            if reason is None and chosen is None:
                reason = (
                    "no pattern is given for it"
                    if glob is None
                    else f"kept dense by the pattern of {glob!r}"
                )
            if reason is None:
                assert chosen is not None
                by_name = tensor.name in (included or ()) or (
                    isinstance(pattern, Mapping) and tensor.name in pattern
                )
                axis, reason = _axis(tensor, file.arrays, by_name, folder, chosen)
            if reason is None:
                assert chosen is not None
                assert axis is not None
                reason = companions.reason(tensor, axis, other_axis(axis), chosen)
            if reason is None:
                assert chosen is not None
                assert axis is not None
                reason = indivisible(tensor.shape, axis, chosen, padding)
                if reason is not None and padding == "error":
                    raise InputError(
                        f"{file.path}: tensor {tensor.name!r} of shape {tensor.shape}, pattern "
                        f"{chosen}: {reason}; exclude it, or choose another padding"
                    )
            plans.append(
                TensorPlan(
                    file=file.name,
                    tensor=tensor,
                    pattern=None if reason else chosen,
                    axis=None if reason else axis,
                    padding=None if reason else ("error" if padding == "skip" else padding),
                    reason=reason,
                    note=folder.note,
                )
            )
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
        replace(plan, pattern=None, axis=None, padding=None, reason=tied[plan.tensor.name])
        if plan.tensor.name in tied
        else plan
        for plan in plans
    )


def other_axis(axis: int) -> int:
    """The axis that, with the one that groups lie along, spans a weight's matrices."""
    return axis - 1 if axis else 1


@dataclass(frozen=True, slots=True)
class _Folder:
    """What is known of the tensors of one folder.

    told : what their model says, by name. tied : whether their configuration ties the head to the
    embedding. adapter : whether they are of an adapter. note : how the model was asked.
    """

    shapes: Mapping[str, tuple[int, ...]]
    names: Names
    told: Mapping[str, Told]
    tied: bool
    adapter: bool
    note: str | None


def _folders(files: Sequence[WeightFile]) -> dict[Path, _Folder]:
    """What is known of the folders that files are in."""
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
    """What config.json says; None if there is none, or none that can be read."""
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return settings if isinstance(settings, dict) else None


def _tied(settings: Mapping[str, Any] | None) -> bool:
    """Whether a configuration says that a head and an embedding are one tensor."""
    inner = [value for value in (settings or {}).values() if isinstance(value, dict)]
    return any(part.get("tie_word_embeddings") is True for part in (settings or {}, *inner))


def _axis(
    tensor: Stored, array: bool, by_name: bool, folder: _Folder, pattern: Pattern
) -> tuple[int | None, str | None]:
    """The axis that groups lie along; or None, and why a tensor cannot have a pattern.

    by_name : whether the user named this very tensor, so that what its name suggests does not
    count.
    """
    shape, name = tensor.shape, tensor.local
    if len(shape) < 2:
        return None, "fewer than two axes"
    if 0 in shape:
        return None, "it has no element"
    if len(shape) > MOST_AXES:
        return None, f"more than {MOST_AXES} axes"
    if tensor.element is None:
        return None, f"dtype {tensor.dtype} is not solved{UNSOLVED.get(tensor.dtype, '')}"
    if array:
        return len(shape) - 1, None
    form = _OF_ADAPTER if folder.adapter else folder.names.form(name)
    if form is not None:
        return None, form
    told = folder.told.get(name)
    if told is not None and (told.axis is not None or told.firm or not by_name):
        return by_model(told, pattern)
    return (
        folder.names.named_axis(name, pattern.transposable)
        if by_name
        else by_names(folder.names, name, shape, pattern)
    )


def by_model(told: Told, pattern: Pattern) -> tuple[int | None, str | None]:
    """The axis that a model tells, or why there is none for a pattern; shapes that do not divide
    apart.
    """
    return told.axis, told.reason or told.unfit(pattern)


def by_names(
    names: Names, name: str, shape: tuple[int, ...], pattern: Pattern
) -> tuple[int | None, str | None]:
    """The axis that names tell, or why there is none for a pattern; shapes that do not divide
    apart.
    """
    reason = names.form(name)
    if reason is not None:
        return None, reason
    axis, reason = names.axis(name)
    if reason is None and len(shape) > 2 and shape[1] == 1 and pattern.m > 1:
        reason = DEPTHWISE
    return axis, reason


def indivisible(shape: tuple[int, ...], axis: int, pattern: Pattern, padding: str) -> str | None:
    """Why a shape does not hold a pattern."""
    m, columns, rows = pattern.m, shape[axis], shape[other_axis(axis)]
    unit = "block" if pattern.transposable else "group"
    if padding in ("pad", "dense"):
        if padding == "dense" and (columns < m or rows < pattern.rows):
            return f"smaller than one {unit} of {m}"
        return None
    if columns % m:
        return f"its axis {axis} does not consist of {unit}s of {m}"
    if rows % pattern.rows:
        return f"its axis {other_axis(axis)} does not consist of {unit}s of {m}"
    return None
