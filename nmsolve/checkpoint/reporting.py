"""`report`: what is to be seen of a pruned checkpoint, from its report, its masks and its weights,
as one page.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsolve.api import solve
from nmsolve.bits import pack
from nmsolve.certificates import objective, prove
from nmsolve.checkpoint.disk import digest_of
from nmsolve.checkpoint.masks import Masks, mask_files, masks_beside, open_masks
from nmsolve.checkpoint.output import Output
from nmsolve.checkpoint.page import is_page, page
from nmsolve.checkpoint.planning import plan_tensors
from nmsolve.checkpoint.solving import apply, as_matrices, report_of, total
from nmsolve.checkpoint.source import Source, read_source
from nmsolve.checkpoint.stored import CHUNK, Stored, WeightFile, allocate
from nmsolve.checkpoint.summary import PruneReport, TensorReport, read_times
from nmsolve.checkpoint.target import Target
from nmsolve.checkpoint.verification import check_masks, read_tensor
from nmsolve.elements import nonzero
from nmsolve.errors import InputError
from nmsolve.feasibility import verify
from nmsolve.pattern import Pattern
from nmsolve.result import Status, relative_gap
from nmsolve.validate import read_scores

#: Side of the corner of a mask that is shown.
CORNER = 32
#: Lengths of groups that are looked for in weights that come without masks.
LENGTHS = (2, 4, 8, 16, 32)
#: Density up to which zeros count as a pattern: some group of 32 has a zero in almost every weight
#: that was pruned in any way.
SPARSE = 0.75


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
        The page.
    against : path, optional
        The dense checkpoint. Kept |W| and gap are then computed anew from its weights: the gap to
        the optimum that is solved and certified for them, instead of what report.json says. Masks
        may then be others than it tells of.
    force : bool
        Replace `out` if it is there, whatever it is but a part of the checkpoints. Otherwise only
        an earlier page is replaced.

    Returns
    -------
    PruneReport
        What the page shows; its notes among it.

    Raises
    ------
    InputError
        For files that are damaged, or do not belong together: a mask that is not the one of
        report.json is refused unless it is measured against the dense checkpoint; a page that would
        replace something else.
    """
    path, place = Path(checkpoint), Path(out)
    read = [path, *([] if against is None else [Path(against)])]
    for file in [file for file in read if not file.is_dir()]:
        beside = Target(path=file, folder=False, weights_too=True)
        read += [beside.masks(file.name), beside.report, beside.times]
    with Output(place, inputs=read, ours=is_page, force=force, parents=True) as output:
        if output.is_file and place.suffix.lower() not in (".html", ".htm"):
            raise InputError(
                f"{place} is no place for a page, whose name ends in .html: name one, such as "
                "report.html"
            )
        if path.is_file() and mask_files(path) == [path]:
            raise InputError(f"{path} holds masks alone: name the checkpoint that they are of")
        found, text = _composed(path, against)
        output.write(text.encode())
    return found


