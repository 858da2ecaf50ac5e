"""A run of pruning, decided before the first tensor is read: begun or gone on with, and published when all is written."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nmsolve
from nmsolve.api import check_method
from nmsolve.checkpoint.disk import as_text, naming, sync_file, write_whole
from nmsolve.checkpoint.masks import MaskFile, lay_out
from nmsolve.checkpoint.planning import TensorPlan, plan_tensors
from nmsolve.checkpoint.solving import is_outcome, report_of
from nmsolve.checkpoint.source import Source, read_source
from nmsolve.checkpoint.summary import PruneReport, TensorReport, read_times
from nmsolve.checkpoint.target import Target, check_vacant, target_of
from nmsolve.checkpoint.unfinished import COPIED, MASKS, REST, SOURCE, WEIGHTS, Unfinished
from nmsolve.errors import InputError
from nmsolve.globs import Patterns, to_globs, to_patterns

#: What came of tensors, by name: fields of their `TensorReport`s.
Outcomes = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is pruned how, and where it goes.

    mask_files : file of weights → layout of its masks; files without a planned tensor have none. settings : as in report.json.
    """

    source: Source
    target: Target
    plans: tuple[TensorPlan, ...]
    mask_files: Mapping[str, MaskFile]
    settings: Mapping[str, Any]

    def report(self, outcomes: Mapping[str, Mapping[str, Any]]) -> PruneReport:
        """The report, given what came of every tensor."""
        tensors = tuple(replace(report_of(plan), **outcomes.get(plan.tensor.name, {})) for plan in self.plans)
        return PruneReport(
            source=as_text(Path(os.path.realpath(self.source.path)).name),
            settings=self.settings,
            tensors=tensors,
            left_behind=tuple(as_text(name) for name in self.source.left_behind),
        )

    def run(self) -> dict[str, Any]:
        """What must be the same for a run to go on: settings, version, and the source as far as that shows without reading it."""
        files: dict[str, list[object]] = {}
        for file in self.source.files:
            status = file.path.stat()
            headers = hashlib.sha256(b"".join(data for _, data in file.pieces)).hexdigest()
            files[file.name] = [status.st_size, status.st_mtime_ns, headers]
        for name in self.source.indexes:
            status = (self.source.path / name).stat()
            files[name] = [status.st_size, status.st_mtime_ns]
        source = os.path.realpath(self.source.path)
        identity = {"nmsolve": nmsolve.__version__, "source": source, SOURCE: files}
        return identity | {"weights too": self.target.weights_too} | dict(self.settings)


def decide(
    src: Path,
    dst: Path,
    pattern: Patterns,
    *,
    method: str,
    include: str | Iterable[str] | None,
    exclude: str | Iterable[str],
    padding: str,
    weights_too: bool,
) -> Job:
    """What is to be done.

    Raises
    ------
    InputError, PatternError
        For whatever can be seen to be wrong without reading weights.
    """
    patterns = {glob: None if p is None else str(p) for glob, p in to_patterns(pattern).items()}
    for chosen in to_patterns(pattern).values():
        if chosen is not None:
            check_method(method, chosen)
    included, excluded = None if include is None else to_globs(include, "include"), to_globs(exclude, "exclude")
    source = read_source(src)
    target = target_of(source, dst, weights_too)
    plans = plan_tensors(source.files, pattern, included, excluded, padding)
    if not any(plan.pattern for plan in plans):
        reasons = Counter(plan.reason for plan in plans)
        listed = "; ".join(f"{reason} ({count} tensors)" for reason, count in reasons.most_common(4)) or "it holds none"
        if any("does not consist" in str(reason) for reason in reasons):
            listed += "; padding 'pad' or 'dense' takes shapes that do not divide"
        raise InputError(f"no tensor of {src} can have {' or '.join(str(p) for p in patterns.values() if p)}: {listed}")
    layouts = {file.name: lay_out([plan for plan in plans if plan.file == file.name]) for file in source.files}
    settings = {
        "pattern": patterns if set(patterns) != {"*"} else patterns["*"],
        "method": "exact" if method == "auto" else method,
        "include": None if included is None else list(included),
        "exclude": list(excluded),
        "padding": padding,
    }
    return Job(
        source=source,
        target=target,
        plans=plans,
        mask_files={name: layout for name, layout in layouts.items() if layout is not None},
        settings=settings,
    )


