"""What pruning a checkpoint came to: `TensorReport`, one a tensor, and `PruneReport`, which is
report.json.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from nmsolve.api import total as exact_sum
from nmsolve.checkpoint.disk import read_json
from nmsolve.checkpoint.source import REPORT_FORMAT
from nmsolve.errors import InputError
from nmsolve.pattern import Pattern
from nmsolve.result import relative_gap
from nmsolve.table import table

VERSION = 2
#: That knew neither digests nor sizes, and is still read.
FIRST = 1
TIMES_FORMAT = "nmsolve-times"
#: Numbers up to this are believed: sums of them are finite.
LARGEST = 1e300


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorReport:
    """What became of one tensor.

    file : its file's name in the checkpoint. dtype : as safetensors (or NumPy) spells it. pattern :
    None where the tensor is kept dense, and reason says why. axis : its axis that groups lie along.
    padding : as for `nmsolve.solve`. status, objective, bound, gap : as `nmsolve.solve` returns
    them. total : float64 Σ|W|. kept : entries that the mask keeps. digest : SHA-256 of the pruned
    tensor's bytes, also where masks alone are written; None for a tensor that is not read.
    mask_digest : of its packed mask's. seconds : spent on reading, solving and writing; None if
    unknown.
    """

    file: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    pattern: Pattern | None
    axis: int | None
    padding: str | None
    reason: str | None
    status: str | None = None
    objective: float | None = None
    bound: float | None = None
    gap: float | None = None
    total: float | None = None
    kept: int | None = None
    digest: str | None = None
    mask_digest: str | None = None
    seconds: float | None = None

    @property
    def weights(self) -> int:
        """How many entries the tensor has."""
        return math.prod(self.shape)

    @property
    def density(self) -> float:
        """The share of entries that is kept: 1 for a dense tensor."""
        return 1.0 if self.kept is None or not self.weights else self.kept / self.weights

    @property
    def share(self) -> float | None:
        """The share of Σ|W| that is kept; 1 for a tensor of zeros, None where it was not pruned."""
        if self.objective is None or self.total is None:
            return None
        return self.objective / self.total if self.total else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FileReport:
    """A file of weights: what it was in the source, and what was made of it.

    name : within the checkpoint. header : SHA-256 of all in it that is not of a tensor, which the
    copy has as well. source_size, size, masks_size : bytes of the source, of its pruned copy (None
    where masks alone are written) and of its masks' file (None where it has none).
    """

    name: str
    header: str
    source_size: int
    size: int | None = None
    masks_size: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CopiedFile:
    """A file that went along as it is. digest : SHA-256."""

    name: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """What times.json holds.

    seconds : by tensor. modified : when each file of the source was, in ns. report : SHA-256 of
    report.json. Older versions wrote neither of these.
    """

    seconds: Mapping[str, float]
    modified: Mapping[str, int] = field(default_factory=dict)
    report: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneReport:
    """What pruning came to, tensor by tensor. Prints as a table, without vectors.

    source : what was pruned, by its file or folder name. settings : pattern (one, or glob →
    pattern), method, include, exclude, padding. left_behind : files of the source that were not
    taken along, since they hold weights that were not pruned. notes : what else should be known
    about which files were taken. nmsolve : the version that wrote it; None from versions that noted
    none. files, copied : of the checkpoint.
    """

    source: str
    settings: Mapping[str, Any]
    tensors: tuple[TensorReport, ...]
    left_behind: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    nmsolve: str | None = None
    files: tuple[FileReport, ...] = ()
    copied: tuple[CopiedFile, ...] = ()

    @property
    def pruned(self) -> tuple[TensorReport, ...]:
        """The tensors that have a mask."""
        return tuple(t for t in self.tensors if t.pattern is not None)

    @property
    def dense(self) -> tuple[TensorReport, ...]:
        """The tensors that have none."""
        return tuple(t for t in self.tensors if t.pattern is None)

    @property
    def weights(self) -> int:
        """Entries of all tensors."""
        return sum(t.weights for t in self.tensors)

    @property
    def density(self) -> float:
        """The share of all entries that is kept, those of dense tensors included."""
        return sum(t.weights if t.kept is None else t.kept for t in self.tensors) / max(
            1, self.weights
        )

    @property
    def share(self) -> float | None:
        """The share of Σ|W| of the pruned tensors that is kept."""
        known = [t for t in self.pruned if t.objective is not None and t.total is not None]
        total = exact_sum([t.total for t in known if t.total is not None])
        return (
            (
                exact_sum([t.objective for t in known if t.objective is not None]) / total
                if total
                else 1.0
            )
            if known
            else None
        )

    @property
    def gap(self) -> float | None:
        """(bound − objective) / bound of the sums over the pruned tensors; None if one of them has
        no bound.
        """
        bounds = [t.bound for t in self.pruned]
        if not bounds or None in bounds:
            return None
        kept = exact_sum([t.objective or 0.0 for t in self.pruned])
        return relative_gap(kept, max(kept, exact_sum([b for b in bounds if b is not None])))

    def __str__(self) -> str:
        rows = [
            (
                t.name,
                t.dtype,
                "×".join(map(str, t.shape)),
                str(t.pattern or "-"),
                "-" if t.share is None else f"{100 * t.share:.2f} %",
                "-" if t.gap is None else f"{t.gap:.1e}",
                t.reason or t.status or "",
            )
            for t in self.tensors
            if len(t.shape) > 1
        ]
        head = ("tensor", "dtype", "shape", "pattern", "kept |W|", "gap", "status")
        vectors = sum(len(t.shape) < 2 for t in self.tensors)
        without = (
            f"\nand {vectors} tensors with fewer than two axes, which stay dense" if vectors else ""
        )
        left = f"\nleft behind: {', '.join(self.left_behind)}" if self.left_behind else ""
        notes = "".join(f"\nnote: {note}" for note in self.notes)
        return f"{table(head, rows, {4, 5})}{without}\n{self.conclusion}{left}{notes}"

    @property
    def conclusion(self) -> str:
        """The last lines of the table: all tensors together."""
        share = (
            "" if self.share is None else f"\nwhere pruned, {100 * self.share:.2f} % of |W| kept"
        )
        proof = ", no bound" if self.gap is None else f", certified gap {self.gap:.1e}"
        covered = sum(t.weights for t in self.pruned) / max(1, self.weights)
        return (
            f"{len(self.pruned)} of {len(self.tensors)} tensors pruned, {100 * covered:.1f} % of "
            f"{self.weights:,} weights; density of the whole "
            f"{self.density:.4f}{share}{proof if share else ''}"
        )

    def to_json(self) -> str:
        """report.json: everything but seconds, so that it is the same, byte for byte, for every
        number of threads and processes.
        """
        names = [field.name for field in fields(TensorReport) if field.name != "seconds"]
        tensors = [
            {name: getattr(t, name) for name in names}
            | {"pattern": None if t.pattern is None else str(t.pattern)}
            for t in self.tensors
        ]
        whole = {
            "format": REPORT_FORMAT,
            "version": VERSION,
            "nmsolve": self.nmsolve,
            "source": self.source,
            "settings": dict(self.settings),
            "weights": self.weights,
            "density": self.density,
            "share": self.share,
            "gap": self.gap,
            "tensors": tensors,
            "files": [asdict(file) for file in self.files],
            "copied": [asdict(file) for file in self.copied],
            "left_behind": list(self.left_behind),
            "notes": list(self.notes),
        }
        return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, where: Path) -> PruneReport:
        """What `to_json` wrote to a file; InputError for anything else."""
        whole = read_json(where, "a report that `nmsolve prune` wrote")
        try:
            if whole["format"] != REPORT_FORMAT or whole["version"] not in (FIRST, VERSION):
                raise ValueError(f"format {whole['format']!r}, version {whole['version']!r}")
            tensors = tuple(_tensor(entry, whole["version"]) for entry in whole["tensors"])
            settings, source = dict(whole["settings"]), str(whole["source"])
            left_behind = tuple(str(name) for name in whole["left_behind"])
            if len({t.name for t in tensors}) < len(tensors):
                raise ValueError("a tensor is there twice")
            found = cls(source=source, settings=settings, tensors=tensors, left_behind=left_behind)
            if whole["version"] == FIRST:
                return found
            return replace(
                found,
                notes=tuple(str(note) for note in whole["notes"]),
                nmsolve=str(whole["nmsolve"]),
                files=tuple(_file(entry) for entry in whole["files"]),
                copied=tuple(
                    CopiedFile(
                        name=str(entry["name"]),
                        size=int(entry["size"]),
                        digest=str(entry["digest"]),
                    )
                    for entry in whole["copied"]
                ),
            )
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
            raise InputError(
                f"{where} is not a report that `nmsolve prune` wrote (version {VERSION}): {error}"
            ) from error

    def times_json(self, modified: Mapping[str, int]) -> str:
        """times.json: seconds by tensor, and when each file of the source was modified, apart from
        the rest because no two runs have the same; and the digest of report.json, which cannot hold
        its own.
        """
        seconds = {t.name: round(t.seconds, 6) for t in self.tensors if t.seconds is not None}
        report = hashlib.sha256(self.to_json().encode()).hexdigest()
        whole = {
            "format": TIMES_FORMAT,
            "version": 1,
            "report": report,
            "seconds": seconds,
            "modified": dict(modified),
        }
        return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"

    def timed(self, seconds: Mapping[str, float]) -> PruneReport:
        """This report with the seconds of each tensor, by name."""
        return replace(
            self, tensors=tuple(replace(t, seconds=seconds.get(t.name)) for t in self.tensors)
        )

    def __iter__(self) -> Iterator[TensorReport]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


_NUMBERS = ("objective", "bound", "gap", "total")
_DIGESTS = ("digest", "mask_digest")


def _tensor(entry: Mapping[str, Any], version: int) -> TensorReport:
    known = (
        {field.name for field in fields(TensorReport)}
        - {"seconds"}
        - (set(_DIGESTS) if version == FIRST else set())
    )
    if set(entry) != known:
        raise ValueError(f"a tensor has fields {sorted(entry)}")
    numbers = {key: None if entry[key] is None else float(entry[key]) for key in _NUMBERS}
    strings = {key: _string(entry.get(key)) for key in ("padding", "reason", "status", *_DIGESTS)}
    pattern = None if entry["pattern"] is None else Pattern.parse(entry["pattern"])
    integers = {key: None if entry[key] is None else int(entry[key]) for key in ("axis", "kept")}
    shape = tuple(int(size) for size in entry["shape"])
    if (
        not all(number is None or abs(number) < LARGEST for number in numbers.values())
        or min(shape, default=0) < 0
    ):
        raise ValueError(
            f"tensor {entry['name']!r} has numbers that are not finite, or a negative size"
        )
    axis, kept = integers["axis"], integers["kept"]
    if (axis is None) != (pattern is None) or (axis is not None and not 0 <= axis < len(shape)):
        raise ValueError(
            f"tensor {entry['name']!r} has pattern {pattern}, axis {axis} and shape {shape}"
        )
    if kept is not None and not 0 <= kept <= math.prod(shape):
        raise ValueError(f"tensor {entry['name']!r} keeps {kept} entries of shape {shape}")
    names = {key: str(entry[key]) for key in ("file", "name", "dtype")}
    return TensorReport(**names, **numbers, **strings, **integers, pattern=pattern, shape=shape)  # type: ignore[arg-type]


def _string(value: object) -> str | None:
    return None if value is None else str(value)


def _file(entry: Mapping[str, Any]) -> FileReport:
    sizes = {key: None if entry[key] is None else int(entry[key]) for key in ("size", "masks_size")}
    return FileReport(
        name=str(entry["name"]),
        header=str(entry["header"]),
        source_size=int(entry["source_size"]),
        **sizes,
    )


def read_times(path: Path) -> Times:
    """What `PruneReport.times_json` wrote, or an earlier version: seconds alone; InputError for
    anything else.
    """
    whole = read_json(path, "an object of seconds by tensor")
    try:
        modified: dict[str, int] = {}
        seconds, report = whole, None
        if whole.get("format") == TIMES_FORMAT:
            if whole["version"] != 1:
                raise ValueError(f"version {whole['version']!r}")
            seconds, report = whole["seconds"], str(whole["report"])
            modified = {str(name): int(value) for name, value in whole["modified"].items()}
        times = {str(name): float(value) for name, value in seconds.items()}
        if not all(0 <= value < LARGEST for value in times.values()):
            raise ValueError("a time is negative or not finite")
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise InputError(f"{path} does not hold seconds by tensor: {error}") from error
    return Times(seconds=times, modified=modified, report=report)
