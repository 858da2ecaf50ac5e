"""Masks on disk: bit-packed, in .safetensors files beside the weights. `docs/format.md` specifies
the bytes.

The way of a mask, from a solver to its file:

1. `solving.solve_tensor` gives a tensor to `nmsolve.solve` as matrices, and returns the mask in the
   tensor's own shape.
2. `share.Share` drops weights by it (`solving.apply`), packs it (`nmsolve.bits.pack`, a bit per
   entry), and hands both to a `writer.Writer`.
3. The writer puts the bits where `lay_out`, here, has reserved a place before the run began: in a
   file of the run's folder (`journal.Unfinished`). After a sync a journal names the tensor.
4. When all are whole, `publishing.publish` renames the file to `places.Places.masks`.
5. `open_masks`, here, reads it; `verification` counts its groups, `reporting` shows its corner.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsolve.bits import has_loose_bits, packed_size, unpack
from nmsolve.checkpoint.places import MASKS_FORMAT as FORMAT
from nmsolve.checkpoint.places import Places
from nmsolve.checkpoint.planning import PlannedTensor
from nmsolve.checkpoint.safetensors_file import LENGTH, read_safetensors
from nmsolve.checkpoint.source import Source
from nmsolve.checkpoint.stored import FlatFile, Stored, StoredNumbers, allocate, out_of_memory
from nmsolve.errors import InputError, PatternError
from nmsolve.geometry import PADDINGS, Geometry
from nmsolve.pattern import Pattern

VERSION = "1"


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskFile:
    """The layout of a file of masks.

    Attributes
    ----------
    places : mapping of str to int
        Tensor name → offset in the file.
    header : bytes
        The file's first.
    size : int
        Bytes of the file.
    """

    places: Mapping[str, int]
    header: bytes
    size: int


def lay_out(plans: Sequence[PlannedTensor]) -> MaskFile | None:
    """Lay out the masks of one file of weights, in the order of its tensors; None for no mask."""
    described: dict[str, object] = {}
    entries: dict[str, object] = {}
    offsets: dict[str, int] = {}
    offset = 0
    for plan in plans:
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
    """A mask in a file, and what the file says about it.

    Attributes
    ----------
    file : FlatFile
    stored : Stored
        The packed mask.
    shape : tuple of int
        Of the tensor.
    pattern : Pattern
    axis : int
        The tensor's axis that groups lie along.
    padding : {"error", "pad", "dense"}
        As for `nmsolve.solve`.
    """

    file: FlatFile
    stored: Stored
    shape: tuple[int, ...]
    pattern: Pattern
    axis: int
    padding: str


class Masks(Mapping[str, NDArray[np.bool_]]):
    """Masks of a checkpoint by tensor name; each is read from disk when it is asked for.

    Attributes
    ----------
    described : mapping
        Tensor name → `.shape` of the tensor, `.pattern`, `.axis` that groups lie along, `.padding`.
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
    """Open the masks that `prune` or `solve` wrote.

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
    OSError
        If the system refuses to read.
    MissingDependencyError
        If safetensors is not installed.

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
            f"{Places.of(Path(path)).all_masks}"
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


def mask_files(path: Path) -> list[Path]:
    """Return the files of masks of a checkpoint, or the one that this path is."""
    beside = Places.of(path).all_masks
    if path.is_dir():
        return sorted(beside.rglob("*.safetensors"))
    if (
        path.suffix.lower() == ".safetensors"
        and dict(read_safetensors(path, path.name).metadata).get("format") == FORMAT
    ):
        return [path]
    path.stat()
    return [beside] if beside.exists() else []


def check_masks(source: Source, masks: Masks) -> None:
    """Raise InputError for masks that are not of this checkpoint's tensors."""
    tensors = {tensor.name: tensor for file in source.files for tensor in file.tensors}
    for name, entry in masks.described.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise InputError(
                f"{source.path} does not hold tensor {name!r}, for which there is a mask in "
                f"{entry.file.path}"
            )
        if entry.shape != tensor.shape or not isinstance(tensor, StoredNumbers):
            raise InputError(
                f"{source.path}: tensor {name!r} is {tensor.dtype} {tensor.shape}, and its mask in "
                f"{entry.file.path} has shape {entry.shape}"
            )


def _describe(file: FlatFile) -> dict[str, Described]:
    """Return the masks that a file holds, by name, as its metadata describe them."""
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
            described[stored.name] = _described(file, stored, entries[stored.name])
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


def _described(file: FlatFile, stored: Stored, entry: Mapping[str, Any]) -> Described:
    """Return what metadata say of a mask; any error if they cannot."""
    name, shape = stored.name, tuple(int(size) for size in entry["shape"])
    pattern = Pattern.parse(entry["pattern"])
    axis, padding = int(entry["axis"]), str(entry["padding"])
    if min(shape) < 1 or stored.dtype != "U8" or stored.shape != (packed_size(math.prod(shape)),):
        raise ValueError(
            f"mask {name!r} is {stored.dtype} {stored.shape}, for a tensor of shape {shape}"
        )
    if not 0 <= axis < len(shape) or len(shape) < 2 or padding not in PADDINGS:
        raise ValueError(f"mask {name!r} has axis {axis} of shape {shape}, padding {padding!r}")
    unfit = Geometry(shape, axis).unfit(pattern, padding)
    if unfit is not None:
        raise ValueError(f"mask {name!r} of shape {shape}: {unfit}")
    return Described(
        file=file, stored=stored, shape=shape, pattern=pattern, axis=axis, padding=padding
    )
