"""A run of pruning, decided before the first tensor is read."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nmsolve.api import check_method
from nmsolve.checkpoint.folders import CONFIG
from nmsolve.checkpoint.journal import PLAN, SOURCE
from nmsolve.checkpoint.masks import MaskFile, lay_out
from nmsolve.checkpoint.places import Places
from nmsolve.checkpoint.planning import PlannedTensor, TensorPlan, plan_tensors
from nmsolve.checkpoint.solving import report_of
from nmsolve.checkpoint.source import Source, read_source
from nmsolve.checkpoint.stored import WeightFile, file_size
from nmsolve.checkpoint.summary import FileReport, PruneReport
from nmsolve.checkpoint.target import target_of
from nmsolve.disk import as_text
from nmsolve.errors import InputError
from nmsolve.pattern import Pattern
from nmsolve.selection import Patterns, Selection
from nmsolve.version import __version__

#: Tensor name → the fields of its `TensorReport` that are known once it is solved, or copied.
Outcomes = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run as it is decided: what is pruned, how, and where it goes.

    Attributes
    ----------
    source : Source
    target : Places
    method : str
        As for `nmsolve.solve`.
    plans : tuple of TensorPlan
        One for each tensor, in the order of files and of tensors in them.
    mask_files : mapping of str to MaskFile
        File of weights → layout of its masks; files without a planned tensor have none.
    settings : mapping of str to Any
        As in report.json.
    """

    source: Source
    target: Places
    method: str
    plans: tuple[TensorPlan, ...]
    mask_files: Mapping[str, MaskFile]
    settings: Mapping[str, Any]

    @property
    def planned(self) -> tuple[PlannedTensor, ...]:
        """The tensors that get a mask."""
        return tuple(plan for plan in self.plans if isinstance(plan, PlannedTensor))

    @property
    def to_do(self) -> tuple[TensorPlan, ...]:
        """The tensors that are solved or copied: all, or where masks alone are written, the
        planned.
        """
        return self.plans if self.target.weights_too else self.planned

    def report(self, outcomes: Mapping[str, Mapping[str, Any]]) -> PruneReport:
        """Return the report, given the outcomes so far."""
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
            nmsolve=__version__,
            files=files,
        )

    @property
    def _asked(self) -> tuple[str, ...]:
        """The models that were asked about their tensors, by their folder's place in the source."""
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
        """Return when each file of weights was modified, in ns."""
        return {as_text(file.name): file.path.stat().st_mtime_ns for file in self.source.files}

    def run(self) -> dict[str, Any]:
        """Return what must be the same for a run to go on: settings, version, and the source as far
        as that shows without reading it.
        """
        files: dict[str, list[object]] = {}
        for file in self.source.files:
            status = file.path.stat()
            files[file.name] = [status.st_size, status.st_mtime_ns, _header(file)]
        # what is planned depends on them
        configs = [name for name in self.source.companions if os.path.basename(name) == CONFIG]
        for name in (*self.source.indexes, *configs):
            status = (self.source.path / name).stat()
            files[name] = [status.st_size, status.st_mtime_ns]
        planned = {
            plan.tensor.name: [str(plan.pattern), plan.axis, plan.padding, plan.reason]
            for plan in self.plans
        }
        identity = {
            "nmsolve": __version__,
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
    """Return the SHA-256 of what is in a file beside its tensors."""
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
    """Decide what is to be done, and check all that can be checked without reading weights.

    Raises
    ------
    InputError, PatternError
        For whatever can be seen to be wrong.
    """
    selection = Selection.of(pattern, include, exclude, padding)
    chosen = [pattern for pattern in selection.patterns.values() if pattern is not None]
    for each in chosen:
        check_method(method, each)
    source = read_source(src)
    target = target_of(source, dst, weights_too)
    plans = plan_tensors(source.files, selection)
    planned = [plan for plan in plans if isinstance(plan, PlannedTensor)]
    if not planned:
        raise _nothing_planned(src, plans, chosen)
    layouts = {
        file.name: lay_out([plan for plan in planned if plan.file == file.name])
        for file in source.files
    }
    return Job(
        source=source,
        target=target,
        method=method,
        plans=plans,
        mask_files={name: layout for name, layout in layouts.items() if layout is not None},
        settings=_settings(selection, method),
    )


def _nothing_planned(
    src: Path, plans: Iterable[TensorPlan], patterns: Iterable[Pattern]
) -> InputError:
    reasons = Counter(plan.reason for plan in plans)
    listed = (
        "; ".join(f"{reason} ({count} tensors)" for reason, count in reasons.most_common(4))
        or "it holds none"
    )
    if any("does not consist" in str(reason) for reason in reasons):
        listed += "; padding 'pad' or 'dense' takes shapes that do not divide"
    return InputError(f"no tensor of {src} can have {' or '.join(map(str, patterns))}: {listed}")


def _settings(selection: Selection, method: str) -> dict[str, Any]:
    """Return the options of a run as report.json holds them."""
    patterns = {glob: None if p is None else str(p) for glob, p in selection.patterns.items()}
    return {
        "pattern": patterns if set(patterns) != {"*"} else patterns["*"],
        "method": "exact" if method == "auto" else method,
        "include": None if selection.include is None else list(selection.include),
        "exclude": list(selection.exclude),
        "padding": selection.padding,
    }
