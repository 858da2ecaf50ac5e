"""`report`: what is to be seen of a pruned checkpoint, from its report, its masks and its weights,
as one page.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsolve.bits import pack
from nmsolve.checkpoint.masks import Masks, check_masks, mask_files, open_masks
from nmsolve.checkpoint.measuring import measured, pattern_of
from nmsolve.checkpoint.page import is_page, page
from nmsolve.checkpoint.places import Places
from nmsolve.checkpoint.planning import PlannedTensor, plan_tensors
from nmsolve.checkpoint.report_file import read_report, read_times
from nmsolve.checkpoint.solving import apply, report_of
from nmsolve.checkpoint.source import Source, read_source
from nmsolve.checkpoint.stored import CHUNK, Stored, StoredNumbers, WeightFile, allocate
from nmsolve.checkpoint.summary import PruneReport, TensorReport
from nmsolve.disk import digest_of
from nmsolve.elements import nonzero
from nmsolve.errors import InputError
from nmsolve.geometry import as_matrices
from nmsolve.output import Output
from nmsolve.selection import Selection

#: Side of the corner of a mask that is shown.
CORNER = 32
#: Tensor name → the file that it is in, and where.
Numbers = Mapping[str, tuple[WeightFile, StoredNumbers]]


def report(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str] = "report.html",
    *,
    against: str | os.PathLike[str] | None = None,
    force: bool = False,
) -> PruneReport:
    """Write a page about a pruned checkpoint that needs nothing but a browser.

    Parameters
    ----------
    checkpoint : path
        What `prune` wrote; or any checkpoint: then patterns are read off its zeros.
    out : path
        The page; its name ends in .html. Folders on the way to it are made.
    against : path, optional
        The dense checkpoint. Kept |W| and gap are then computed from its weights: the gap to
        the optimum that is solved and certified for them, instead of what report.json says. Masks
        may then be others than report.json tells of.
    force : bool
        Replace `out` if it is there, whatever it is but a part of the checkpoints. Otherwise only
        an earlier page is replaced.

    Returns
    -------
    PruneReport
        What the page shows, its notes included.

    Raises
    ------
    InputError
        For files that are damaged, or do not belong together: a mask that is not the one of
        report.json is refused unless it is measured against the dense checkpoint; a page that would
        replace something else.
    OSError
        If the system refuses to read or write.
    MissingDependencyError
        If safetensors is not installed.

    Examples
    --------
    >>> import tempfile, numpy as np, nmsolve.checkpoint
    >>> folder = tempfile.TemporaryDirectory()
    >>> np.savez(f"{folder.name}/dense.npz", a=np.eye(8))
    >>> sparse, page = f"{folder.name}/sparse.npz", f"{folder.name}/report.html"
    >>> made = nmsolve.checkpoint.prune(f"{folder.name}/dense.npz", sparse, "2:4T")
    >>> found = nmsolve.checkpoint.report(sparse, page, against=f"{folder.name}/dense.npz")
    >>> found.share == made.share, Path(page).read_text()[:15]
    (True, '<!doctype html>')
    >>> folder.cleanup()
    """
    path, place = Path(checkpoint), Path(out)
    read = [path, *([] if against is None else [Path(against)])]
    for file in [file for file in read if not file.is_dir()]:
        beside = Places(path=file, folder=False)
        read += [beside.all_masks, beside.report, beside.times]
    with Output(place, inputs=read, ours=is_page, force=force, parents=True) as output:
        if output.is_file and place.suffix.lower() not in (".html", ".htm"):
            raise InputError(
                f"{place} is no place for a page, whose name ends in .html: name one, such as "
                "report.html"
            )
        if path.is_file() and mask_files(path) == [path]:
            raise InputError(f"{path} holds masks alone: name the checkpoint that they are of")
        found, corners = _looked_at(path, None if against is None else Path(against))
        text = page(found, corners, title=path.resolve().name, notes=found.notes)
        output.write(text.encode())
    return found


def _looked_at(
    path: Path, against: Path | None
) -> tuple[PruneReport, dict[str, NDArray[np.bool_]]]:
    """Return what there is to be seen, and the corners of masks."""
    source = read_source(path)
    masks = open_masks(path) if mask_files(path) else Masks({})
    found, notes = _reported(source, masks)
    where = {tensor.name: (file, tensor) for file in source.files for tensor in file.tensors}
    numbers = _numbers(source)
    dense = None if against is None else _dense(against, found)
    tensors: list[TensorReport] = []
    corners: dict[str, NDArray[np.bool_]] = {}
    seen = _Seen()
    for entry in found.tensors:
        pattern, axis = entry.pattern, entry.axis
        if pattern is None or axis is None:
            if entry.digest is not None and _digest(*where[entry.name]) != entry.digest:
                seen.altered.append(entry.name)
            tensors.append(entry)
            continue
        file, tensor = numbers[entry.name]
        weights = file.array(tensor)
        kept = masks[entry.name] if entry.name in masks else nonzero(weights)
        mask_digest = hashlib.sha256(pack(kept).data).hexdigest()
        another = entry.mask_digest not in (None, mask_digest)
        if another and dense is None:
            raise _not_its_mask(source, masks, entry)
        seen.masked += 1
        seen.strays += bool((nonzero(weights) & ~kept).any())
        matrices = as_matrices(kept, axis)
        corners[entry.name] = np.array(matrices[(0,) * (matrices.ndim - 2)][:CORNER, :CORNER])
        # as pruning left them: weights that a mask drops are strays, and counted as such
        apply(weights, kept)
        digest = hashlib.sha256(np.ravel(weights, order="K").view(np.uint8).data).hexdigest()
        if another:
            seen.others.append(entry.name)
            entry = replace(entry, mask_digest=mask_digest, digest=digest, seconds=None)
        elif entry.digest not in (None, digest):
            seen.trained.append(entry.name)
        if dense is not None:
            file, tensor = dense[entry.name]
            original = file.array(tensor)
            try:
                entry = measured(entry, original, kept, pattern, axis)
            except InputError as error:
                raise InputError(f"{file.path}: tensor {entry.name!r}: {error}") from error
            seen.changed += not np.array_equal(_bits(original)[kept], _bits(weights)[kept])
        tensors.append(replace(entry, kept=int(np.count_nonzero(kept))))
    report_name = Places(path=source.path, folder=source.folder).report.name
    notes += seen.notes(report_name, None if against is None else against.name)
    return replace(found, tensors=tuple(tensors), notes=tuple(notes)), corners


@dataclass
class _Seen:
    """Tensors that are not as a report tells of them, or as their masks have them.

    masked : tensors with a mask. strays : those that are not zero where it drops weights. changed :
    those whose kept weights differ from the dense ones. others : with another mask than the report
    tells of. trained : with its mask, and other values. altered : dense ones, with other values.
    """

    masked: int = 0
    strays: int = 0
    changed: int = 0
    others: list[str] = field(default_factory=list)
    trained: list[str] = field(default_factory=list)
    altered: list[str] = field(default_factory=list)

    def notes(self, report_name: str, against: str | None) -> list[str]:
        """Return what should be said of them, given the names of the report and of the dense
        checkpoint, if they were compared.
        """
        notes = []
        if self.strays:
            notes.append(
                f"Weights are not zero where their masks drop them, in {self.strays} of "
                f"{self.masked} tensors with a mask: the masks have not been applied to them, or "
                "they were trained without. `nmsolve verify` names them."
            )
        if against is not None:
            notes.append(
                f"Kept |W| and gap were computed anew against {against}: gaps are to the certified "
                "optimum."
            )
        if self.changed:
            notes.append(
                f"Kept weights differ from those of {against} in {self.changed} of {self.masked} "
                "tensors with a mask: they were trained or adjusted."
            )
        if self.trained and against is None:
            notes.append(
                f"{_counted(self.trained)} other values than those of the pruning (trained since, "
                "or of another run): kept |W| and gap are those of the pruning; --against DENSE "
                "computes them anew."
            )
        if self.others:
            notes.append(
                f"{_counted(self.others)} another mask than {report_name} tells of: what is shown "
                "of it was measured, and the settings are not those that it was found with."
            )
        if self.altered:
            notes.append(
                f"{_counted(self.altered)} other values than when the checkpoint was pruned; no "
                "mask is applied there."
            )
        return notes


def _not_its_mask(source: Source, masks: Masks, entry: TensorReport) -> InputError:
    report = Places(path=source.path, folder=source.folder).report
    return InputError(
        f"the mask of tensor {entry.name!r} in {masks.described[entry.name].file.path} is not the "
        f"one that {report} tells of, so nothing is known of what it keeps: measure it against "
        "the dense checkpoint (against=DENSE), prune again, or count its groups alone by `nmsolve "
        "verify`"
    )


def _digest(file: WeightFile, tensor: Stored) -> str:
    return file.digest(tensor, allocate(max(1, min(CHUNK, tensor.size)), file.path, tensor.name))


def _counted(names: Sequence[str]) -> str:
    """Return the beginning of a sentence about what tensors have."""
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return (
        f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({shown}) "
        f"{'have' if len(names) > 1 else 'has'}"
    )


def _numbers(source: Source) -> Numbers:
    """Return a checkpoint's tensors of numbers, by name."""
    return {
        tensor.name: (file, tensor)
        for file in source.files
        for tensor in file.tensors
        if isinstance(tensor, StoredNumbers)
    }


