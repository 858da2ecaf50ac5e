"""The results of pruning a checkpoint: `TensorReport`, one per tensor, and `PruneReport`, which is
report.json (read back in `report_file`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from nmsolve.checkpoint.places import REPORT_FORMAT
from nmsolve.pattern import Pattern
from nmsolve.result import relative_gap
from nmsolve.table import extent, table
from nmsolve.totals import exact_sum

VERSION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorReport:
    """The outcome for one tensor.

    Attributes
    ----------
    file : str
        Its file's name in the checkpoint.
    name : str
    dtype : str
        As safetensors (or NumPy) spells it.
    shape : tuple of int
    pattern : Pattern, optional
        None where the tensor is kept dense.
    axis : int, optional
        Its axis that groups lie along.
    padding : {"error", "pad", "dense"}, optional
        As for `nmsolve.solve`.
    reason : str, optional
        Why it is kept dense.
    status : {"optimal", "feasible"}, optional
    objective, bound, gap : float, optional
        As `nmsolve.solve` returns them: Σ|W| over kept entries, what no mask exceeds, and
        (bound − objective) / bound.
    total : float, optional
        Σ|W| over all entries, in float64.
    kept : int, optional
        How many entries the mask keeps.
    digest : str, optional
        SHA-256 of the pruned tensor's bytes, also where masks alone are written; None for a tensor
        that is not read.
    mask_digest : str, optional
        SHA-256 of its packed mask's bytes.
    seconds : float, optional
        Spent on reading, solving and writing; None if unknown. Not in report.json.
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
        """The number of entries of the tensor."""
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
    """A file of weights, in the source and as it was made.

    Attributes
    ----------
    name : str
        Within the checkpoint.
    header : str
        SHA-256 of all in it that is not of a tensor, which the copy has as well.
    source_size : int
        Bytes of the source.
    size : int, optional
        Bytes of its pruned copy; None where masks alone are written.
    masks_size : int, optional
        Bytes of its masks' file; None where it has none.
    """

    name: str
    header: str
    source_size: int
    size: int | None = None
    masks_size: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CopiedFile:
    """A file that went along as it is.

    Attributes
    ----------
    name : str
        Within the checkpoint.
    size : int
        In bytes.
    digest : str
        SHA-256.
    """

    name: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneReport:
    """The outcome of pruning, tensor by tensor.

    Prints as a table, without vectors.

    Attributes
    ----------
    source : str
        The pruned file's or folder's name.
    settings : mapping of str to Any
        pattern (one, or glob → pattern), method, include, exclude, padding.
    tensors : tuple of TensorReport
        In the checkpoint's order.
    left_behind : tuple of str
        Files of the source that were not taken along, since they hold weights that were not pruned.
    notes : tuple of str
        What else should be known about which files were taken.
    nmsolve : str, optional
        The version that wrote it; None from versions that noted none.
    files : tuple of FileReport
    copied : tuple of CopiedFile
    reused : bool
        Whether `resume=True` found an earlier run that had finished, so that nothing was written.
        Not in report.json, and not compared.
    """

    source: str
    settings: Mapping[str, Any]
    tensors: tuple[TensorReport, ...]
    left_behind: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    nmsolve: str | None = None
    files: tuple[FileReport, ...] = ()
    copied: tuple[CopiedFile, ...] = ()
    reused: bool = field(default=False, compare=False)

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
        known = [
            (t.objective, t.total)
            for t in self.pruned
            if t.objective is not None and t.total is not None
        ]
        if not known:
            return None
        total = exact_sum([whole for _, whole in known])
        return exact_sum([kept for kept, _ in known]) / total if total else 1.0

    @property
    def gap(self) -> float | None:
        """(bound − objective) / bound of the sums over the pruned tensors; None if one of them has
        no bound.
        """
        bounds = [t.bound for t in self.pruned if t.bound is not None]
        if not bounds or len(bounds) < len(self.pruned):
            return None
        kept = exact_sum([t.objective or 0.0 for t in self.pruned])
        return relative_gap(kept, max(kept, exact_sum(bounds)))

    def __str__(self) -> str:
        rows = [
            (
                t.name,
                t.dtype,
                extent(t.shape),
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
        """Return the text of report.json: everything but seconds, so that it is the same, byte for
        byte, for every number of threads and processes.
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

    def timed(self, seconds: Mapping[str, float]) -> PruneReport:
        """Return this report with the seconds of each tensor, by name."""
        return replace(
            self, tensors=tuple(replace(t, seconds=seconds.get(t.name)) for t in self.tensors)
        )

    def __iter__(self) -> Iterator[TensorReport]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)
