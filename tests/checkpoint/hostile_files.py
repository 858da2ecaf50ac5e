"""Files and folders as libraries write them, and as no library would; edits of what they hold."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.checkpoint.checkpoint_files import weights


def tensor(
    shape: Sequence[object], first: object, last: object, dtype: object = "F32"
) -> dict[str, object]:
    """An entry of a header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [first, last]}


def write_safetensors(
    path: Path, header: bytes | dict[str, Any], data: bytes = b"", length: int | None = None
) -> Path:
    """A file with this very header, and a length that may lie."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def write_weights(path: Path, **others: np.ndarray) -> Path:
    """A whole .safetensors file of two weights and a vector."""
    save_file(
        {
            "fc1.weight": weights(8, 8),
            "fc2.weight": weights(4, 16),
            "norm.weight": np.ones(4, np.float32),
            **others,
        },
        path,
    )
    path.chmod(0o644)  # as a download would be; safetensors lets nobody else read
    return path


def write_shards(folder: Path) -> Path:
    """A whole folder: two shards, their index, a config, and a folder of its own."""
    folder.mkdir()
    names = {"fc1.weight": "model-1.safetensors", "fc2.weight": "model-2.safetensors"}
    for name, shard in names.items():
        save_file({name: weights(8, 8)}, folder / shard)
        (folder / shard).chmod(0o644)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": names})
    )
    (folder / "config.json").write_text("{}")
    (folder / "more").mkdir()
    (folder / "more" / "vocab.txt").write_text("a")
    return folder


def npy(array: np.ndarray) -> bytes:
    """A .npy file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, array)
    return file.getvalue()


def npy_header(
    text: str | bytes,
    data: bytes = bytes(256),
    version: tuple[int, int] = (1, 0),
    length: int | None = None,
) -> bytes:
    """A .npy file with this very header, and a length that may lie."""
    header = text if isinstance(text, bytes) else text.encode("latin1")
    size = (len(header) if length is None else length).to_bytes(
        2 if version == (1, 0) else 4, "little"
    )
    return b"\x93NUMPY" + bytes(version) + size + header + data


def described(shape: object, descr: object = "<f4", fortran: object = False) -> str:
    """The header that NumPy writes, for whatever it is asked to."""
    return f"{{'descr': {descr!r}, 'fortran_order': {fortran!r}, 'shape': {shape}, }}\n"


def write_npz(
    path: Path, members: Sequence[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED
) -> Path:
    """An archive of these members, twice the same name if need be."""
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return path


#: A JSON value from another.
Edit = Callable[[Any], Any]


def instead(value: object) -> Edit:
    """Quite another value."""
    return lambda whole: value


def put(**fields: object) -> Edit:
    """With these fields."""
    return lambda whole: whole | fields


def without(key: str) -> Edit:
    """Without this field."""
    return lambda whole: {name: value for name, value in whole.items() if name != key}


def each(**fields: object) -> Edit:
    """With these fields in every entry."""
    return lambda whole: {name: entry | fields for name, entry in whole.items()}


def each_tensor(**fields: object) -> Edit:
    """With these fields in every tensor of a report that was pruned."""
    return lambda whole: (
        whole
        | {"tensors": [entry | fields if entry["pattern"] else entry for entry in whole["tensors"]]}
    )


def edit_json(path: Path, edit: Edit) -> None:
    """Change what a JSON file holds."""
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))


def edit_masks(path: Path, edit: Edit) -> None:
    """Change what a file of masks says of them."""
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:end])
    header["__metadata__"]["masks"] = json.dumps(edit(json.loads(header["__metadata__"]["masks"])))
    write_safetensors(path, header, whole[end:])


#: The bytes of one tensor, a header or JSON that is deep, a whole array, and all that an archive
#: may be compressed by.
DATA = weights(8, 8).tobytes()
DEEP = 100_000
WHOLE = npy(weights(8, 8))
COMPRESSIONS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
