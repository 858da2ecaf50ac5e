"""Reading and writing .npy and .npz: one array, or several in a zip archive. Nothing here
unpickles.
"""

from __future__ import annotations

import errno
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from numpy.lib import format as npy

from nmsolve.checkpoint.stored import (
    CHUNK,
    FlatFile,
    Readable,
    Stored,
    WeightFile,
    byte_size,
    check_name,
    file_size,
)
from nmsolve.disk import open_file
from nmsolve.errors import InputError

#: Bytes of a header, many times those of one with 64 axes.
LONGEST_HEADER = 2**16
#: What a .npy file's array is called: as np.savez calls one that is given no name.
UNNAMED = "arr_0"


def read_npy(path: Path, name: str) -> FlatFile:
    """Read what a .npy file holds, but for its values: one array.

    Raises
    ------
    InputError
        For a file that is damaged, or holds Python objects.
    """
    with open_file(path) as file:
        tensor, header = _read_header(file, path, UNNAMED, 0)
    size = file_size(path)
    if size != tensor.start + tensor.size:
        raise InputError(
            f"{path} has {size} bytes, but {tensor.dtype} of shape {tensor.shape} needs "
            f"{tensor.start + tensor.size}: it is damaged"
        )
    return FlatFile(
        path=path, name=name, tensors=(tensor,), pieces=((0, header),), size=size, arrays=True
    )


def read_npz(path: Path, name: str) -> Archive:
    """Read what a .npz archive holds, but for its values: named arrays.

    Raises
    ------
    InputError
        For an archive that is damaged or encrypted, or holds anything but arrays of numbers.
    """
    tensors: dict[str, Stored] = {}
    pieces, members = [], []
    start = 0
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                key = info.filename.removesuffix(".npy")
                check_name(key, path)
                if key == info.filename or info.is_dir():
                    raise InputError(
                        f"{path}: member {info.filename!r} is not an array; a .npz holds .npy "
                        "files, as np.savez writes it"
                    )
                if key in tensors:
                    raise InputError(f"{path}: array {key!r} is there twice")
                with archive.open(info) as member:
                    tensor, header = _read_header(member, path, key, start)
                if info.file_size != len(header) + tensor.size:
                    raise InputError(
                        f"{path}: array {key!r} has {info.file_size} bytes, but {tensor.dtype} of "
                        f"shape {tensor.shape} needs {len(header) + tensor.size}: it is damaged"
                    )
                tensors[key] = tensor
                pieces.append((start, header))
                members.append(
                    Member(
                        name=key, info=info, start=start, size=info.file_size, header=len(header)
                    )
                )
                start += info.file_size
    except (
        zipfile.BadZipFile,
        RuntimeError,  # encrypted
        NotImplementedError,
        EOFError,
        ValueError,
        zlib.error,
        OSError,
    ) as error:
        if isinstance(error, InputError) or (
            isinstance(error, OSError) and error.filename is not None
        ):
            raise
        raise InputError(f"{path} is not a whole .npz archive: {error}") from error
    return Archive(
        path=path,
        name=name,
        tensors=tuple(tensors.values()),
        pieces=tuple(pieces),
        size=start,
        arrays=True,
        members=tuple(members),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A .npy in an archive.

    Attributes
    ----------
    name : str
        Of its array.
    info : zipfile.ZipInfo
        How it is stored there.
    start, size : int
        The bytes that it has in the body, its header first.
    header : int
        Bytes of that header.
    """

    name: str
    info: zipfile.ZipInfo
    start: int
    size: int
    header: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive(WeightFile):
    """A .npz, whose body is its members one after the other, uncompressed.

    Attributes
    ----------
    members : tuple of Member
    """

    members: tuple[Member, ...] = ()

    def open(self, tensor: Stored) -> Readable:
        member = next(member for member in self.members if member.name == tensor.name)
        return _MemberStream(self.path, tensor.name, member)

    def finished(self, body: Path) -> Path:
        return body.with_name(f"{body.name}.zip")

    def finish(self, body: Path) -> None:
        """Zip the body: members in the order, and compressed in the way, of the source."""
        with open(body, "rb") as source, zipfile.ZipFile(self.finished(body), "w") as archive:
            for member in self.members:
                info = zipfile.ZipInfo(member.info.filename, member.info.date_time)
                info.compress_type = member.info.compress_type
                info.external_attr = member.info.external_attr
                with archive.open(info, "w", force_zip64=True) as out:
                    _copy(source, out, member.size)


class _MemberStream:
    """The data of one array of an archive, with errors that name it."""

    def __init__(self, path: Path, name: str, member: Member) -> None:
        self.where = f"{path}: array {name!r}"
        self.file = open_file(path)
        try:
            archive = zipfile.ZipFile(self.file)
            # typed as IO[bytes], which knows no readinto
            self.stream: Any = archive.open(member.info)
            self.stream.read(member.header)
        except Exception as error:
            self.file.close()
            raise self._damaged(error) from error

    def readinto(self, buffer: memoryview, /) -> int:
        try:
            return int(self.stream.readinto(buffer))
        except Exception as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> Exception:
        """Return the error to raise: what a decompressor raises depends on the bytes."""
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            return error
        return InputError(f"{self.where} is damaged: {error}")

    def close(self) -> None:
        self.stream.close()
        self.file.close()


def _copy(source: IO[bytes], target: IO[bytes], size: int) -> None:
    while size:
        part = source.read(min(size, CHUNK))
        if not part:
            raise OSError("a file that was just written has become shorter")
        target.write(part)
        size -= len(part)


def _read_header(file: IO[bytes], path: Path, name: str, start: int) -> tuple[Stored, bytes]:
    """Return an array, given where its .npy begins in the body, and the bytes before its data."""
    where = f"{path}" if name == UNNAMED else f"{path}: array {name!r}"
    try:
        before = _Recorded(file)
        version = npy.read_magic(before)
        # of headers that Python 2 wrote, or that hold what Python warns of
        with warnings.catch_warnings(action="ignore"):
            shape, fortran, dtype = _READERS[version](before)
        size = byte_size(shape, dtype)
        if size < 0 or min(shape, default=0) < 0:
            raise ValueError(f"shape {shape} has a negative size")
    except Exception as error:  # what NumPy raises for a damaged header depends on the bytes
        if isinstance(error, OSError) and error.errno is not None:
            raise
        remedy = "write one with np.save(path, array)"
        if b"'<f1'" in before.read_so_far:
            remedy = (
                "it is a float8_e5m2, which np.save writes so that nothing can read it: save "
                "its float32, or a .safetensors"
            )
        raise InputError(
            f"{where} is not a .npy file that can be read: {error}; {remedy}"
        ) from error
    if dtype.hasobject:
        raise InputError(
            f"{where} holds Python objects, pickled, and loading those runs code; save an array of "
            "numbers"
        )
    header = bytes(before.read_so_far)
    label = dtype.str if dtype.names is None else str(dtype)
    tensor = Stored(name=name, dtype=label, shape=shape, start=start + len(header), size=size)
    if dtype.kind in "fiu" and dtype.itemsize <= 8:
        tensor = tensor.of_numbers(dtype, fortran=fortran)
    return tensor, header


class _Recorded:
    """A file that remembers what was read of it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.read_so_far = bytearray()

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= LONGEST_HEADER:  # an archive's may unpack to any length
            raise ValueError(f"its header is said to have {size} bytes")
        data = self.file.read(size)
        self.read_so_far += data
        return data


#: Version 3.0 is for structured arrays with names beyond Latin-1, which hold no weights.
_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
