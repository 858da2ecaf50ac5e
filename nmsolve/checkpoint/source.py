"""What is pruned: a file of weights, or a folder as Hugging Face lays it out."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nmsolve.checkpoint.array_files import read_npy, read_npz
from nmsolve.checkpoint.disk import open_file, read_json
from nmsolve.checkpoint.safetensors_file import read_safetensors
from nmsolve.checkpoint.stored import WeightFile
from nmsolve.errors import InputError

READERS = {".safetensors": read_safetensors, ".npy": read_npy, ".npz": read_npz}
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".pyt")
#: Weights that are not pruned here; a copy beside pruned ones would be taken for them.
OTHER_WEIGHTS = (*PICKLES, ".safetensors", ".h5", ".msgpack", ".gguf", ".ggml", ".onnx", ".tflite", ".ot")
INDEX = ".safetensors.index.json"
#: Folders and files of nmsolve's own in a pruned checkpoint.
MASKS, REPORT, TIMES, UNFINISHED = "masks", "report.json", "times.json", ".nmsolve-unfinished"
OWN = (MASKS, REPORT, TIMES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A checkpoint to read.

    files : its files of weights, in the order in which they are worked through. indexes, companions : other files that go along, as
    paths within the folder. left_behind : files that do not.
    """

    path: Path
    folder: bool
    files: tuple[WeightFile, ...]
    indexes: tuple[str, ...] = ()
    companions: tuple[str, ...] = ()
    left_behind: tuple[str, ...] = ()


def read_source(path: Path) -> Source:
    """Find the weights of a checkpoint, and check everything about them but their values.

    Raises
    ------
    InputError
        For files that hold no weights, or pickled ones, or are damaged; a shard that is missing; a name that is there twice.
    OSError
        For what cannot be read.
    """
    if path.is_dir():
        source = _read_folder(path)
    else:
        path.stat()
        source = Source(path=path, folder=False, files=(_read_file(path, path.name),))
    owners: dict[str, Path] = {}
    for file in source.files:
        for tensor in file.tensors:
            other = owners.setdefault(tensor.name, file.path)
            if other != file.path:
                raise InputError(
                    f"tensor {tensor.name!r} is in {other} and in {file.path}: these are two checkpoints in one folder; "
                    f"pass the one file, or move the other away"
                )
    return source


def _read_file(path: Path, name: str) -> WeightFile:
    reader = READERS.get(path.suffix.lower())
    if reader is not None:
        return reader(path, name)
    if path.suffix.lower() in PICKLES:
        raise InputError(
            f"{path} is a pickle file, and loading one runs whatever code is in it. "
            f"Convert it, if you trust it: {_conversion(path)}"
        )
    raise InputError(
        f"{path} is no checkpoint that is known here: pass a .safetensors, .npy or .npz file, or a folder with .safetensors"
    )


def _conversion(path: Path) -> str:
    """The command that makes a .safetensors of a pickled state dict; clones, since tied weights share memory."""
    code = (
        "import sys, torch, safetensors.torch as s; "
        "d = torch.load(sys.argv[1], map_location='cpu', weights_only=True); d = d.get('state_dict', d); "
        "s.save_file({k: v.clone().contiguous() for k, v in d.items()}, sys.argv[2], {'format': 'pt'})"
    )
    return f'python -c "{code}" {shlex.quote(str(path))} {shlex.quote(str(_converted(path)))}'


def _converted(path: Path) -> Path:
    """What transformers looks for in place of its pytorch_model.bin."""
    return path.with_name(path.name.replace("pytorch_model", "model")).with_suffix(".safetensors")


def _read_folder(path: Path) -> Source:
    names = sorted(_walk(path))
    top = [name for name in names if os.sep not in name]
    indexes = tuple(name for name in top if name.endswith(INDEX))
    shards: dict[str, set[str]] = {}
    for name in indexes:
        for shard, tensors in _read_index(path / name).items():
            shards.setdefault(shard, set()).update(tensors)
    weights = (
        sorted(shards)
        if indexes
        else [name for name in top if name.lower().endswith(".safetensors") and not name.endswith(".masks.safetensors")]
    )
    if not weights:
        raise _nothing_in(path, top)
    files = []
    for name in weights:
        if name not in top:
            raise InputError(f"{path / name} is missing: {path / indexes[0]} names it as the file of {min(shards[name])!r}")
        file = read_safetensors(path / name, name)
        absent = shards.get(name, set()) - {tensor.name for tensor in file.tensors}
        if absent:
            raise InputError(f"{file.path} does not hold tensor {min(absent)!r}, which {path / indexes[0]} says it does")
        files.append(file)
    rest = [name for name in names if name not in weights and name not in indexes and name.split(os.sep)[0] not in OWN]
    left = [name for name in rest if name.lower().endswith((*OTHER_WEIGHTS, ".bin.index.json", INDEX))]
    companions = tuple(name for name in rest if name not in left)
    for name in companions:  # whether they can be copied should not show when hours of solving are over
        open_file(path / name).close()
    return Source(
        path=path,
        folder=True,
        files=tuple(files),
        indexes=indexes,
        companions=companions,
        left_behind=tuple(left),
    )


def _walk(folder: Path) -> Iterator[str]:
    """Every file below a folder, as a path within it; hidden ones, and folders that are links, are passed by."""
    inside = [""]
    while inside:
        here = inside.pop()
        with os.scandir(folder / here) as entries:
            for entry in entries:
                name = os.path.join(here, entry.name)
                if entry.name.startswith(".") or (entry.is_dir() and entry.is_symlink()):
                    continue
                if entry.is_dir():
                    inside.append(name)
                elif entry.is_file() or entry.is_symlink():
                    yield name


def _read_index(path: Path) -> dict[str, list[str]]:
    """The shards that an index names, and the tensors of each."""
    index = read_json(path, "an index of shards")
    try:
        weight_map = dict(index["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not an index of shards, which has a weight_map: {error}") from error
    shards: dict[str, list[str]] = {}
    for tensor, shard in weight_map.items():
        if (
            not isinstance(shard, str)
            or not shard.lower().endswith(".safetensors")
            or shard != os.path.basename(shard)
            or "\\" in shard
        ):
            raise InputError(
                f"{path}: tensor {tensor!r} is said to be in {shard!r}, which is not the name of a .safetensors file beside it"
            )
        shards.setdefault(shard, []).append(tensor)
    if not shards:
        raise InputError(f"{path} names no tensor")
    return shards


def _nothing_in(path: Path, names: list[str]) -> InputError:
    pickles = [name for name in names if name.lower().endswith(PICKLES) and name != "training_args.bin"]
    if pickles:
        shown, which = ", ".join(pickles[:3]) + (", …" if len(pickles) > 3 else ""), "it" if len(pickles) == 1 else "each"
        return InputError(
            f"{path} holds pickle files ({shown}) and no .safetensors, and loading those runs whatever code is in them. "
            f"Convert {which}, if you trust it: {_conversion(path / pickles[0])}"
        )
    if (path / UNFINISHED).is_dir():
        return InputError(f"{path} holds an unfinished run and no checkpoint yet: go on with it by resume=True (--resume)")
    return InputError(f"{path} holds no .safetensors file" + (f"; it holds {', '.join(names[:5])}" if names else ""))
