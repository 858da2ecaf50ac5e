"""report.json and times.json read back, and times.json written. `docs/format.md` specifies both."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from nmsolve.checkpoint.places import REPORT_FORMAT, TIMES_FORMAT
from nmsolve.checkpoint.summary import VERSION, CopiedFile, FileReport, PruneReport, TensorReport
from nmsolve.disk import read_json
from nmsolve.errors import InputError
from nmsolve.pattern import Pattern

#: The version that knew neither digests nor sizes, and is still read.
FIRST = 1
#: Numbers up to this are believed: sums of them are finite.
LARGEST = 1e300
#: Fields that the first version had not, and one that no version has.
_DIGESTS, _TIMED = frozenset(("digest", "mask_digest")), "seconds"


def read_report(path: Path) -> PruneReport:
    """Read what `PruneReport.to_json` wrote to a file; InputError for anything else."""
    whole = read_json(path, "a report that `nmsolve prune` wrote")
    try:
        if whole["format"] != REPORT_FORMAT or whole["version"] not in (FIRST, VERSION):
            raise ValueError(f"format {whole['format']!r}, version {whole['version']!r}")
        tensors = tuple(_tensor(entry, whole["version"]) for entry in whole["tensors"])
        if len({t.name for t in tensors}) < len(tensors):
            raise ValueError("a tensor is there twice")
        found = PruneReport(
            source=str(whole["source"]),
            settings=dict(whole["settings"]),
            tensors=tensors,
            left_behind=tuple(str(name) for name in whole["left_behind"]),
        )
        if whole["version"] == FIRST:
            return found
        return replace(
            found,
            notes=tuple(str(note) for note in whole["notes"]),
            nmsolve=str(whole["nmsolve"]),
            files=tuple(_file(entry) for entry in whole["files"]),
            copied=tuple(_copied(entry) for entry in whole["copied"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise InputError(
            f"{path} is not a report that `nmsolve prune` wrote (version {VERSION}): {error}"
        ) from error


def _tensor(entry: Mapping[str, Any], version: int) -> TensorReport:
    """Return one tensor's entry, checked; any error if it is none."""
    known = {field.name for field in fields(TensorReport)} - {_TIMED}
    if set(entry) != known - (_DIGESTS if version == FIRST else set()):
        raise ValueError(f"a tensor has fields {sorted(entry)}")
    name, shape = str(entry["name"]), tuple(int(size) for size in entry["shape"])
    pattern = None if entry["pattern"] is None else Pattern.parse(entry["pattern"])
    found = TensorReport(
        file=str(entry["file"]),
        name=name,
        dtype=str(entry["dtype"]),
        shape=shape,
        pattern=pattern,
        axis=_integer(entry["axis"]),
        padding=_string(entry["padding"]),
        reason=_string(entry["reason"]),
        status=_string(entry["status"]),
        objective=_number(entry["objective"]),
        bound=_number(entry["bound"]),
        gap=_number(entry["gap"]),
        total=_number(entry["total"]),
        kept=_integer(entry["kept"]),
        digest=_string(entry.get("digest")),
        mask_digest=_string(entry.get("mask_digest")),
    )
    numbers = (found.objective, found.bound, found.gap, found.total)
    if (
        not all(number is None or abs(number) < LARGEST for number in numbers)
        or min(shape, default=0) < 0
    ):
        raise ValueError(f"tensor {name!r} has numbers that are not finite, or a negative size")
    axis = found.axis
    if (axis is None) != (pattern is None) or (axis is not None and not 0 <= axis < len(shape)):
        raise ValueError(f"tensor {name!r} has pattern {pattern}, axis {axis} and shape {shape}")
    if found.kept is not None and not 0 <= found.kept <= math.prod(shape):
        raise ValueError(f"tensor {name!r} keeps {found.kept} entries of shape {shape}")
    return found


def _string(value: Any) -> str | None:
    return None if value is None else str(value)


def _integer(value: Any) -> int | None:
    return None if value is None else int(value)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _file(entry: Mapping[str, Any]) -> FileReport:
    return FileReport(
        name=str(entry["name"]),
        header=str(entry["header"]),
        source_size=int(entry["source_size"]),
        size=_integer(entry["size"]),
        masks_size=_integer(entry["masks_size"]),
    )


def _copied(entry: Mapping[str, Any]) -> CopiedFile:
    return CopiedFile(name=str(entry["name"]), size=int(entry["size"]), digest=str(entry["digest"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """The contents of times.json. Older versions wrote seconds alone.

    Attributes
    ----------
    seconds : mapping of str to float
        By tensor.
    modified : mapping of str to int
        When each file of the source was modified, in ns.
    report : str, optional
        SHA-256 of report.json.
    """

    seconds: Mapping[str, float]
    modified: Mapping[str, int] = field(default_factory=dict)
    report: str | None = None


def times_json(report: PruneReport, modified: Mapping[str, int]) -> str:
    """Return the text of times.json: what no two runs share, and so is apart from report.json; and
    the digest of report.json, which cannot hold its own.
    """
    whole = {
        "format": TIMES_FORMAT,
        "version": 1,
        "report": hashlib.sha256(report.to_json().encode()).hexdigest(),
        "seconds": {t.name: round(t.seconds, 6) for t in report if t.seconds is not None},
        "modified": dict(modified),
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def read_times(path: Path) -> Times:
    """Read what `times_json` wrote, or an earlier version: seconds alone; InputError for anything
    else.
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
