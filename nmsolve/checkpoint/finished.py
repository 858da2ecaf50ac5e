"""A run that is finished: whether it is the one that is asked for, and as it was written.

It is only taken for the answer if all that it depended on is as it was (options, version, and the
source by sizes, times, headers and values), and if what it wrote is still there, byte for byte. Its
report tells each (`docs/format.md`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nmsolve.bits import packed_size, unpack
from nmsolve.checkpoint.job import Job
from nmsolve.checkpoint.planning import PlannedTensor, TensorPlan
from nmsolve.checkpoint.report_file import Times, read_report, read_times
from nmsolve.checkpoint.solving import apply, total
from nmsolve.checkpoint.source import read_file
from nmsolve.checkpoint.stored import CHUNK, StoredNumbers, WeightFile, allocate
from nmsolve.checkpoint.summary import PruneReport, TensorReport
from nmsolve.disk import as_text, digest_of, open_file
from nmsolve.errors import InputError

#: What is known of a tensor before it is read.
_PLANNED = ("file", "dtype", "shape", "pattern", "axis", "padding", "reason")


def check_finished(job: Job) -> PruneReport:
    """Return the report of a finished run, which is this very job's, and whose files and source
    are as they were.

    Raises
    ------
    InputError
        That names what differs: an option, the version, a file of the source, one of the
        destination's.
    """
    target = job.target
    report = read_report(target.report)
    if report.nmsolve is None:
        raise InputError(
            f"{target.report} was written by a version that did not note what it was made of: name "
            "another DST, or remove this one, and prune again"
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
        f"the finished run that {job.target.report} tells of is another one ({what}): name another "
        "DST, or remove this one and prune again"
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
    """Yield the differences of a finished run from this one that show without reading weights,
    in words. The plan is compared elsewhere.
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
    before = {file.name: file for file in report.files}
    after = {file.name: file for file in now.files}
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
    """Yield tensors that have another plan now, though nothing else differs: as by another version
    of a library.
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
    largest = max(job.planned, key=lambda plan: plan.tensor.size).tensor
    buffer = allocate(max(CHUNK, largest.size), job.source.path, largest.name)
    for file in job.source.files:
        plans = [plan for plan in job.plans if plan.file == file.name]
        _check_file(job, file, plans, reports, buffer)


def _check_file(
    job: Job,
    file: WeightFile,
    plans: list[TensorPlan],
    reports: Mapping[str, TensorReport],
    buffer: NDArray[np.uint8],
) -> None:
    """As `_check_values`, for one file of weights and its masks."""
    made = _open_made(job, file) if job.target.weights_too else None
    copies = dict(zip((t.name for t in file.tensors), made.tensors, strict=True)) if made else {}
    layout, place = job.mask_files.get(file.name), job.target.masks(file.name)
    if layout is not None and _read_at(place, 0, len(layout.header)) != layout.header:
        raise _damaged(place, "its header is another")
    for plan in plans:
        tensor, report = plan.tensor, reports[plan.tensor.name]
        if made is not None and made.digest(copies[tensor.name], buffer[:CHUNK]) != report.digest:
            raise _damaged(made.path, f"tensor {tensor.name!r}")
        if layout is not None and isinstance(plan, PlannedTensor):
            packed = _read_at(
                place, layout.places[tensor.name], packed_size(math.prod(tensor.shape))
            )
            if hashlib.sha256(packed).hexdigest() != report.mask_digest:
                raise _damaged(place, f"mask {tensor.name!r}")
            mask = unpack(np.frombuffer(packed, np.uint8), tensor.shape)
            same = _is_pruned_source(file, plan.tensor, mask, report, buffer)
        else:
            same = made is None or file.digest(tensor, buffer[:CHUNK]) == report.digest
        if not same:
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


def _is_pruned_source(
    file: WeightFile,
    tensor: StoredNumbers,
    mask: NDArray[np.bool_],
    report: TensorReport,
    buffer: NDArray[np.uint8],
) -> bool:
    """Return whether a tensor of the source is what its report is about: kept weights bit for bit,
    dropped ones by the sum of all |W|.
    """
    file.read(tensor, buffer)
    array = tensor.view(buffer)
    try:
        # other machines add in another order
        same = report.total is not None and math.isclose(total(array), report.total, rel_tol=1e-12)
    except InputError:  # no finite sum
        return False
    apply(array, mask)
    return same and hashlib.sha256(buffer.data[: tensor.size]).hexdigest() == report.digest
