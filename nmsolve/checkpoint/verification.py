"""`verify`: whether the weights of a checkpoint hold their patterns, counted anew from the
files.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsolve.checkpoint.folders import holds_weights
from nmsolve.checkpoint.masks import Masks, mask_files, open_masks
from nmsolve.checkpoint.names import UNKNOWN
from nmsolve.checkpoint.planning import indivisible, plan_tensors
from nmsolve.checkpoint.solving import as_matrices
from nmsolve.checkpoint.source import Source, read_source
from nmsolve.checkpoint.stored import Stored, WeightFile, allocate
from nmsolve.checkpoint.summary import PruneReport
from nmsolve.checkpoint.target import Target
from nmsolve.elements import nonzero
from nmsolve.errors import InputError
from nmsolve.feasibility import Report
from nmsolve.feasibility import verify as verify_array
from nmsolve.pattern import Pattern
from nmsolve.selection import Patterns, to_patterns
from nmsolve.table import table


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorCheck:
    """What was found about one tensor.

    report : of its groups; None where none was asked for, and reason says why. strays : weights
    that are not zero where its mask drops them; None where no mask was looked at.
    """

    file: str
    name: str
    shape: tuple[int, ...]
    pattern: Pattern | None
    report: Report | None
    reason: str | None
    strays: int | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong with it."""
        return (self.report is None or self.report.ok) and not self.strays

    @property
    def finding(self) -> str:
        """In words."""
        if self.report is None:
            return f"not checked: {self.reason}"
        strays = (
            f"{self.strays:,} weights are not zero where the mask drops them" if self.strays else ""
        )
        if self.report.ok:
            return strays or "holds"
        place, kept = self.report.first or ((), 0)
        wrong = (
            f"violated in {self.report.violations:,} of {self.report.groups:,} groups; the "
            f"first, at {list(place)}, keeps {kept}"
        )
        return f"{wrong}; {strays}" if strays else wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What `verify` found, tensor by tensor. True in a condition if nothing is wrong. Prints as a
    table, without vectors.
    """

    tensors: tuple[TensorCheck, ...]

    @property
    def ok(self) -> bool:
        """Whether no group of any tensor violates its pattern, and no weight its mask."""
        return all(tensor.ok for tensor in self.tensors)

    @property
    def checked(self) -> tuple[TensorCheck, ...]:
        """The tensors that a pattern was asked of."""
        return tuple(tensor for tensor in self.tensors if tensor.report is not None)

    def __bool__(self) -> bool:
        return self.ok

    def __iter__(self) -> Iterator[TensorCheck]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __str__(self) -> str:
        rows = [
            (
                t.name,
                "×".join(map(str, t.shape)),
                str(t.pattern or "-"),
                "-" if t.report is None else f"{t.report.density:.4f}",
                t.finding,
            )
            for t in self.tensors
            if len(t.shape) > 1
        ]
        wrong = [t.name for t in self.tensors if not t.ok]
        last = f"{len(self.checked)} of {len(self)} tensors checked: " + (
            f"{len(wrong)} of them violated: {', '.join(wrong)}" if wrong else "all hold"
        )
        unknown = [
            t.name
            for t in self.tensors
            if len(t.shape) > 1 and t.report is None and UNKNOWN in t.finding
        ]
        if unknown:
            more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
            last += (
                "\nnot checked, though they may be weights that should hold a pattern: "
                f"{', '.join(unknown[:3])}{more}"
            )
        return f"{table(('tensor', 'shape', 'pattern', 'density', 'finding'), rows, {3})}\n{last}"


def verify(
    path: str | os.PathLike[str],
    pattern: Patterns | None = None,
    *,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] = (),
    padding: str = "skip",
) -> Verification:
    """Whether the weights of a checkpoint hold a pattern, or their masks.

    Parameters
    ----------
    path : path
        A checkpoint, pruned by whatever, or a file of masks.
    pattern : Pattern, str, or mapping of globs to patterns, optional
        What is asked of the weights that `prune` would prune with the same arguments: at most n
        nonzero in every group. Without it, the masks beside the checkpoint say: each must keep
        exactly n (or hold its at-most pattern), and what it drops must be zero.
    include, exclude, padding
        As for `prune`.

    Returns
    -------
    Verification

    Raises
    ------
    InputError, PatternError
        For a checkpoint or masks that are damaged, options that do not exist, no pattern and no
        masks, nothing to check; where masks are checked, for a tensor that a report beside them
        calls pruned, and whose mask is gone.

    Notes
    -----
    Trusts no report beyond which tensors should have masks: every group is counted, in plain NumPy.
    """
    found = _verify(Path(path), pattern, include, exclude, padding)
    if not found.checked:
        reasons = Counter(check.reason for check in found)
        listed = (
            "; ".join(f"{reason} ({count} tensors)" for reason, count in reasons.most_common(4))
            or "it holds none"
        )
        raise InputError(f"no tensor of {path} can be checked: {listed}")
    return found


def _verify(
    path: Path,
    pattern: Patterns | None,
    include: str | Iterable[str] | None,
    exclude: str | Iterable[str],
    padding: str,
) -> Verification:
    masks_alone = path.is_dir() and mask_files(path) and not holds_weights(path)
    masks_alone = masks_alone or (path.is_file() and mask_files(path) == [path])
    if (include or exclude) and (masks_alone or pattern is None):
        raise InputError(
            f"{path} is checked against its masks, every one: include and exclude choose where a "
            "pattern is asked for"
        )
    if masks_alone:
        masks = open_masks(path)
        _check_complete(
            Target(path=path, folder=path.is_dir(), weights_too=False).report, masks, None
        )
        return _verify_masks_alone(masks, pattern)
    source = read_source(path)
    if pattern is None:
        if not mask_files(path):
            raise InputError(
                f"{path} has no masks beside it that would say which pattern it is to hold: name "
                "one, such as 2:4T (--pattern 2:4T)"
            )
        return _verify_against(source, open_masks(path))
    files = {file.name: file for file in source.files}
    checks = []
    for plan in plan_tensors(source.files, pattern, include, exclude, padding):
        tensor, report = plan.tensor, None
        if plan.pattern is not None:
            assert plan.axis is not None
            array = read_tensor(files[plan.file], tensor)
            report = verify_array(
                as_matrices(array, plan.axis), plan.pattern, padding=plan.padding or "error"
            )
        checks.append(
            TensorCheck(
                file=plan.file,
                name=tensor.name,
                shape=tensor.shape,
                pattern=plan.pattern,
                report=report,
                reason=plan.reason,
            )
        )
    return Verification(tensors=tuple(checks))


def read_tensor(file: WeightFile, tensor: Stored) -> NDArray[Any]:
    """A whole tensor."""
    buffer = allocate(tensor.size, file.path, tensor.name)
    file.read(tensor, buffer)
    return tensor.view(buffer)


def _verify_masks_alone(masks: Masks, pattern: Patterns | None) -> Verification:
    asked = None if pattern is None else to_patterns(pattern)
    if asked is not None and (set(asked) != {"*"} or asked["*"] is None):
        raise InputError(
            "a file of masks is checked against one pattern, or the ones that it names itself"
        )
    checks = []
    for name, entry in masks.described.items():
        chosen = entry.pattern if asked is None else asked["*"]
        assert chosen is not None
        reason = indivisible(entry.shape, entry.axis, chosen, entry.padding)
        report = (
            None
            if reason
            else verify_array(as_matrices(masks[name], entry.axis), chosen, padding=entry.padding)
        )
        checks.append(
            TensorCheck(
                file=entry.file.name,
                name=name,
                shape=entry.shape,
                pattern=chosen,
                report=report,
                reason=reason,
            )
        )
    return Verification(tensors=tuple(checks))


def check_masks(source: Source, masks: Masks) -> None:
    """Raise InputError for masks that are not of this checkpoint's tensors."""
    tensors = {tensor.name: tensor for file in source.files for tensor in file.tensors}
    for name, entry in masks.described.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise InputError(
                f"{source.path} does not hold tensor {name!r}, for which there is a mask in "
                f"{entry.file.path}"
            )
        if entry.shape != tensor.shape or tensor.element is None:
            raise InputError(
                f"{source.path}: tensor {name!r} is {tensor.dtype} {tensor.shape}, and its mask in "
                f"{entry.file.path} has shape {entry.shape}"
            )


