"""Files of weights: which tensors they hold, where, and how their bytes are read without reading
all of them.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from unicodedata import category

import numpy as np
from numpy.typing import NDArray

from nmsolve.disk import open_unbuffered
from nmsolve.errors import InputError, NMSolveError

#: Bytes that are copied at a time.
CHUNK = 2**23
_NAMELESS = "; {} that np.save stored lost its name, which .safetensors keeps"
_PACKED = "; its values are packed, several to a byte: unpack them with what made the file"
#: Why dtypes are not solved, where there is more to say.
UNSOLVED = {
    **dict.fromkeys(("|V2", "<V2"), _NAMELESS.format("bfloat16")),
    **dict.fromkeys(("|V1", "<V1"), _NAMELESS.format("a float8 or int4")),
    **dict.fromkeys(("F4", "F6_E2M3", "F6_E3M2"), _PACKED),
    "F8_E8M0": "; it holds powers of two, and has no zero for what is dropped",
}


class Readable(Protocol):
    """A stream that bytes are read from."""

    def readinto(self, buffer: memoryview, /) -> int | None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A tensor in a file of weights.

    Attributes
    ----------
    name : str
        In the checkpoint: with its folder's before it, if a model lies in a folder of its own.
    dtype : str
        As the file spells it.
    shape : tuple of int
    start, size : int
        The bytes that it has in the body (see `WeightFile`).
    folder : str
        Where its file lies in the checkpoint; a model in a folder of its own, as a pipeline has
        several, is one by itself.
    element : numpy.dtype, optional
        What its elements are read as; None if nothing here computes with them.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int
    folder: str = ""
    element: np.dtype[Any] | None = None

    @property
    def local(self) -> str:
        """The name that it has in its own model, without the folder."""
        return self.name.removeprefix(f"{self.folder}/") if self.folder else self.name

    def of_numbers(self, element: np.dtype[Any], *, fortran: bool = False) -> StoredNumbers:
        """Return this tensor with what its elements are read as."""
        return StoredNumbers(
            name=self.name,
            dtype=self.dtype,
            shape=self.shape,
            start=self.start,
            size=self.size,
            folder=self.folder,
            element=element,
            fortran=fortran,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredNumbers(Stored):
    """A tensor whose elements are numbers that can be computed with.

    Attributes
    ----------
    element : numpy.dtype
        As `nmsolve.elements` knows it.
    fortran : bool
        Whether the first axis runs fastest.
    """

    element: np.dtype[Any]
    fortran: bool = False

    def view(self, buffer: NDArray[np.uint8]) -> NDArray[Any]:
        """Return the tensor whose bytes a buffer holds."""
        return (
            buffer[: self.size]
            .view(self.element)
            .reshape(self.shape, order="F" if self.fortran else "C")
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFile(ABC):
    """A file of weights, and the *body* that its pruned copy is written as: any part of it at any
    time, in any order.

    Attributes
    ----------
    path : Path
    name : str
        Its path within the checkpoint.
    tensors : tuple of Stored
        In the order in which they are worked through.
    pieces : tuple of (int, bytes)
        Offsets in the body, and what is there beside tensors.
    size : int
        Bytes of the body.
    arrays : bool
        Whether its tensors are arrays as `nmsolve.solve` takes them, rather than a model's named
        parameters.
    metadata : tuple of (str, str)
        What the file says about itself.
    """

    path: Path
    name: str
    tensors: tuple[Stored, ...]
    pieces: tuple[tuple[int, bytes], ...]
    size: int
    arrays: bool
    metadata: tuple[tuple[str, str], ...] = ()

    @abstractmethod
    def open(self, tensor: Stored) -> Readable:
        """Open the source at the first byte of a tensor."""

    @abstractmethod
    def finished(self, body: Path) -> Path:
        """Return where the file is made that a whole body stands for: the body itself, or beside
        it.
        """

    @abstractmethod
    def finish(self, body: Path) -> None:
        """Make that file."""

    def read(self, tensor: Stored, buffer: NDArray[np.uint8]) -> None:
        """Fill a buffer with a tensor's bytes."""
        with closing(self.open(tensor)) as stream:
            self._fill(stream, tensor, buffer.data[: tensor.size])

    def array(self, tensor: StoredNumbers) -> NDArray[Any]:
        """Return a whole tensor, in memory of its own."""
        buffer = allocate(tensor.size, self.path, tensor.name)
        self.read(tensor, buffer)
        return tensor.view(buffer)

    def chunks(self, tensor: Stored, buffer: NDArray[np.uint8]) -> Iterator[memoryview]:
        """Yield a tensor's bytes, at most a buffer's worth at a time."""
        with closing(self.open(tensor)) as stream:
            for done in range(0, tensor.size, buffer.size):
                part = buffer.data[: min(buffer.size, tensor.size - done)]
                self._fill(stream, tensor, part)
                yield part

    def digest(self, tensor: Stored, buffer: NDArray[np.uint8]) -> str:
        """Return the SHA-256 of a tensor's bytes, which are read through a buffer."""
        hashed = hashlib.sha256()
        for part in self.chunks(tensor, buffer):
            hashed.update(part)
        return hashed.hexdigest()

    def _fill(self, stream: Readable, tensor: Stored, part: memoryview) -> None:
        filled = 0
        while filled < len(part):
            count = stream.readinto(part[filled:])
            if not count:
                raise InputError(
                    f"{self.path}: tensor {tensor.name!r} ends early: the file has become shorter "
                    "since it was opened"
                )
            filled += count


def allocate(size: int, path: Path, name: str) -> NDArray[np.uint8]:
    """Return memory for the bytes of a tensor; NMSolveError, naming it, if there is too little."""
    try:
        return np.empty(size, np.uint8)
    except MemoryError as error:
        raise out_of_memory(size, path, name) from error


def out_of_memory(size: int, path: Path, name: str) -> NMSolveError:
    """Return the error for a tensor that is too large for this machine."""
    return NMSolveError(
        f"{path}: tensor {name!r} needs more memory than there is: {size:,} bytes, and what its "
        "mask takes"
    )


class FlatFile(WeightFile):
    """A file whose body is the file itself: .safetensors and .npy."""

    __slots__ = ()

    def open(self, tensor: Stored) -> Readable:
        stream = open_unbuffered(self.path)
        stream.seek(tensor.start)
        return stream

    def finished(self, body: Path) -> Path:
        return body

    def finish(self, body: Path) -> None:
        """Nothing is left to do."""


#: Unicode's classes of control characters, of invisible ones that turn text around, of line ends,
#: and of half characters.
_CONTROL = ("Cc", "Cf", "Zl", "Zp", "Cs")


def check_name(name: str, path: Path) -> None:
    """Raise InputError for a tensor whose name is a way out of a folder, or hides something from a
    terminal.
    """
    parts = re.split(r"[/\\]", name)
    if (
        ".." in parts
        or name.startswith(("/", "\\"))
        or re.match(r"[A-Za-z]:[/\\]", name)
        or any(category(c) in _CONTROL for c in name)
    ):
        raise InputError(
            f"{path}: tensor {name!r} is named like a path out of its folder, or with control "
            "characters; no model names a tensor so: do not trust this file, or rename the tensor "
            "in it"
        )


def byte_size(shape: tuple[int, ...], element: np.dtype[Any]) -> int:
    """Return the bytes of a tensor, as a Python integer that cannot overflow."""
    return math.prod(shape) * element.itemsize


def file_size(path: Path) -> int:
    """Return the bytes of a file."""
    return os.stat(path).st_size