def begin(job: Job, unfinished: Unfinished, resume: bool) -> tuple[Outcomes, PruneReport | None]:
    """Begin a run, or go on with one: what has been done before; or the report, if everything has.

    Raises
    ------
    InputError
        If something is in the way, or the run that is there is another one.
    """
    if not unfinished.begun and not unfinished.publishing:
        complete = _complete(job) if resume else None
        if complete is not None:
            unfinished.discard()
            return {}, complete
        check_vacant(job.source, job.target)
    elif not resume:
        raise InputError(
            f"an unfinished run is in {unfinished.path}: go on with it by resume=True (--resume), or remove that folder"
        )
    unfinished.hold()
    run = job.run()
    if unfinished.begun:
        differences = unfinished.differences(run)
        if differences:
            raise InputError(
                f"the unfinished run in {unfinished.path} is another one ({'; '.join(differences)}): "
                f"repeat it as it was begun, or remove that folder"
            )
    if unfinished.publishing:
        unfinished.go_on_publishing(_moves(job, unfinished))
        complete = _complete(job)
        if complete is None:
            raise InputError(f"{job.target.report} is not of this run, though it is finished: name another DST")
        return {}, complete
    if not unfinished.begun:
        unfinished.begin(run)
    for file in job.source.files:
        if job.target.weights_too:
            unfinished.prepare(WEIGHTS, file.name, file.size, file.pieces)
        layout = job.mask_files.get(file.name)
        if layout is not None:
            unfinished.prepare(MASKS, file.name, layout.size, [(0, layout.header)])
    found, plans = unfinished.done(), {plan.tensor.name: plan for plan in job.plans}
    return {name: entry for name, entry in found.items() if name in plans and is_outcome(entry, plans[name])}, None


def publish(job: Job, report: PruneReport, unfinished: Unfinished) -> None:
    """Put whole files into their places.

    Raises
    ------
    InputError
        If the source has changed since the run was begun.
    """
    differences = unfinished.differences(job.run())
    if differences:
        raise InputError(
            f"{job.source.path} changed while it was read, so what was written is of no use: "
            f"remove {unfinished.path}, and begin again"
        )
    for file in job.source.files if job.target.weights_too else ():
        body = unfinished.body(WEIGHTS, file.name)
        with naming(f"finishing {body}"):
            file.finish(body)
    write_whole(unfinished.body(REST, job.target.times.name), report.times_json())
    write_whole(unfinished.body(REST, job.target.report.name), report.to_json())
    for name in _copied(job):
        with naming(f"copying {job.source.path / name}"):
            made = unfinished.body(COPIED, name)
            made.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(job.source.path / name, made)
    moves = _moves(job, unfinished)
    for made, _ in moves:
        with naming(f"bringing {made} to the disk"):
            sync_file(made)
    unfinished.publish(moves)


def _copied(job: Job) -> tuple[str, ...]:
    """Files that go along with weights; an index last, without which no loader takes shards for whole."""
    return (*job.source.companions, *job.source.indexes) if job.target.weights_too else ()


def _moves(job: Job, unfinished: Unfinished) -> list[tuple[Path, Path]]:
    """Every file of the target as it is made, and its place, in the order in which they are published."""
    target, moves = job.target, []
    for file in job.source.files:
        if target.weights_too:
            moves.append((file.finished(unfinished.body(WEIGHTS, file.name)), target.weights(file.name)))
        if file.name in job.mask_files:
            moves.append((unfinished.body(MASKS, file.name), target.masks(file.name)))
    moves += [(unfinished.body(REST, place.name), place) for place in (target.times, target.report)]
    return moves + [(unfinished.body(COPIED, name), target.path / name) for name in _copied(job)]


def _read_report(target: Target) -> PruneReport:
    """The report of a finished run."""
    report = PruneReport.read(target.report)
    return report.timed(read_times(target.times)) if target.times.exists() else report


def _complete(job: Job) -> PruneReport | None:
    """The report of this very job, if it was finished before."""
    target = job.target
    places = [target.weights(file.name) for file in job.source.files if target.weights_too]
    places += [target.masks(name) for name in job.mask_files]
    places += [target.path / name for name in job.source.indexes if target.weights_too]
    if not target.report.exists() or not all(place.exists() for place in places):
        return None
    report = _read_report(target)
    same = report.settings == job.settings and [_planned(t) for t in report.tensors] == [
        _planned(t) for t in job.report({}).tensors
    ]
    return report if same else None


def _planned(tensor: TensorReport) -> tuple[object, ...]:
    return (tensor.file, tensor.name, tensor.dtype, tensor.shape, tensor.pattern, tensor.axis, tensor.padding, tensor.reason)