def _check_complete(report: Path, masks: Masks, tensors: Collection[str] | None) -> None:
    """Raise InputError if a report calls tensors pruned (of these alone, if any are given) that
    have no mask.

    A file of masks that is gone leaves no other trace. A report that cannot be read says nothing,
    and none has to be there.
    """
    if not report.is_file():
        return
    try:
        pruned = [tensor.name for tensor in PruneReport.read(report).pruned]
    except InputError:
        return
    gone = [name for name in pruned if name not in masks and (tensors is None or name in tensors)]
    if gone:
        shown = ", ".join(map(repr, gone[:3])) + (", …" if len(gone) > 3 else "")
        count = (
            "a tensor pruned that has"
            if len(gone) == 1
            else f"{len(gone)} tensors pruned that have"
        )
        asked = (
            ""
            if tensors is None
            else ", or name the pattern that the weights are to hold, such as 2:4T (--pattern 2:4T)"
        )
        raise InputError(
            f"{report} calls {count} no mask now: {shown}; put the masks back, or make them "
            f"again{asked}"
        )


def _verify_against(source: Source, masks: Masks) -> Verification:
    check_masks(source, masks)
    names = {tensor.name for file in source.files for tensor in file.tensors}
    _check_complete(
        Target(path=source.path, folder=source.folder, weights_too=True).report, masks, names
    )
    checks = []
    for file in source.files:
        for tensor in file.tensors:
            shared: dict[str, Any] = {"file": file.name, "name": tensor.name, "shape": tensor.shape}
            entry = masks.described.get(tensor.name)
            if entry is None:
                checks.append(
                    TensorCheck(**shared, pattern=None, report=None, reason="it has no mask")
                )
                continue
            mask, array = masks[tensor.name], read_tensor(file, tensor)
            report = verify_array(
                as_matrices(mask, entry.axis), entry.pattern, padding=entry.padding
            )
            strays = int(np.count_nonzero(nonzero(array) & ~mask))
            checks.append(
                TensorCheck(
                    **shared, pattern=entry.pattern, report=report, reason=None, strays=strays
                )
            )
    return Verification(tensors=tuple(checks))
