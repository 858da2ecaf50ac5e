"""The end of a run: what was made in its folder, put into its places."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nmsolve.checkpoint.job import Job
from nmsolve.checkpoint.journal import COPIED, MASKS, REST, WEIGHTS, Unfinished
from nmsolve.checkpoint.report_file import times_json
from nmsolve.checkpoint.stored import file_size
from nmsolve.checkpoint.summary import CopiedFile, PruneReport
from nmsolve.disk import as_text, copy_whole, naming, sync_file, write_whole
from nmsolve.errors import InputError


def publish(job: Job, report: PruneReport, unfinished: Unfinished) -> PruneReport:
    """Put whole files into their places; return the report as it was written.

    Raises
    ------
    InputError
        If the source has changed since the run was begun.
    """
    differences = unfinished.differences(job.run())
    if differences:
        raise InputError(
            f"{job.source.path} changed while it was read ({'; '.join(differences)}), so what was "
            f"written is of no use: remove {unfinished.path}, and begin again"
        )
    files = []
    for file, entry in zip(job.source.files, report.files, strict=True):
        if job.target.weights_too:
            body = unfinished.body(WEIGHTS, file.name)
            with naming(f"finishing {body}"):
                file.finish(body)
            entry = replace(entry, size=file_size(file.finished(body)))
        files.append(entry)
    copied = []
    for name in job.copied:
        with naming(f"copying {job.source.path / name}"):
            made = unfinished.body(COPIED, name)
            made.parent.mkdir(parents=True, exist_ok=True)
            size, digest = copy_whole(job.source.path / name, made)
        copied.append(CopiedFile(name=as_text(name), size=size, digest=digest))
    report = replace(report, files=tuple(files), copied=tuple(copied))
    write_whole(unfinished.body(REST, job.target.times.name), times_json(report, job.modified()))
    write_whole(unfinished.body(REST, job.target.report.name), report.to_json())
    moves = moves_of(job, unfinished)
    for made, _ in moves:
        with naming(f"bringing {made} to the disk"):
            sync_file(made)
    unfinished.publish(moves)
    return report


def moves_of(job: Job, unfinished: Unfinished) -> list[tuple[Path, Path]]:
    """Return every file of the target as it is made, and its place, in the order in which they are
    published.
    """
    target, moves = job.target, []
    for file in job.source.files:
        if target.weights_too:
            moves.append(
                (file.finished(unfinished.body(WEIGHTS, file.name)), target.weights(file.name))
            )
        if file.name in job.mask_files:
            moves.append((unfinished.body(MASKS, file.name), target.masks(file.name)))
    moves += [(unfinished.body(REST, place.name), place) for place in (target.times, target.report)]
    return moves + [(unfinished.body(COPIED, name), target.path / name) for name in job.copied]
