"""Reading .safetensors: the header is checked by the safetensors package, and kept as it is, byte
for byte.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from nmsolve.checkpoint.stored import FlatFile, Stored, check_name, file_size
from nmsolve.disk import open_file
from nmsolve.elements import as_type, bfloat16
from nmsolve.errors import InputError, MissingDependencyError, NMSolveError

#: The dtypes whose masks are solved, by their names in a header. All are little-endian.
ELEMENTS: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": bfloat16,
    "F8_E4M3": as_type("float8_e4m3fn"),
    "F8_E5M2": as_type("float8_e5m2"),
    "F8_E4M3FNUZ": as_type("float8_e4m3fnuz"),
    "F8_E5M2FNUZ": as_type("float8_e5m2fnuz"),
}
#: A header's length comes first, in so many bytes.
LENGTH = 8


def read_safetensors(path: Path, name: str) -> FlatFile:
    """Read what a .safetensors file holds, but for its tensors' values.

    Raises
    ------
    InputError
        If the package refuses it (truncated, overlapping, overflowing, …), or it names a tensor
        twice or like a path.
    """
    safe_open, SafetensorError = _package()
    try:
        # before the package opens it, which would wait for a pipe and names no file
        with open_file(path) as file:
            length = int.from_bytes(file.read(LENGTH), "little")
            with safe_open(path, "numpy") as checked:
                metadata = checked.metadata() or {}
            header = file.read(length)
        entries: dict[str, Any] = json.loads(header, object_pairs_hook=_unique)
    except (SafetensorError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a whole, valid .safetensors file: {error}") from error
    except MemoryError as error:
        raise NMSolveError(
            f"{path} cannot be mapped: there is no memory for its {file_size(path):,} bytes of "
            "addresses"
        ) from error
    entries.pop("__metadata__", None)
    start = LENGTH + length
    tensors = []
    for key, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        check_name(key, path)
        first, last = entry["data_offsets"]
        tensor = Stored(
            name=key,
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
            start=start + first,
            size=last - first,
        )
        element = ELEMENTS.get(tensor.dtype)
        tensors.append(tensor if element is None else tensor.of_numbers(element))
    return FlatFile(
        path=path,
        name=name,
        tensors=tuple(tensors),
        pieces=((0, length.to_bytes(LENGTH, "little") + header),),
        size=file_size(path),
        arrays=False,
        metadata=tuple(sorted(metadata.items())),
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{twice!r} is there twice")
    return found


def _package() -> tuple[Any, type[Exception]]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingDependencyError(
            "checkpoints need safetensors, which is not installed; run: pip install "
            "'nmsolve[checkpoint]'"
        ) from error
    return safe_open, SafetensorError
