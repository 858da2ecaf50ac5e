"""A folder as Hugging Face lays it out: its files, and what their names say that they are."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from nmsolve.checkpoint.places import MASKS_FOLDER, MASKS_SUFFIX

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".pyt")
#: Weights that are not pruned here; a copy beside pruned ones would be taken for them.
OTHER_WEIGHTS = (
    *PICKLES,
    *(".safetensors", ".h5", ".hdf5", ".keras", ".msgpack", ".gguf", ".ggml", ".tflite", ".ot"),
    *(".onnx", ".onnx_data", ".onnx.data", ".distcp", ".pdparams", ".bin.index.json"),
)
#: What describes the model of a folder.
CONFIG = "config.json"
#: An index of shards.
INDEX = re.compile(r"(?P<stem>.+)\.safetensors\.index(\.(?P<variant>[^.]+))?\.json")
#: Pickles that loaders look for where there is no .safetensors.
_SOUGHT = re.compile(r"((diffusion_)?pytorch|adapter)_model.*\.bin")
#: Pickles that trainers leave beside weights: optimizers, random states, arguments.
_STATES = re.compile(
    r"(training_args|optimizer|scheduler|scaler|(rng|random)_state.*|.*_states?|sampler)\.\w+"
)


def walk(folder: Path) -> tuple[list[str], list[str]]:
    """Return every file below a folder, and every link to a folder, which is not followed, as paths
    within it, sorted; no hidden ones.
    """
    inside, files, links = [""], list[str](), list[str]()
    while inside:
        here = inside.pop()
        with os.scandir(folder / here) as entries:
            for entry in entries:
                name = os.path.join(here, entry.name)
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    (links if entry.is_symlink() else inside).append(name)
                elif entry.is_file() or entry.is_symlink():
                    files.append(name)
    return sorted(files), sorted(links)


def by_folder(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the names of files by folder, those of the checkpoint's own folder first."""
    folders: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: (os.path.dirname(name), name)):
        folders.setdefault(os.path.dirname(name), []).append(name)
    return folders


def is_weights(name: str) -> bool:
    """Return whether a name is that of weights in .safetensors; masks beside a file are none."""
    return name.lower().endswith(".safetensors") and not name.endswith(MASKS_SUFFIX)


def is_index(name: str) -> bool:
    """Return whether a name is that of an index of shards, of a variant or not."""
    return INDEX.fullmatch(os.path.basename(name)) is not None


def sought_pickles(names: Sequence[str]) -> list[str]:
    """Return those files of one folder that its loader would take for want of a .safetensors."""
    return [name for name in names if _SOUGHT.fullmatch(os.path.basename(name))]


def pickled_weights(names: Sequence[str]) -> list[str]:
    """Return those files of one folder that may be a model's weights as pickles: no optimizer's
    state, and no part of an export.
    """
    # OpenVINO's .bin has an .xml beside it
    exported = {os.path.splitext(name)[0] for name in names if name.lower().endswith(".xml")}
    return [
        name
        for name in names
        if name.lower().endswith(PICKLES)
        and not _STATES.fullmatch(os.path.basename(name))
        and os.path.splitext(name)[0] not in exported
        and not any(part.endswith((".mlpackage", ".mlmodelc")) for part in name.split(os.sep))
    ]


def holds_weights(folder: Path) -> bool:
    """Return whether there is any .safetensors of weights below a folder: masks are none."""
    return any(
        is_weights(name) and name.split(os.sep)[0] != MASKS_FOLDER for name in walk(folder)[0]
    )
