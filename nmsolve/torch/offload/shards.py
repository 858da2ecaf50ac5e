"""Tensors of .safetensors files by name: read one by one, and replaced in place in a copy."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nmsolve.disk import open_file, open_unbuffered, read_json, write_at
from nmsolve.errors import InputError, MissingDependencyError

#: A header's length comes first, in so many bytes.
_LENGTH = 8
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}


@dataclass(frozen=True, slots=True)
class Shard:
    """A tensor in a file.

    Attributes
    ----------
    file : str
        Its name within the checkpoint's folder.
    dtype : torch.dtype
    shape : tuple of int
    start : int
        Where its bytes begin.
    stamp : tuple of int
        Of the file when its header was read.
    """

    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stamp: tuple[int, ...]

    def read(self, path: Path, *, unchanged: bool = True) -> Tensor:
        """Return the tensor, in memory of its own.

        Raises
        ------
        InputError
            If the file is not as it was, which is to be `unchanged`, or ends within the tensor.
        """
        values = torch.empty(self.shape, dtype=self.dtype, device="cpu")
        if not values.numel():
            return values
        with open_unbuffered(path) as file:
            if unchanged:
                self.check(path, os.fstat(file.fileno()))
            file.seek(self.start)
            left = values.flatten().view(torch.uint8).numpy().data
            while left:
                count = file.readinto(left)
                if not count:
                    raise InputError(f"{path} ends within a tensor: {_CHANGED}")
                left = left[count:]
        return values

    def check(self, path: Path, now: os.stat_result) -> None:
        """InputError unless a file is the one whose header was read."""
        if stamp_of(now) != self.stamp:
            raise InputError(f"{path} {_CHANGED}")

    def write(self, path: Path, values: Tensor) -> None:
        """Replace the tensor.

        Raises
        ------
        InputError
            If the file's dtype does not hold the values.
        """
        flat = values.detach().to("cpu", self.dtype).contiguous().flatten()
        if not flat.numel():
            return
        if values.dtype != self.dtype and flat.is_floating_point():
            lost = (~flat.isfinite() & values.detach().cpu().flatten().isfinite()).sum()
            if lost:
                raise InputError(
                    f"{int(lost)} of the values are too large for {self.dtype}, in which "
                    f"{self.file} has them: save the checkpoint in {values.dtype} first"
                )
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            write_at(descriptor, flat.view(torch.uint8).numpy().data, self.start)
        finally:
            os.close(descriptor)


_CHANGED = "has changed since the model was offloaded from it: start again"


def stamp_of(status: os.stat_result) -> tuple[int, ...]:
    """Return what changes when a file is replaced or written to."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def shards_of(place: Path) -> dict[str, Shard]:
    """Return the tensors of a .safetensors file, or of those of a folder, by name. Of a folder with
    an index, those that it names.

    Raises
    ------
    InputError
        If there is none, a file is no whole .safetensors file, a tensor's dtype is not known, or
        two files have a tensor of the same name.
    MissingDependencyError
        Without the safetensors package.
    """
    found: dict[str, Shard] = {}
    for path in _files(place):
        for name, shard in _tensors(path):
            other = found.setdefault(name, shard)
            if other is not shard:
                raise InputError(
                    f"{place} has {name} in {other.file} and in {shard.file}, and nothing says "
                    "which is the model's: give the file that is"
                )
    return found


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise InputError(f"{place} is neither a .safetensors file nor a folder with such files")
    indices = sorted(place.glob("*.safetensors.index.json"))
    if len(indices) > 1:
        raise InputError(
            f"{place} has several indices ({', '.join(path.name for path in indices)}): keep one "
            "of them there"
        )
    if indices:
        listed = read_json(indices[0], "an index of .safetensors files")
        names = listed.get("weight_map") if isinstance(listed, dict) else None
        if not isinstance(names, dict) or not names or not all(map(_is_name, names.values())):
            raise InputError(f"{indices[0]} is no index of .safetensors files: no weight_map in it")
        files = [place / name for name in sorted(set(names.values()))]
        missing = [path.name for path in files if not path.is_file()]
        if missing:
            raise InputError(f"{indices[0]} names files that are not there: {', '.join(missing)}")
        return files
    files = sorted(path for path in place.glob("*.safetensors") if path.is_file())
    if not files:
        raise InputError(
            f"{place} has no .safetensors file: save the model with save_pretrained, which makes "
            "such"
        )
    return files


def _is_name(name: object) -> bool:
    """Return whether it is the name of a file in the same folder."""
    return isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name


def _tensors(path: Path) -> Iterator[tuple[str, Shard]]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingDependencyError(
            "weights on disk are read with the safetensors package: pip install safetensors"
        ) from error
    try:
        with open_file(path) as file:
            stamp = stamp_of(os.fstat(file.fileno()))
            length = int.from_bytes(file.read(_LENGTH), "little")
            with safe_open(path, "pt"):  # checks all of the header
                header: dict[str, Any] = json.loads(file.read(length))
    except (SafetensorError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{path} is not a whole, valid .safetensors file: {error}") from error
    header.pop("__metadata__", None)
    for name, entry in header.items():
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            raise InputError(
                f"{path}: {name} has dtype {entry['dtype']}, which no weight of a torch model has"
            )
        start = _LENGTH + length + entry["data_offsets"][0]
        yield name, Shard(path.name, dtype, tuple(entry["shape"]), start, stamp)
