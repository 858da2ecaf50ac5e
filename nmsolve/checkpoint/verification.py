"""`verify`: every group of a checkpoint's weights, or of its masks, counted from the files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nmsolve.checkpoint.folders import holds_weights
from nmsolve.checkpoint.masks import Described, Masks, check_masks, mask_files, open_masks
from nmsolve.checkpoint.names import UNKNOWN
from nmsolve.checkpoint.places import Places
from nmsolve.checkpoint.planning import PlannedTensor, plan_tensors
from nmsolve.checkpoint.report_file import read_report
from nmsolve.checkpoint.source import Source, read_source
from nmsolve.checkpoint.stored import StoredNumbers
from nmsolve.elements import nonzero
from nmsolve.errors import InputError
from nmsolve.feasibility import Report
from nmsolve.feasibility import verify as verify_array
from nmsolve.geometry import Geometry, as_matrices
from nmsolve.pattern import Pattern
from nmsolve.selection import Patterns, Selection
from nmsolve.table import extent, table


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorCheck:
    """The finding about one tensor.

    Attributes
    ----------
    file : str
        Its file's name in the checkpoint.
    name : str
    shape : tuple of int
    pattern : Pattern, optional
        What was asked of it; None where nothing was.
    report : Report, optional
        Of its groups, as `nmsolve.verify` returns it; None where they were not counted.
    reason : str, optional
        Why they were not.
    strays : int, optional
        How many weights are not zero where its mask drops them; None where no mask was looked at.
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
        """True if nothing is wrong with it."""
        return (self.report is None or self.report.ok) and not self.strays

    @property
    def finding(self) -> str:
        """The finding in words."""
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
    """The findings of `verify`, tensor by tensor.

    True in a condition if nothing is wrong. Prints as a table, without vectors.

    Attributes
    ----------
    tensors : tuple of TensorCheck
        In the checkpoint's order.
    """

    tensors: tuple[TensorCheck, ...]

    @property
    def ok(self) -> bool:
        """True if no group of any tensor violates its pattern, and no weight its mask."""
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
                extent(t.shape),
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
    """Verify that the weights of a checkpoint hold a pattern, or their masks.

    Parameters
    ----------
    path : path
        A checkpoint, pruned by whatever, or a file of masks.
    pattern : Pattern, str, or mapping of str to Pattern or str, optional
        What is asked of the weights that `prune` would prune with the same arguments: at most n
        nonzero in every group. Without it, the masks beside the checkpoint say: each must keep
        exactly n (or hold its at-most pattern), and what it drops must be zero.
    include, exclude, padding
        As for `prune`.

    Returns
    -------
    Verification
        `.ok`, and a `TensorCheck` for each tensor.

    Raises
    ------
    InputError, PatternError
        For a checkpoint or masks that are damaged, options that do not exist, no pattern and no
        masks, nothing to check; where masks are checked, for a tensor that a report beside them
        calls pruned, and whose mask is gone.
    OSError
        If the system refuses to read.
    MissingDependencyError
        If safetensors is not installed.

    Notes
    -----
    Trusts no report beyond which tensors should have masks: every group is counted, in plain NumPy.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> folder = tempfile.TemporaryDirectory()
    >>> np.savez(f"{folder.name}/w.npz", a=np.eye(4), b=np.ones((4, 4)))
    >>> print(verify(f"{folder.name}/w.npz", "2:4T"))
    tensor  shape  pattern  density  finding
    a       4×4    2:4T      0.2500  holds
    b       4×4    2:4T      1.0000  violated in 8 of 8 groups; the first, at [0, 0], keeps 4
    2 of 2 tensors checked: 1 of them violated: b
    >>> folder.cleanup()
    """
    selection = None if pattern is None else Selection.of(pattern, include, exclude, padding)
    found = Verification(tensors=tuple(_checks(Path(path), selection, bool(include or exclude))))
    if not found.checked:
        reasons = Counter(check.reason for check in found)
        listed = (
            "; ".join(f"{reason} ({count} tensors)" for reason, count in reasons.most_common(4))
            or "it holds none"
        )
        raise InputError(f"no tensor of {path} can be checked: {listed}")
    return found


