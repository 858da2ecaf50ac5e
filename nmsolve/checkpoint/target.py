"""Where a pruned checkpoint goes, and what must not be there yet."""

from __future__ import annotations

import os
from pathlib import Path

from nmsolve.checkpoint.places import MASKS_SUFFIX, UNFINISHED, Places
from nmsolve.checkpoint.source import Source
from nmsolve.errors import InputError


def target_of(source: Source, dst: Path, weights_too: bool) -> Places:
    """Return the places that DST means for a source's pruned copy, or for its masks alone.

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
        target = Places(path=dst, folder=True, weights_too=weights_too)
    else:
        suffix = source.path.suffix if weights_too else ".safetensors"
        if dst.is_dir():
            dst = dst / (source.path.name if weights_too else source.path.stem + MASKS_SUFFIX)
        if dst.suffix.lower() != suffix.lower():
            kind = (
                f"a pruned copy of {source.path} is of the same kind"
                if weights_too
                else "that is how masks are kept"
            )
            raise InputError(
                f"{dst} must end in {suffix}, since {kind}; or be a folder that exists"
            )
        target = Places(path=dst, folder=False, weights_too=weights_too)
    # realpath follows no link in circles
    src, out = (Path(os.path.realpath(path)) for path in (source.path, target.path))
    if src == out or (out.exists() and os.path.samefile(src, out)):
        raise InputError(f"DST {dst} is SRC, which is never written to: name another place")
    if source.folder and (src in out.parents or out in src.parents):
        raise InputError(
            f"DST {dst} and SRC {source.path} lie one in the other, and SRC is never written to: "
            "name another place"
        )
    return target


def check_vacant(source: Source, target: Places) -> None:
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