def _reported(source: Source, masks: Masks) -> tuple[PruneReport, list[str]]:
    """Return what is known of a checkpoint without its weights, and notes about that."""
    places = Places(path=source.path, folder=source.folder)
    check_masks(source, masks)
    if not places.report.exists():
        read_off = "masks" if masks else "zeros"
        return _read_off(source, masks), [
            f"No {places.report.name} is beside this checkpoint; patterns are read off its "
            f"{read_off}."
        ]
    found = read_report(places.report)
    shapes = {tensor.name: tensor.shape for file in source.files for tensor in file.tensors}
    other = [t.name for t in found.tensors if shapes.get(t.name) != t.shape] or sorted(
        set(shapes) - {t.name for t in found.tensors}
    )
    absent = [t.name for t in found.pruned if not _is_of(t, masks)] or sorted(
        set(masks) - {t.name for t in found.pruned}
    )
    if found.pruned and not masks:
        raise InputError(
            f"{places.report} is there, but none of its masks are: expected them as "
            f"{places.all_masks}"
        )
    if other or absent:
        what = f"tensor {other[0]!r}" if other else f"a mask for tensor {absent[0]!r}"
        raise InputError(
            f"{places.report} is of another checkpoint than {source.path}: they do not agree about "
            f"{what}"
        )
    notes = list(found.notes)
    if found.nmsolve is None:
        notes.append(
            f"{places.report.name} is of a version that noted no digests: whether it tells of "
            "these values is not known."
        )
    if places.times.exists():
        times = read_times(places.times)
        if times.report in (None, digest_of(places.report)):
            found = found.timed(times.seconds)
        else:
            notes.append(
                f"{places.times.name} is not of the run that {places.report.name} tells of, so no "
                "times are shown."
            )
    return found, notes


