"""What is at a destination already: nothing, a run to go on with, or one that is finished and must
be this very one.

A finished run is only taken for the answer if all that it depended on is as it was (options,
version, and the source by sizes, times, headers and values), and if what it wrote is still there,
byte for byte. Its report tells each (`docs/format.md`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsolve.bits import packed_size, unpack
from nmsolve.checkpoint.disk import as_text, digest_of, open_file
from nmsolve.checkpoint.job import Job, Outcomes, moves_of
from nmsolve.checkpoint.journal import MASKS, WEIGHTS, Unfinished
from nmsolve.checkpoint.planning import TensorPlan
from nmsolve.checkpoint.solving import apply, is_outcome, total
from nmsolve.checkpoint.source import read_file
from nmsolve.checkpoint.stored import CHUNK, Stored, WeightFile, allocate
from nmsolve.checkpoint.summary import PruneReport, TensorReport, Times, read_times
from nmsolve.checkpoint.target import check_vacant
from nmsolve.errors import InputError

#: What is known of a tensor before it is read.
_PLANNED = ("file", "dtype", "shape", "pattern", "axis", "padding", "reason")


def begin(job: Job, unfinished: Unfinished, resume: bool) -> tuple[Outcomes, PruneReport | None]:
    """Begin a run, or go on with one: what has been done before; or the report, if everything has.

    Raises
    ------
    InputError
        If something is in the way, or the run that is there is another one, or is damaged.
    """
    if not unfinished.begun and not unfinished.publishing:
        if resume and job.target.report.exists():
            complete = check_finished(job)
            unfinished.discard()
            return {}, complete
        check_vacant(job.source, job.target)
    elif not resume:
        raise InputError(
            f"an unfinished run is in {unfinished.path}: go on with it by resume=True (--resume), "
            "or remove that folder"
        )
    unfinished.hold()
    run = job.run()
    if unfinished.begun:
        differences = unfinished.differences(run)
        if differences:
            raise InputError(
                f"the unfinished run in {unfinished.path} is another one "
                f"({'; '.join(differences)}): repeat it as it was begun, or remove that folder"
            )
    if unfinished.publishing:
        unfinished.go_on_publishing(moves_of(job, unfinished))
        return {}, check_finished(job)
    if not unfinished.begun:
        unfinished.begin(run)
    found, plans = unfinished.done(), {plan.tensor.name: plan for plan in job.plans}
    before = {
        name: entry
        for name, entry in found.items()
        if name in plans and is_outcome(entry, plans[name])
    }
    for file in job.source.files:
        if job.target.weights_too:
            unfinished.prepare(WEIGHTS, file.name, file.size, file.pieces)
        layout = job.mask_files.get(file.name)
        if layout is not None:
            unfinished.prepare(MASKS, file.name, layout.size, [(0, layout.header)])
    return {
        name: entry
        for name, entry in before.items()
        if _is_there(job, unfinished, plans[name], entry)
    }, None


def _is_there(job: Job, unfinished: Unfinished, plan: TensorPlan, entry: Mapping[str, Any]) -> bool:
    """Whether a run's folder still holds what its journal says of a tensor; what it does not is
    done again.
    """
    tensor = plan.tensor
    if job.target.weights_too and not unfinished.holds(
        WEIGHTS, plan.file, tensor.start, tensor.size, entry["digest"]
    ):
        return False
    if plan.pattern is None:
        return True
    place, size = job.mask_files[plan.file].places[tensor.name], _mask_size(tensor)
    return unfinished.holds(MASKS, plan.file, place, size, entry["mask_digest"])


def _mask_size(tensor: Stored) -> int:
    return packed_size(math.prod(tensor.shape))


def check_finished(job: Job) -> PruneReport:
    """The report of a finished run, which is this very job's, and whose files and source are as
    they were.

    Raises
    ------
    InputError
        That names what differs: an option, the version, a file of the source, one of the
        destination's.
    """
    target = job.target
    report = PruneReport.read(target.report)
    if report.nmsolve is None:
        raise InputError(
            f"{target.report} was written by a version that did not note what it was made of: "
            f"name another DST, or remove this one, and prune again"
        )
    _check_size(target.times, None)
    times = read_times(target.times)
    now = job.report({})
    differences = list(_differences(job, report, now, times)) or list(
        _planned_otherwise(report, now)
    )
    if differences:
        raise _changed(job, "; ".join(differences[:3]))
    if digest_of(target.report) != times.report:
        raise _damaged(target.report, f"its bytes are others, or {target.times.name} is another's")
    for file, entry in zip(job.source.files, report.files, strict=True):
        if target.weights_too:
            _check_size(target.weights(file.name), entry.size)
        if file.name in job.mask_files:
            _check_size(target.masks(file.name), entry.masks_size)
    for name, copy in zip(job.copied, report.copied, strict=True):
        _check_size(target.path / name, copy.size)
        if digest_of(target.path / name) != copy.digest:
            raise _damaged(target.path / name, "its bytes are others")
        if digest_of(job.source.path / name) != copy.digest:
            raise _changed(job, f"{job.source.path / name} is another file now")
    _check_values(job, {tensor.name: tensor for tensor in report.tensors})
    return report.timed(times.seconds)


def _changed(job: Job, what: str) -> InputError:
    return InputError(
        f"the finished run that {job.target.report} tells of is another one ({what}): "
        f"name another DST, or remove this one and prune again"
    )


def _damaged(place: Path, why: str) -> InputError:
    return InputError(
        f"{place} is not as it was written ({why}): remove DST and prune again, or put the file "
        "back"
    )


def _check_size(place: Path, size: int | None) -> None:
    if not place.is_file():
        raise _damaged(place, "it is missing")
    if size is not None and place.stat().st_size != size:
        raise _damaged(place, f"it has {place.stat().st_size:,} bytes, and had {size:,}")


def _differences(job: Job, report: PruneReport, now: PruneReport, times: Times) -> Iterator[str]:
    """In what a finished run differs from this one, as far as that shows without reading weights:
    but for what was planned.
    """
    if report.nmsolve != now.nmsolve:
        yield f"nmsolve {report.nmsolve} then, {now.nmsolve} now"
    if report.source != now.source:
        yield f"source: {report.source!r} then, {now.source!r} now"
    for key in {**report.settings, **now.settings}:
        if report.settings.get(key) != now.settings.get(key):
            yield f"{key}: {report.settings.get(key)!r} then, {now.settings.get(key)!r} now"
    if any((file.size is not None) != job.target.weights_too for file in report.files):
        yield f"{'masks alone' if job.target.weights_too else 'weights too'} then"
    before, after = (
        {file.name: file for file in report.files},
        {file.name: file for file in now.files},
    )
    yield from _gone_or_new(list(before), list(after))
    modified = {as_text(name): time for name, time in job.modified().items()}
    for name in before.keys() & after.keys():
        if before[name].source_size != after[name].source_size:
            yield (
                f"{name} had {before[name].source_size:,} bytes, and has "
                f"{after[name].source_size:,}"
            )
        elif before[name].header != after[name].header:
            yield f"{name} has another header now"
        elif times.modified.get(name) != modified[name]:
            yield f"{name} was modified since"
    yield from _gone_or_new(
        [file.name for file in report.copied], [as_text(name) for name in job.copied]
    )
    yield from _gone_or_new(list(report.left_behind), list(now.left_behind))
    yield from (
        f"{note!r} is new" for note in job.source.notes if as_text(note) not in report.notes
    )


def _planned_otherwise(report: PruneReport, now: PruneReport) -> Iterator[str]:
    """Tensors that have another plan now, though nothing else differs: as another version of a
    library has it.
    """
    planned = {t.name: t for t in report.tensors}
    yield from _gone_or_new(sorted(planned), sorted(t.name for t in now.tensors))
    for tensor in now.tensors:
        if tensor.name in planned:
            then = planned[tensor.name]
            fields = [field for field in _PLANNED if getattr(then, field) != getattr(tensor, field)]
            told = ", ".join(
                f"{field} {getattr(then, field)!s} then, {getattr(tensor, field)!s} now"
                for field in fields
            )
            if told:
                yield f"tensor {tensor.name!r}: {told}"


def _gone_or_new(before: list[str], after: list[str]) -> Iterator[str]:
    if before != after:
        yield from (f"{name} was there, and is not" for name in sorted({*before} - {*after}))
        yield from (f"{name} was not there, and is" for name in sorted({*after} - {*before}))


def _check_values(job: Job, reports: Mapping[str, TensorReport]) -> None:
    """Read what was written, and what it was made of."""
    target, pruned = job.target, [plan for plan in job.plans if plan.pattern]
    largest = max(pruned, key=lambda plan: plan.tensor.size).tensor
    buffer = allocate(max(CHUNK, largest.size), job.source.path, largest.name)
    for file in job.source.files:
        made = _open_made(job, file) if target.weights_too else None
        layout = job.mask_files.get(file.name)
        if (
            layout is not None
            and _read_at(target.masks(file.name), 0, len(layout.header)) != layout.header
        ):
            raise _damaged(target.masks(file.name), "its header is another")
        copies = (
            dict(zip((t.name for t in file.tensors), made.tensors, strict=True)) if made else {}
        )
        for plan in (plan for plan in job.plans if plan.file == file.name):
            tensor, report = plan.tensor, reports[plan.tensor.name]
            if (
                made is not None
                and made.digest(copies[tensor.name], buffer[:CHUNK]) != report.digest
            ):
                raise _damaged(made.path, f"tensor {tensor.name!r}")
            mask = None
            if layout is not None and plan.pattern is not None:
                packed = _read_at(
                    target.masks(file.name), layout.places[tensor.name], _mask_size(tensor)
                )
                if hashlib.sha256(packed).hexdigest() != report.mask_digest:
                    raise _damaged(target.masks(file.name), f"mask {tensor.name!r}")
                mask = unpack(np.frombuffer(packed, np.uint8), tensor.shape)
            if (made is not None or mask is not None) and not _is_source(
                file, tensor, mask, report, buffer
            ):
                raise _changed(job, f"tensor {tensor.name!r} of {file.path} has other values now")


def _open_made(job: Job, file: WeightFile) -> WeightFile:
    place = job.target.weights(file.name)
    made = read_file(place, file.name)
    if made.pieces != file.pieces or made.size != file.size:
        raise _damaged(place, "its header is another")
    return made


def _read_at(place: Path, start: int, size: int) -> bytes:
    with open_file(place) as file:
        file.seek(start)
        return file.read(size)


def _is_source(
    file: WeightFile,
    tensor: Stored,
    mask: NDArray[np.bool_] | None,
    report: TensorReport,
    buffer: NDArray[np.uint8],
) -> bool:
    """Whether a tensor of the source is what its report is about: kept weights bit for bit, dropped
    ones by the sum of all |W|.
    """
    if mask is None:
        return file.digest(tensor, buffer[:CHUNK]) == report.digest
    file.read(tensor, buffer)
    array = tensor.view(buffer)
    try:
        same = report.total is not None and math.isclose(
            total(array), report.total, rel_tol=1e-12
        )  # other machines add otherwise
    except InputError:  # no finite sum
        return False
    apply(array, mask)
    return same and hashlib.sha256(buffer.data[: tensor.size]).hexdigest() == report.digest
