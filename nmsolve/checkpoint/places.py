"""Where nmsolve's own files lie beside pruned weights, and what they call themselves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

MASKS_FOLDER, REPORT, TIMES, UNFINISHED = (
    "masks",
    "report.json",
    "times.json",
    ".nmsolve-unfinished",
)
#: How the masks of one file of weights are named.
MASKS_SUFFIX = ".masks.safetensors"
#: How a folder's own files begin, which a run does not take along from its source.
OWN = (MASKS_FOLDER, REPORT, TIMES)
#: What these files call themselves. `docs/format.md` specifies them.
MASKS_FORMAT, REPORT_FORMAT, TIMES_FORMAT = "nmsolve-masks", "nmsolve-report", "nmsolve-times"


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The place of every file of a pruned checkpoint, and of the folder in which they are made.

    Attributes
    ----------
    path : Path
        A folder, or the one file of weights; where masks alone are written, of masks.
    folder : bool
        Whether it is a folder.
    weights_too : bool
        Whether there are weights, or masks alone.
    """

    path: Path
    folder: bool
    weights_too: bool = True

    @classmethod
    def of(cls, path: Path) -> Self:
        """Return the places of a checkpoint that is there."""
        return cls(path=path, folder=path.is_dir())

    @property
    def work(self) -> Path:
        """The folder of an unfinished run: on the same file system, so that finished files can be
        renamed into place.
        """
        if self.folder:
            return self.path / UNFINISHED
        return self.path.with_name(f".{self.path.name}{UNFINISHED}")

    @property
    def report(self) -> Path:
        """report.json in a folder, NAME.report.json beside a file."""
        return self._own(REPORT)

    @property
    def times(self) -> Path:
        """times.json in a folder, NAME.times.json beside a file."""
        return self._own(TIMES)

    def _own(self, name: str) -> Path:
        return self.path / name if self.folder else self.path.with_name(f"{self.path.stem}.{name}")

    @property
    def all_masks(self) -> Path:
        """The masks of all files of weights: a folder in a folder, a file beside a file."""
        if self.folder:
            return self.path / MASKS_FOLDER
        return self.path.with_name(self.path.stem + MASKS_SUFFIX) if self.weights_too else self.path

    def masks(self, name: str) -> Path:
        """Return the place of the masks of a file of weights."""
        return self.all_masks / name if self.folder else self.all_masks

    def weights(self, name: str) -> Path:
        """Return the place of a file of weights."""
        return self.path / name if self.folder else self.path