def _composed(path: Path, against: str | os.PathLike[str] | None) -> tuple[PruneReport, str]:
    """What there is to be seen, and the page that shows it."""
    source = read_source(path)
    masks = open_masks(path) if mask_files(path) else Masks({})
    found, notes = _reported(source, masks)
    corners = {}
    where = {tensor.name: (file, tensor) for file in source.files for tensor in file.tensors}
    dense = None if against is None else _dense(Path(against), found)
    tensors, changed, strays = [], 0, 0
    others: list[str] = []  # with another mask than report.json tells of
    trained: list[str] = []  # with its mask, and other values
    altered: list[str] = []  # dense ones, with other values
    for entry in found.tensors:
        if entry.pattern is None or entry.axis is None:
            if entry.digest is not None and _digest(*where[entry.name]) != entry.digest:
                altered.append(entry.name)
            tensors.append(entry)
            continue
        weights = read_tensor(*where[entry.name])
        kept = masks[entry.name] if entry.name in masks else nonzero(weights)
        mask_digest = hashlib.sha256(pack(kept).data).hexdigest()
        another = entry.mask_digest not in (None, mask_digest)
        if another and dense is None:
            raise _not_its_mask(source, masks, entry)
        strays += bool((nonzero(weights) & ~kept).any())
        matrices = as_matrices(kept, entry.axis)
        corners[entry.name] = np.array(matrices[(0,) * (matrices.ndim - 2)][:CORNER, :CORNER])
        apply(
            weights, kept
        )  # as pruning left them: those that a mask drops are strays, and counted as such
        digest = hashlib.sha256(np.ravel(weights, order="K").view(np.uint8).data).hexdigest()
        if another:
            others.append(entry.name)
            entry = replace(entry, mask_digest=mask_digest, digest=digest, seconds=None)
        elif entry.digest not in (None, digest):
            trained.append(entry.name)
        if dense is not None:
            original = read_tensor(*dense[entry.name])
            try:
                entry = _measured(entry, original, kept)
            except InputError as error:
                raise InputError(
                    f"{dense[entry.name][0].path}: tensor {entry.name!r}: {error}"
                ) from error
            changed += not np.array_equal(_bits(original)[kept], _bits(weights)[kept])
        tensors.append(replace(entry, kept=int(np.count_nonzero(kept))))
    if strays:
        notes.append(
            f"Weights are not zero where their masks drop them, in {strays} of {len(corners)} "
            "tensors with a mask: the masks have not been applied to them, or they were trained "
            "without. `nmsolve verify` names them."
        )
    if dense is not None:
        notes.append(
            f"Kept |W| and gap were computed anew against {Path(against or '').name}: gaps are to "
            "the certified optimum."
        )
        if changed:
            notes.append(
                f"Kept weights differ from those of {Path(against or '').name} in {changed} of "
                f"{len(corners)} tensors with a mask: they were trained or adjusted."
            )
    elif trained:
        notes.append(
            f"{_counted(trained)} other values than those of the pruning (trained since, or of "
            "another run): kept |W| and gap are those of the pruning; --against DENSE computes "
            "them anew."
        )
    if others:
        notes.append(
            f"{_counted(others)} another mask than {_target(source).report.name} tells of: what is "
            "shown of it was measured, and the settings are not those that it was found with."
        )
    if altered:
        notes.append(
            f"{_counted(altered)} other values than when the checkpoint was pruned; no mask is "
            "applied there."
        )
    found = replace(found, tensors=tuple(tensors), notes=tuple(notes))
    return found, page(found, corners, title=path.resolve().name, notes=notes)


def _not_its_mask(source: Source, masks: Masks, entry: TensorReport) -> InputError:
    return InputError(
        f"the mask of tensor {entry.name!r} in {masks.described[entry.name].file.path} is not the "
        f"one that {_target(source).report} tells of, so nothing is known of what it keeps: "
        "measure it against the dense checkpoint (--against DENSE), prune again, or count its "
        "groups alone by `nmsolve verify`"
    )


def _digest(file: WeightFile, tensor: Stored) -> str:
    return file.digest(tensor, allocate(max(1, min(CHUNK, tensor.size)), file.path, tensor.name))


def _counted(names: Sequence[str]) -> str:
    """Tensors at the beginning of a sentence about what they have."""
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return (
        f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({shown}) "
        f"{'have' if len(names) > 1 else 'has'}"
    )


def _target(source: Source) -> Target:
    """Where the report and the times of a checkpoint are."""
    return Target(path=source.path, folder=source.folder, weights_too=True)


def _reported(source: Source, masks: Masks) -> tuple[PruneReport, list[str]]:
    """What is known of a checkpoint without its weights, and what should be said about that."""
    target = _target(source)
    check_masks(source, masks)
    if not target.report.exists():
        read_off = "masks" if masks else "zeros"
        return _read_off(source, masks), [
            f"No {target.report.name} is beside this checkpoint; patterns are read off its "
            f"{read_off}."
        ]
    found = PruneReport.read(target.report)
    shapes = {tensor.name: tensor.shape for file in source.files for tensor in file.tensors}
    other = [t.name for t in found.tensors if shapes.get(t.name) != t.shape] or sorted(
        set(shapes) - {t.name for t in found.tensors}
    )
    absent = [t.name for t in found.pruned if not _is_of(t, masks)] or sorted(
        set(masks) - {t.name for t in found.pruned}
    )
    if found.pruned and not masks:
        raise InputError(
            f"{target.report} is there, but none of its masks are: expected them as "
            f"{masks_beside(source.path)}"
        )
    if other or absent:
        what = f"tensor {other[0]!r}" if other else f"a mask for tensor {absent[0]!r}"
        raise InputError(
            f"{target.report} is of another checkpoint than {source.path}: they do not agree about "
            f"{what}"
        )
    notes = list(found.notes)
    if found.nmsolve is None:
        notes.append(
            f"{target.report.name} is of a version that noted no digests: whether it tells of "
            "these values is not known."
        )
    if target.times.exists():
        times = read_times(target.times)
        if times.report in (None, digest_of(target.report)):
            found = found.timed(times.seconds)
        else:
            notes.append(
                f"{target.times.name} is not of the run that {target.report.name} tells of, so no "
                "times are shown."
            )
    return found, notes


