"""A checkpoint to be pruned: a file of weights, or a folder as Hugging Face lays it out."""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from nmsolve.checkpoint.array_files import read_npy, read_npz
from nmsolve.checkpoint.choosing import Choice, choose
from nmsolve.checkpoint.folders import (
    OTHER_WEIGHTS,
    PICKLES,
    by_folder,
    is_weights,
    pickled_weights,
    sought_pickles,
    walk,
)
from nmsolve.checkpoint.places import (
    MASKS_FOLDER,
    MASKS_FORMAT,
    OWN,
    REPORT,
    REPORT_FORMAT,
    TIMES,
    UNFINISHED,
)
from nmsolve.checkpoint.safetensors_file import read_safetensors
from nmsolve.checkpoint.stored import FlatFile, WeightFile, check_name, file_size
from nmsolve.disk import as_text, open_file, read_json
from nmsolve.errors import InputError

#: What reads a kind of file.
READERS = {".safetensors": read_safetensors, ".npy": read_npy, ".npz": read_npz}
#: Bytes from which on a file that goes along is pointed out, unless it is text: it may hold weights
#: in a form that is not known here.
LARGE, TEXTS = 2**25, (".json", ".jsonl", ".txt", ".model", ".md")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A checkpoint to read.

    Attributes
    ----------
    path : Path
        The file, or the folder.
    folder : bool
        Whether it is a folder.
    files : tuple of WeightFile
        Its files of weights, in the order in which they are worked through.
    indexes, companions : tuple of str
        Indexes of shards, and other files that go along, as paths within the folder.
    left_behind : tuple of str
        Files that do not.
    notes : tuple of str
        What should be known about what was taken and what was not.
    """

    path: Path
    folder: bool
    files: tuple[WeightFile, ...]
    indexes: tuple[str, ...] = ()
    companions: tuple[str, ...] = ()
    left_behind: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_source(path: Path) -> Source:
    """Find the weights of a checkpoint, and check everything about them but their values.

    Raises
    ------
    InputError
        For files that hold no weights, or pickled ones, or are damaged; a shard that is missing; a
        name that is there twice.
    OSError
        For what cannot be read.
    """
    if path.is_dir():
        source = _read_folder(path)
    else:
        path.stat()
        source = Source(path=path, folder=False, files=(read_file(path, path.name),))
    owners: dict[str, Path] = {}
    for file in source.files:
        for tensor in file.tensors:
            other = owners.setdefault(tensor.name, file.path)
            if other != file.path:
                raise InputError(
                    f"tensor {tensor.name!r} is in {other} and in {file.path}: these are two "
                    "checkpoints in one folder; pass the one file, or move the other away"
                )
    return source


def read_file(path: Path, name: str) -> WeightFile:
    """Read one file of weights, of whatever kind, but for its tensors' values.

    Raises
    ------
    InputError
        For a file of another kind, or one that is damaged.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is not None:
        return reader(path, name)
    if path.suffix.lower() in PICKLES:
        raise InputError(
            f"{path} is a pickle file, and loading one runs whatever code is in it. "
            f"Convert it, if you trust it: {_conversion(path)}"
        )
    raise InputError(
        f"{path} is no checkpoint that is known here: pass a .safetensors, .npy or .npz file, or a "
        "folder with .safetensors"
    )


def _conversion(path: Path) -> str:
    """Return the command that makes a .safetensors of a pickled state dict; it clones, since tied
    weights share memory.
    """
    code = (
        "import sys, torch, safetensors.torch as s; "
        "d = torch.load(sys.argv[1], map_location='cpu', weights_only=True); d = "
        "d.get('state_dict', d); "
        "s.save_file({k: v.clone().contiguous() for k, v in d.items()}, sys.argv[2], {'format': "
        "'pt'})"
    )
    return f'python -c "{code}" {shlex.quote(str(path))} {shlex.quote(str(_converted(path)))}'


def _converted(path: Path) -> Path:
    """Return the name that transformers looks for in place of its pytorch_model.bin, and diffusers
    in place of its diffusion_pytorch_model.bin.
    """
    name = (
        path.name.removeprefix("pytorch_") if path.name.startswith("pytorch_model") else path.name
    )
    return path.with_name(name).with_suffix(".safetensors")