def _is_of(entry: TensorReport, masks: Masks) -> bool:
    """Return whether there is the mask that an entry of a report is about."""
    mask = masks.described.get(entry.name)
    if mask is None:
        return False
    return (mask.shape, mask.pattern, mask.axis, mask.padding) == (
        entry.shape,
        entry.pattern,
        entry.axis,
        entry.padding,
    )


def _read_off(source: Source, masks: Masks) -> PruneReport:
    """Return a report of tensors whose patterns are those of their masks, or of their zeros."""
    files = {file.name: file for file in source.files}
    tensors = []
    # 1:1 divides every shape: what is left are reasons of kind
    for plan in plan_tensors(source.files, Selection.of("1:1", None, (), "skip")):
        entry, mask = report_of(plan), masks.described.get(plan.tensor.name)
        if mask is not None:
            entry = replace(
                entry, pattern=mask.pattern, axis=mask.axis, padding=mask.padding, reason=None
            )
        elif isinstance(plan, PlannedTensor):
            weights = files[plan.file].array(plan.tensor)
            pattern = pattern_of(as_matrices(nonzero(weights), plan.axis))
            entry = replace(
                entry,
                pattern=pattern,
                reason=None if pattern else "its zeros, if any, follow no n:m pattern",
            )
        tensors.append(entry)
    return PruneReport(source=source.path.resolve().name, settings={}, tensors=tuple(tensors))


def _dense(path: Path, found: PruneReport) -> Numbers:
    """Return the dense checkpoint's tensors by name, every pruned one among them."""
    numbers = _numbers(read_source(path))
    for entry in found.pruned:
        tensor = numbers[entry.name][1] if entry.name in numbers else None
        if tensor is None or (tensor.shape, tensor.dtype) != (entry.shape, entry.dtype):
            raise InputError(
                f"{path} has no tensor {entry.name!r} that is {entry.dtype} of shape "
                f"{entry.shape}: it is not what was pruned"
            )
    return numbers


def _bits(array: NDArray[Any]) -> NDArray[Any]:
    return array.view(f"u{array.dtype.itemsize}")
