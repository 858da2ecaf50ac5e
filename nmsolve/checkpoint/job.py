"""A run of pruning, decided before the first tensor is read, and published when all is written."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nmsolve
from nmsolve.api import check_method
from nmsolve.checkpoint.disk import as_text, copy_whole, naming, sync_file, write_whole
from nmsolve.checkpoint.folders import CONFIG
from nmsolve.checkpoint.journal import COPIED, MASKS, PLAN, REST, SOURCE, WEIGHTS, Unfinished
from nmsolve.checkpoint.masks import MaskFile, lay_out
from nmsolve.checkpoint.planning import TensorPlan, plan_tensors
from nmsolve.checkpoint.solving import report_of
from nmsolve.checkpoint.source import Source, read_source
from nmsolve.checkpoint.stored import WeightFile, file_size
from nmsolve.checkpoint.summary import CopiedFile, FileReport, PruneReport
from nmsolve.checkpoint.target import Target, target_of
from nmsolve.errors import InputError
from nmsolve.selection import Patterns, to_globs, to_patterns

#: What came of tensors, by name: fields of their `TensorReport`s.
Outcomes = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is pruned how, and where it goes.

    mask_files : file of weights → layout of its masks; files without a planned tensor have none.
    settings : as in report.json.
    """

    source: Source
    target: Target
    plans: tuple[TensorPlan, ...]
    mask_files: Mapping[str, MaskFile]
    settings: Mapping[str, Any]

    def report(self, outcomes: Mapping[str, Mapping[str, Any]]) -> PruneReport:
        """The report, given what came of every tensor."""
        tensors = tuple(
            replace(report_of(plan), **outcomes.get(plan.tensor.name, {})) for plan in self.plans
        )
        masks = {name: layout.size for name, layout in self.mask_files.items()}
        files = tuple(
            FileReport(
                name=as_text(file.name),
                header=_header(file),
                source_size=file_size(file.path),
                masks_size=masks.get(file.name),
            )
            for file in self.source.files
        )
        return PruneReport(
            source=as_text(Path(os.path.realpath(self.source.path)).name),
            settings=self.settings,
            tensors=tensors,
            left_behind=tuple(as_text(name) for name in self.source.left_behind),
            notes=tuple(as_text(note) for note in (*self.source.notes, *self._asked)),
            nmsolve=nmsolve.__version__,
            files=files,
        )

    @property
    def _asked(self) -> tuple[str, ...]:
        """Which models were asked what their tensors are, by their folder's place in the source."""
        within = self.source.path if self.source.folder else self.source.path.parent
        return tuple(
            dict.fromkeys(
                plan.note.removeprefix(f"{within}{os.sep}") for plan in self.plans if plan.note
            )
        )

    @property
    def copied(self) -> tuple[str, ...]:
        """Files that go along with weights; an index last, without which no loader takes shards for
        whole.
        """
        return (*self.source.companions, *self.source.indexes) if self.target.weights_too else ()

    def modified(self) -> dict[str, int]:
        """When each file of weights was, in ns."""
        return {as_text(file.name): file.path.stat().st_mtime_ns for file in self.source.files}

    def run(self) -> dict[str, Any]:
        """What must be the same for a run to go on: settings, version, and the source as far as
        that shows without reading it.
        """
        files: dict[str, list[object]] = {}
        for file in self.source.files:
            status = file.path.stat()
            files[file.name] = [status.st_size, status.st_mtime_ns, _header(file)]
        configs = [
            name for name in self.source.companions if os.path.basename(name) == CONFIG
        ]  # what is planned hangs on them
        for name in (*self.source.indexes, *configs):
            status = (self.source.path / name).stat()
            files[name] = [status.st_size, status.st_mtime_ns]
        planned = {
            plan.tensor.name: [str(plan.pattern), plan.axis, plan.padding, plan.reason]
            for plan in self.plans
        }
        identity = {
            "nmsolve": nmsolve.__version__,
            "source": os.path.realpath(self.source.path),
            SOURCE: files,
        }
        return (
            identity
            | {"weights too": self.target.weights_too}
            | dict(self.settings)
            | {PLAN: planned}
        )


def _header(file: WeightFile) -> str:
    """SHA-256 of what is in a file beside its tensors."""
    return hashlib.sha256(b"".join(data for _, data in file.pieces)).hexdigest()


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
    included, excluded = (
        None if include is None else to_globs(include, "include"),
        to_globs(exclude, "exclude"),
    )
    source = read_source(src)
    target = target_of(source, dst, weights_too)
    plans = plan_tensors(source.files, pattern, included, excluded, padding)
    if not any(plan.pattern for plan in plans):
        reasons = Counter(plan.reason for plan in plans)
        listed = (
            "; ".join(f"{reason} ({count} tensors)" for reason, count in reasons.most_common(4))
            or "it holds none"
        )
        if any("does not consist" in str(reason) for reason in reasons):
            listed += "; padding 'pad' or 'dense' takes shapes that do not divide"
        raise InputError(
            f"no tensor of {src} can have {' or '.join(str(p) for p in patterns.values() if p)}: "
            f"{listed}"
        )
    layouts = {
        file.name: lay_out([plan for plan in plans if plan.file == file.name])
        for file in source.files
    }
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


def publish(job: Job, report: PruneReport, unfinished: Unfinished) -> PruneReport:
    """Put whole files into their places; the report as it was written.

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
    write_whole(unfinished.body(REST, job.target.times.name), report.times_json(job.modified()))
    write_whole(unfinished.body(REST, job.target.report.name), report.to_json())
    moves = moves_of(job, unfinished)
    for made, _ in moves:
        with naming(f"bringing {made} to the disk"):
            sync_file(made)
    unfinished.publish(moves)
    return report


def moves_of(job: Job, unfinished: Unfinished) -> list[tuple[Path, Path]]:
    """Every file of the target as it is made, and its place, in the order in which they are
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