def _read_folder(path: Path) -> Source:
    names, links = walk(path)
    notes = [f"{name}/ is a link to a folder, and was not followed" for name in links]
    own = [name for name in names if name.split(os.sep)[0] in OWN]
    notes += _check_own(path, own)
    folders = by_folder([name for name in names if name not in own])
    chosen = {here: choose(path, here, inside) for here, inside in folders.items()}
    files: list[FlatFile] = []
    passed_by = {name for choice in chosen.values() for name in choice.passed_by}
    for here, choice in chosen.items():
        notes += choice.notes
        there = [_read_shard(path, here, name, choice) for name in choice.weights]
        masks = [file.name for file in there if dict(file.metadata).get("format") == MASKS_FORMAT]
        passed_by |= set(masks)
        there = [file for file in there if file.name not in masks]
        pickles = [] if there else sought_pickles(folders[here])
        if pickles and (here or any(choice.weights for choice in chosen.values())):
            raise _pickled(path, here, pickles)
        left = [name for name in folders[here] if name.lower().endswith(OTHER_WEIGHTS)]
        if here and left and not there:
            notes.append(
                f"{here}/ has no weights that are pruned here: {_listed(left)} left behind"
            )
        files += there
    if not files:
        raise _nothing_in(path, folders.get("", []))
    indexes = tuple(index for choice in chosen.values() for index in choice.shards)
    taken = {file.name for file in files} | set(indexes)
    rest = [name for name in names if name not in taken and name not in own]
    left = [name for name in rest if name in passed_by or name.lower().endswith(OTHER_WEIGHTS)]
    companions = tuple(name for name in rest if name not in left)
    # whether they can be copied should not show when hours of solving are over
    for name in companions:
        open_file(path / name).close()
        size = file_size(path / name)
        if size >= LARGE and not name.lower().endswith(TEXTS):
            notes.append(
                f"{name} ({size:,} bytes) was copied as it is: if it holds weights, they are dense"
            )
    return Source(
        path=path,
        folder=True,
        files=tuple(files),
        indexes=indexes,
        companions=companions,
        left_behind=tuple(left),
        notes=tuple(notes),
    )


def _read_shard(path: Path, here: str, name: str, choice: Choice) -> FlatFile:
    """Read a file of weights; the names of a subfolder's tensors begin with the folder's, so that
    no two models' meet.
    """
    file = read_safetensors(path / name, name)
    for index, shards in choice.shards.items():
        absent = set(shards.get(name, ())) - {tensor.name for tensor in file.tensors}
        if absent:
            raise InputError(
                f"{file.path} does not hold tensor {min(absent)!r}, which {path / index} says it "
                "does"
            )
    if not here:
        return file
    folder = as_text(here)
    check_name(folder, path / here)
    return replace(
        file,
        tensors=tuple(replace(t, name=f"{folder}/{t.name}", folder=folder) for t in file.tensors),
    )


def _check_own(path: Path, names: list[str]) -> list[str]:
    """Return notes about files that are named like those that go beside pruned weights, and so are
    not taken along.

    Those that an earlier run wrote need no note: this run writes its own.
    """
    if not names:
        return []
    report, ours = path / REPORT, False
    with suppress(InputError, OSError):
        written = read_json(report, "a report")
        ours = isinstance(written, dict) and written.get("format") == REPORT_FORMAT
    foreign = [name for name in names if not ours and name in (REPORT, TIMES)]
    for name in names:
        if name.split(os.sep)[0] == MASKS_FOLDER and name not in (REPORT, TIMES):
            if not is_weights(name):
                foreign.append(name)
            elif dict(read_safetensors(path / name, name).metadata).get("format") != MASKS_FORMAT:
                raise InputError(
                    f"{path / name} holds weights, and masks/ is where masks are written: rename "
                    "that folder"
                )
    return [
        f"{name} was not taken along: nmsolve writes a file of its own in its place"
        for name in foreign
    ]


def _pickled(path: Path, here: str, pickles: list[str]) -> InputError:
    first, folder = path / pickles[0], path / here
    return InputError(
        f"{folder} holds its weights as pickle files ({_listed(pickles)}) and no .safetensors: "
        "they would stay dense, since loading them runs whatever code is in them. Convert "
        f"{_each(pickles)}, if you trust it: {_conversion(first)}; or move it away, and prune the "
        "rest"
    )


def _listed(names: list[str]) -> str:
    return ", ".join(os.path.basename(name) for name in names[:3]) + (
        ", …" if len(names) > 3 else ""
    )


def _each(names: list[str]) -> str:
    return "it" if len(names) == 1 else "each"


def _nothing_in(path: Path, names: list[str]) -> InputError:
    pickles = pickled_weights(names)
    if pickles:
        return InputError(
            f"{path} holds pickle files ({_listed(pickles)}) and no .safetensors, and loading "
            f"those runs whatever code is in them. Convert {_each(pickles)}, if you trust it: "
            f"{_conversion(path / pickles[0])}"
        )
    if (path / UNFINISHED).is_dir():
        return InputError(
            f"{path} holds an unfinished run and no checkpoint yet: go on with it by resume=True"
        )
    return InputError(
        f"{path} holds no .safetensors file"
        + (f"; it holds {', '.join(names[:5])}" if names else "")
    )