def _checks(path: Path, selection: Selection | None, some_only: bool) -> Iterator[TensorCheck]:
    """Check masks alone, weights against a pattern, or weights against the masks beside them.

    some_only : whether the user chose among the weights.
    """
    files = mask_files(path)
    masks_alone = bool(files) and not holds_weights(path) if path.is_dir() else files == [path]
    if some_only and (masks_alone or selection is None):
        raise InputError(
            f"{path} is checked against its masks, every one: include and exclude choose where a "
            "pattern is asked for"
        )
    if masks_alone:
        masks = open_masks(path)
        report = Places(path=path, folder=path.is_dir(), weights_too=False).report
        _check_complete(report, masks, None)
        return _checks_of_masks(masks, None if selection is None else _only_pattern(selection))
    source = read_source(path)
    if selection is not None:
        return _checks_of_weights(source, selection)
    if not files:
        raise InputError(
            f"{path} has no masks beside it that would say which pattern it is to hold: name one, "
            "such as pattern='2:4T'"
        )
    return _checks_against(source, open_masks(path))


def _only_pattern(selection: Selection) -> Pattern:
    """Return the one pattern that is asked for."""
    pattern = selection.patterns.get("*")
    if set(selection.patterns) != {"*"} or pattern is None:
        raise InputError(
            "a file of masks is checked against one pattern, or the ones that it names itself"
        )
    return pattern


def _checks_of_weights(source: Source, selection: Selection) -> Iterator[TensorCheck]:
    """Check the weights that would be pruned against their patterns."""
    files = {file.name: file for file in source.files}
    for plan in plan_tensors(source.files, selection):
        report = None
        if isinstance(plan, PlannedTensor):
            matrices = as_matrices(files[plan.file].array(plan.tensor), plan.axis)
            report = verify_array(matrices, plan.pattern, padding=plan.padding)
        yield TensorCheck(
            file=plan.file,
            name=plan.tensor.name,
            shape=plan.tensor.shape,
            pattern=plan.pattern,
            report=report,
            reason=plan.reason,
        )


def _checks_of_masks(masks: Masks, pattern: Pattern | None) -> Iterator[TensorCheck]:
    """Check masks against one pattern, or each against its own."""
    for name, entry in masks.described.items():
        chosen = pattern or entry.pattern
        reason = Geometry(entry.shape, entry.axis).unfit(chosen, entry.padding)
        yield TensorCheck(
            file=entry.file.name,
            name=name,
            shape=entry.shape,
            pattern=chosen,
            report=None if reason else _report_on(masks[name], entry, chosen),
            reason=reason,
        )


def _checks_against(source: Source, masks: Masks) -> Iterator[TensorCheck]:
    """Check masks against their own patterns, and weights against them."""
    check_masks(source, masks)
    names = {tensor.name for file in source.files for tensor in file.tensors}
    _check_complete(Places(path=source.path, folder=source.folder).report, masks, names)
    for file in source.files:
        for tensor in file.tensors:
            entry = masks.described.get(tensor.name)
            if entry is None or not isinstance(tensor, StoredNumbers):
                yield TensorCheck(
                    file=file.name,
                    name=tensor.name,
                    shape=tensor.shape,
                    pattern=None,
                    report=None,
                    reason="it has no mask",
                )
                continue
            mask = masks[tensor.name]
            strays = nonzero(file.array(tensor)) & ~mask
            yield TensorCheck(
                file=file.name,
                name=tensor.name,
                shape=tensor.shape,
                pattern=entry.pattern,
                report=_report_on(mask, entry, entry.pattern),
                reason=None,
                strays=int(np.count_nonzero(strays)),
            )


def _report_on(mask: NDArray[np.bool_], entry: Described, pattern: Pattern) -> Report:
    """Count the groups of a mask."""
    return verify_array(as_matrices(mask, entry.axis), pattern, padding=entry.padding)


def _check_complete(report: Path, masks: Masks, tensors: Collection[str] | None) -> None:
    """Raise InputError if a report calls tensors pruned (of these alone, if any are given) that
    have no mask.

    A file of masks that is gone leaves no other trace. A report that cannot be read says nothing,
    and none has to be there.
    """
    if not report.is_file():
        return
    try:
        pruned = [tensor.name for tensor in read_report(report).pruned]
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
            else ", or name the pattern that the weights are to hold, such as pattern='2:4T'"
        )
        raise InputError(
            f"{report} calls {count} no mask now: {shown}; put the masks back, or make them "
            f"again{asked}"
        )
