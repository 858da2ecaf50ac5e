"""What pruning a checkpoint came to: `TensorReport`, one a tensor, and `PruneReport`, which is report.json."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from nmsolve.api import total as exact_sum
from nmsolve.checkpoint.disk import read_json
from nmsolve.errors import InputError
from nmsolve.pattern import Pattern
from nmsolve.result import relative_gap
from nmsolve.table import table

FORMAT = "nmsolve-report"
VERSION = 1
#: Numbers up to this are believed: sums of them are finite.
LARGEST = 1e300


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorReport:
    """What became of one tensor.

    file : its file's name in the checkpoint. dtype : as safetensors (or NumPy) spells it.
    pattern : None where the tensor is kept dense, and reason says why. axis : its axis that groups lie along.
    padding : as for `nmsolve.solve`. status, objective, bound, gap : as `nmsolve.solve` returns them.
    total : float64 Σ|W|. kept : entries that the mask keeps. seconds : spent on reading, solving and writing; None if unknown.
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
class PruneReport:
    """What pruning came to, tensor by tensor. Prints as a table, without vectors.

    source : what was pruned, by its file or folder name. settings : pattern (one, or glob → pattern), method, include, exclude,
    padding.
    left_behind : files of the source that were not taken along, since they hold weights that were not pruned.
    """

    source: str
    settings: Mapping[str, Any]
    tensors: tuple[TensorReport, ...]
    left_behind: tuple[str, ...] = ()

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
        return sum(t.weights if t.kept is None else t.kept for t in self.tensors) / max(1, self.weights)

    @property
    def share(self) -> float | None:
        """The share of Σ|W| of the pruned tensors that is kept."""
        known = [t for t in self.pruned if t.objective is not None and t.total is not None]
        total = exact_sum([t.total for t in known if t.total is not None])
        return (exact_sum([t.objective for t in known if t.objective is not None]) / total if total else 1.0) if known else None

    @property
    def gap(self) -> float | None:
        """(bound − objective) / bound of the sums over the pruned tensors; None if one of them has no bound."""
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
        without = f"\nand {vectors} tensors with fewer than two axes, which stay dense" if vectors else ""
        left = f"\nleft behind: {', '.join(self.left_behind)}" if self.left_behind else ""
        return f"{table(head, rows, {4, 5})}{without}\n{self.conclusion}{left}"

    @property
    def conclusion(self) -> str:
        """The last lines of the table: all tensors together."""
        share = "" if self.share is None else f"\nwhere pruned, {100 * self.share:.2f} % of |W| kept"
        proof = ", no bound" if self.gap is None else f", certified gap {self.gap:.1e}"
        covered = sum(t.weights for t in self.pruned) / max(1, self.weights)
        return (
            f"{len(self.pruned)} of {len(self.tensors)} tensors pruned, {100 * covered:.1f} % of {self.weights:,} weights; "
            f"density of the whole {self.density:.4f}{share}{proof if share else ''}"
        )

    def to_json(self) -> str:
        """report.json: everything but seconds, so that it is the same, byte for byte, for every number of threads and processes."""
        names = [field.name for field in fields(TensorReport) if field.name != "seconds"]
        tensors = [
            {name: getattr(t, name) for name in names} | {"pattern": None if t.pattern is None else str(t.pattern)}
            for t in self.tensors
        ]
        whole = {
            "format": FORMAT,
            "version": VERSION,
            "source": self.source,
            "settings": dict(self.settings),
            "weights": self.weights,
            "density": self.density,
            "share": self.share,
            "gap": self.gap,
            "tensors": tensors,
            "left_behind": list(self.left_behind),
        }
        return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, where: Path) -> PruneReport:
        """What `to_json` wrote to a file; InputError for anything else."""
        whole = read_json(where, "a report that `nmsolve prune` wrote")
        try:
            if (whole["format"], whole["version"]) != (FORMAT, VERSION):
                raise ValueError(f"format {whole['format']!r}, version {whole['version']!r}")
            tensors = tuple(_tensor(entry) for entry in whole["tensors"])
            settings, source = dict(whole["settings"]), str(whole["source"])
            left_behind = tuple(str(name) for name in whole["left_behind"])
            if len({t.name for t in tensors}) < len(tensors):
                raise ValueError("a tensor is there twice")
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
            raise InputError(f"{where} is not a report that `nmsolve prune` wrote (version {VERSION}): {error}") from error
        return cls(source=source, settings=settings, tensors=tensors, left_behind=left_behind)

    def times_json(self) -> str:
        """times.json: seconds by tensor, apart from the rest because no two runs take the same."""
        seconds = {t.name: round(t.seconds, 6) for t in self.tensors if t.seconds is not None}
        return json.dumps(seconds, indent=1, ensure_ascii=False) + "\n"

    def timed(self, seconds: Mapping[str, float]) -> PruneReport:
        """This report with the seconds of each tensor, by name."""
        return replace(self, tensors=tuple(replace(t, seconds=seconds.get(t.name)) for t in self.tensors))

    def __iter__(self) -> Iterator[TensorReport]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


_NUMBERS = ("objective", "bound", "gap", "total")


def _tensor(entry: Mapping[str, Any]) -> TensorReport:
    known = {field.name for field in fields(TensorReport)} - {"seconds"}
    if set(entry) != known:
        raise ValueError(f"a tensor has fields {sorted(entry)}")
    numbers = {key: None if entry[key] is None else float(entry[key]) for key in _NUMBERS}
    strings = {key: _string(entry[key]) for key in ("padding", "reason", "status")}
    pattern = None if entry["pattern"] is None else Pattern.parse(entry["pattern"])
    integers = {key: None if entry[key] is None else int(entry[key]) for key in ("axis", "kept")}
    shape = tuple(int(size) for size in entry["shape"])
    if not all(number is None or abs(number) < LARGEST for number in numbers.values()) or min(shape, default=0) < 0:
        raise ValueError(f"tensor {entry['name']!r} has numbers that are not finite, or a negative size")
    axis, kept = integers["axis"], integers["kept"]
    if (axis is None) != (pattern is None) or (axis is not None and not 0 <= axis < len(shape)):
        raise ValueError(f"tensor {entry['name']!r} has pattern {pattern}, axis {axis} and shape {shape}")
    if kept is not None and not 0 <= kept <= math.prod(shape):
        raise ValueError(f"tensor {entry['name']!r} keeps {kept} entries of shape {shape}")
    names = {key: str(entry[key]) for key in ("file", "name", "dtype")}
    return TensorReport(**names, **numbers, **strings, **integers, pattern=pattern, shape=shape)  # type: ignore[arg-type]


def _string(value: object) -> str | None:
    return None if value is None else str(value)


def read_times(path: Path) -> dict[str, float]:
    """What `PruneReport.times_json` wrote; InputError for anything else."""
    whole = read_json(path, "an object of seconds by tensor")
    try:
        times = {str(name): float(value) for name, value in whole.items()}
        if not all(0 <= value < LARGEST for value in times.values()):
            raise ValueError("a time is negative or not finite")
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise InputError(f"{path} does not hold seconds by tensor: {error}") from error
    return times
