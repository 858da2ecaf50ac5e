"""Masks on disk: bit-packed, in .safetensors files beside the weights. `docs/format.md` specifies
the bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nmsolve.bits import has_loose_bits, packed_size, unpack
from nmsolve.checkpoint.folders import MASKS
from nmsolve.checkpoint.planning import TensorPlan, indivisible
from nmsolve.checkpoint.safetensors_file import LENGTH, read_safetensors
from nmsolve.checkpoint.source import MASKS_FORMAT as FORMAT
from nmsolve.checkpoint.stored import FlatFile, Stored, allocate, out_of_memory
from nmsolve.errors import InputError, PatternError
from nmsolve.pattern import Pattern

VERSION = "1"
SUFFIX = ".masks.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskFile:
    """Where each mask goes in a file of masks, and the bytes before the first.

    places : tensor name → offset in the file. header : the file's first bytes. size : of the file.
    """

    places: Mapping[str, int]
    header: bytes
    size: int


def lay_out(plans: Sequence[TensorPlan]) -> MaskFile | None:
    """The file of the masks of the planned tensors of one file of weights, in the order in which
    they are there; None for none.
    """
    described: dict[str, object] = {}
    entries: dict[str, object] = {}
    offsets: dict[str, int] = {}
    offset = 0
    for plan in plans:
        if plan.pattern is None:
            continue
        name, shape = plan.tensor.name, plan.tensor.shape
        described[name] = {
            "shape": list(shape),
            "pattern": str(plan.pattern),
            "axis": plan.axis,
            "padding": plan.padding,
        }
        size = packed_size(math.prod(shape))
        entries[name] = {"dtype": "U8", "shape": [size], "data_offsets": [offset, offset + size]}
        offsets[name] = offset
        offset += size
    if not entries:
        return None
    metadata = {"format": FORMAT, "version": VERSION, "masks": _compact(described)}
    header = _compact({"__metadata__": metadata, **entries}).encode()
    header += b" " * (-len(header) % LENGTH)
    first = LENGTH + len(header)
    places = {name: first + start for name, start in offsets.items()}
    return MaskFile(
        places=places, header=len(header).to_bytes(LENGTH, "little") + header, size=first + offset
    )


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What a file of masks says of one: the tensor's shape, its pattern, the axis that groups lie
    along, the padding.
    """

    file: FlatFile
    stored: Stored
    shape: tuple[int, ...]
    pattern: Pattern
    axis: int
    padding: str


class Masks(Mapping[str, NDArray[np.bool_]]):
    """Masks of a checkpoint by tensor name; each is read from disk when it is asked for.

    described : tensor name → shape, pattern, axis, padding.
    """

    def __init__(self, described: Mapping[str, Described]) -> None:
        self.described = described

    def __getitem__(self, name: str) -> NDArray[np.bool_]:
        entry = self.described[name]
        packed = allocate(entry.stored.size, entry.file.path, name)
        entry.file.read(entry.stored, packed)
        if has_loose_bits(packed, math.prod(entry.shape)):
            raise InputError(
                f"{entry.file.path}: mask {name!r} has bits after its last entry: it is damaged"
            )
        try:
            return unpack(packed, entry.shape)
        except MemoryError as error:
            raise out_of_memory(math.prod(entry.shape), entry.file.path, name) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self.described)

    def __len__(self) -> int:
        return len(self.described)

    def __repr__(self) -> str:
        return f"<Masks: {len(self)} tensors>"


def open_masks(path: str | Path) -> Masks:
    """The masks that `prune` wrote.

    Parameters
    ----------
    path : str or Path
        The pruned checkpoint (a folder, or a file whose masks are beside it), or a file of masks.

    Returns
    -------
    Masks
        A mapping from tensor names to bool arrays of the tensors' shapes, True = keep; reads a mask
        when it is asked for. `.described[name]` has its pattern, axis and padding.

    Raises
    ------
    InputError
        If there are no masks, or files of masks are damaged.

    Examples
    --------
    >>> import tempfile, numpy as np, nmsolve.checkpoint
    >>> folder = tempfile.TemporaryDirectory()
    >>> np.save(f"{folder.name}/dense.npy", np.eye(8, dtype=np.float32))
    >>> dense, sparse = f"{folder.name}/dense.npy", f"{folder.name}/sparse.npy"
    >>> report = nmsolve.checkpoint.prune(dense, sparse, "2:4T")
    >>> masks = open_masks(f"{folder.name}/sparse.npy")
    >>> masks["arr_0"].shape, bool(masks["arr_0"].diagonal().all())
    ((8, 8), True)
    >>> folder.cleanup()
    """
    files = mask_files(Path(path))
    if not files:
        raise InputError(
            f"{path} has no masks beside it; `nmsolve prune` writes them, as "
            f"{masks_beside(Path(path))}"
        )
    described: dict[str, Described] = {}
    for file in files:
        found = _describe(read_safetensors(file, file.name))
        for name in found.keys() & described.keys():
            raise InputError(
                f"the mask of tensor {name!r} is in {described[name].file.path} and in {file}: "
                "remove one of them"
            )
        described |= found
    return Masks(described)


def masks_beside(path: Path) -> Path:
    """Where the masks of a checkpoint are: a folder in a folder, a file beside a file."""
    return path / MASKS if path.is_dir() else path.with_name(path.stem + SUFFIX)


def mask_files(path: Path) -> list[Path]:
    """The files of masks of a checkpoint, or the one that this path is."""
    if path.is_dir():
        return sorted((path / MASKS).rglob("*.safetensors"))
    if (
        path.suffix.lower() == ".safetensors"
        and dict(read_safetensors(path, path.name).metadata).get("format") == FORMAT
    ):
        return [path]
    path.stat()
    beside = masks_beside(path)
    return [beside] if beside.exists() else []


def _describe(file: FlatFile) -> dict[str, Described]:
    metadata = dict(file.metadata)
    if (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION):
        raise InputError(
            f"{file.path} is not a file of masks (format {FORMAT}, version {VERSION}; "
            "docs/format.md)"
        )
    described = {}
    try:
        entries = json.loads(metadata["masks"])
        if set(entries) != {tensor.name for tensor in file.tensors}:
            raise ValueError("its metadata names other tensors than it holds")
        for stored in file.tensors:
            entry = entries[stored.name]
            shape = tuple(int(size) for size in entry["shape"])
            pattern, axis, padding = (
                Pattern.parse(entry["pattern"]),
                int(entry["axis"]),
                str(entry["padding"]),
            )
            if (
                min(shape) < 1
                or stored.dtype != "U8"
                or stored.shape != (packed_size(math.prod(shape)),)
            ):
                raise ValueError(
                    f"mask {stored.name!r} is {stored.dtype} {stored.shape}, for a tensor of shape "
                    f"{shape}"
                )
            if (
                not 0 <= axis < len(shape)
                or len(shape) < 2
                or padding not in ("error", "pad", "dense")
            ):
                raise ValueError(
                    f"mask {stored.name!r} has axis {axis} of shape {shape}, padding {padding!r}"
                )
            if indivisible(shape, axis, pattern, padding):
                raise ValueError(
                    f"mask {stored.name!r} of shape {shape}: "
                    f"{indivisible(shape, axis, pattern, padding)}"
                )
            described[stored.name] = Described(
                file=file, stored=stored, shape=shape, pattern=pattern, axis=axis, padding=padding
            )
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
        PatternError,
    ) as error:
        raise InputError(f"{file.path} is a damaged file of masks: {error}") from error
    return described
