"""Where a pruned checkpoint goes, and what must not be there yet."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from nmsolve.checkpoint.folders import MASKS, REPORT, TIMES, UNFINISHED
from nmsolve.checkpoint.masks import SUFFIX
from nmsolve.checkpoint.source import Source
from nmsolve.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The final place of every file, and the folder in which they are made.

    path : a folder, or the one file of weights; where masks alone are wanted, of masks.
    """

    path: Path
    folder: bool
    weights_too: bool

    @property
    def work(self) -> Path:
        """The folder of an unfinished run: on the same file system, so that finished files can be
        renamed into place.
        """
        return (
            self.path / UNFINISHED
            if self.folder
            else self.path.with_name(f".{self.path.name}{UNFINISHED}")
        )

    def weights(self, name: str) -> Path:
        """The final place of a file of weights."""
        return self.path / name if self.folder else self.path

    def masks(self, name: str) -> Path:
        """The final place of the masks of a file of weights."""
        if self.folder:
            return self.path / MASKS / name
        return self.path.with_name(self.path.stem + SUFFIX) if self.weights_too else self.path

    @property
    def report(self) -> Path:
        """report.json in a folder, NAME.report.json beside a file."""
        return (
            self.path / REPORT if self.folder else self.path.with_name(f"{self.path.stem}.{REPORT}")
        )

    @property
    def times(self) -> Path:
        """As `report`: times.json."""
        return (
            self.path / TIMES if self.folder else self.path.with_name(f"{self.path.stem}.{TIMES}")
        )


def target_of(source: Source, dst: Path, weights_too: bool) -> Target:
    """Where a source's pruned copy, or its masks alone, go: what DST means.

    Raises
    ------
    InputError
        If that is the source, or inside it, or around it; or another kind of file.
    """
    if source.folder:
        if dst.exists() and not dst.is_dir():
            raise InputError(
                f"DST {dst} is a file, and SRC {source.path} a folder: name a folder that is new "
                "or empty"
            )
        target = Target(path=dst, folder=True, weights_too=weights_too)
    else:
        suffix = source.path.suffix if weights_too else ".safetensors"
        if dst.is_dir():
            dst = dst / (source.path.name if weights_too else source.path.stem + SUFFIX)
        if dst.suffix.lower() != suffix.lower():
            kind = (
                f"a pruned copy of {source.path} is of the same kind"
                if weights_too
                else "that is how masks are kept"
            )
            raise InputError(
                f"{dst} must end in {suffix}, since {kind}; or be a folder that exists"
            )
        target = Target(path=dst, folder=False, weights_too=weights_too)
    src, out = (
        Path(os.path.realpath(source.path)),
        Path(os.path.realpath(target.path)),
    )  # which follows no link in circles
    if src == out or (out.exists() and os.path.samefile(src, out)):
        raise InputError(f"DST {dst} is SRC, which is never written to: name another place")
    if source.folder and (src in out.parents or out in src.parents):
        raise InputError(
            f"DST {dst} and SRC {source.path} lie one in the other, and SRC is never written to: "
            "name another place"
        )
    return target


def check_vacant(source: Source, target: Target) -> None:
    """Raise InputError if anything is where the pruned checkpoint would go."""
    if target.folder:
        there = (
            sorted(entry.name for entry in target.path.iterdir()) if target.path.is_dir() else []
        )
        there = [name for name in there if name != UNFINISHED]
        if there:
            shown = ", ".join(there[:3]) + (", …" if len(there) > 3 else "")
            raise InputError(f"DST {target.path} is not empty (it has {shown}): name a new folder")
        return
    name = source.files[0].name
    for path in dict.fromkeys(
        (target.weights(name), target.masks(name), target.report, target.times)
    ):
        if path.exists() or path.is_symlink():
            raise InputError(
                f"{path} exists, and nothing is overwritten: name another DST, or move it away"
            )