def _is_of(entry: TensorReport, masks: Masks) -> bool:
    """Whether there is the mask that an entry of a report is about."""
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
    """A report of tensors whose patterns are those of their masks, or of their zeros."""
    files = {file.name: file for file in source.files}
    tensors = []
    for plan in plan_tensors(
        source.files, "1:1", None, (), "skip"
    ):  # 1:1 divides every shape: what is left are reasons of kind
        entry, mask = report_of(plan), masks.described.get(plan.tensor.name)
        if mask is not None:
            entry = replace(
                entry, pattern=mask.pattern, axis=mask.axis, padding=mask.padding, reason=None
            )
        elif plan.axis is not None:
            pattern = pattern_of(
                as_matrices(nonzero(read_tensor(files[plan.file], plan.tensor)), plan.axis)
            )
            entry = replace(
                entry,
                pattern=pattern,
                reason=None if pattern else "its zeros, if any, follow no n:m pattern",
            )
        tensors.append(entry)
    return PruneReport(source=source.path.resolve().name, settings={}, tensors=tuple(tensors))


def pattern_of(kept: NDArray[np.bool_]) -> Pattern | None:
    """The sparsest pattern, with the shortest groups, that (…, rows, columns) of nonzeros hold;
    None if there is none.

    Examples
    --------
    >>> str(pattern_of(np.eye(8, dtype=bool))), pattern_of(np.ones((8, 8), bool))
    ('1:8T', None)
    """
    rows, columns = kept.shape[-2:]
    found: list[Pattern] = []
    for m in LENGTHS:
        if columns % m:
            continue
        n = max(1, int(kept.reshape(*kept.shape[:-1], columns // m, m).sum(axis=-1).max()))
        if n <= SPARSE * m:
            across = (
                rows % m == 0
                and int(kept.reshape(*kept.shape[:-2], rows // m, m, columns).sum(axis=-2).max())
                <= n
            )
            found.append(Pattern(n, m, transposable=across))
    return min(found, key=lambda pattern: pattern.density, default=None)


def _dense(path: Path, found: PruneReport) -> Mapping[str, tuple[WeightFile, Stored]]:
    """The dense checkpoint's tensors by name, every pruned one among them."""
    where = {
        tensor.name: (file, tensor) for file in read_source(path).files for tensor in file.tensors
    }
    for entry in found.pruned:
        if (
            entry.name not in where
            or where[entry.name][1].shape != entry.shape
            or where[entry.name][1].dtype != entry.dtype
        ):
            raise InputError(
                f"{path} has no tensor {entry.name!r} that is {entry.dtype} of shape "
                f"{entry.shape}: it is not what was pruned"
            )
    return where


def _measured(entry: TensorReport, original: NDArray[Any], kept: NDArray[np.bool_]) -> TensorReport:
    """An entry with what its mask keeps of the dense weights, and how far that is from their
    certified optimum.
    """
    assert entry.pattern is not None
    assert entry.axis is not None
    padding = entry.padding or "error"
    best = solve(as_matrices(original, entry.axis), entry.pattern, padding=padding)
    scores, mask = (
        read_scores(as_matrices(original, entry.axis), None, entry.pattern),
        as_matrices(kept, entry.axis),
    )
    worth = objective(scores, mask)
    bound = max(worth, best.objective if best.bound is None else best.bound)
    # A mask that violates its pattern may be worth more than any that does not; one read off zeros
    # may lack kept ones that are 0.
    holds = (
        verify(mask, entry.pattern, at_most=True, padding=padding).ok
        and bound - worth <= scores.tolerance * bound
    )
    holds = holds and worth <= best.objective * (1 + scores.tolerance)
    proven = (
        holds
        and best.status is Status.OPTIMAL
        and not prove(scores, mask, entry.pattern, padding).open
    )
    status = Status.OPTIMAL if proven else Status.FEASIBLE
    gap = relative_gap(worth, bound)
    return replace(
        entry, status=status.value, objective=worth, bound=bound, gap=gap, total=total(original)
    )


def _bits(array: NDArray[Any]) -> NDArray[Any]:
    return array.view(f"u{array.dtype.itemsize}")
