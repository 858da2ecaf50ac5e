"""Reading files that are files, and writing that is whole and on the disk; or an error that says
what was being done.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from nmsolve.errors import InputError

#: Bytes that are copied at a time.
PART = 2**20


def open_file(path: Path) -> BinaryIO:
    """Open a file to read; InputError for pipes and devices, which may never end."""
    _check_is_file(path)
    return open(path, "rb")


def open_unbuffered(path: Path) -> io.FileIO:
    """Open as `open_file` does, without a buffer: for reads that fill a large one."""
    _check_is_file(path)
    return open(path, "rb", buffering=0)


def _check_is_file(path: Path) -> None:
    kind = path.stat().st_mode
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(21, "Is a directory", str(path))
    if not stat.S_ISREG(kind):
        raise InputError(
            f"{path} is not a file but a pipe, socket or device: pass a file on a disk"
        )


def read_json(path: Path, expected: str) -> Any:
    """Return what a JSON file holds; InputError, naming what was expected, if it is no JSON."""
    with open_file(path) as file:
        data = file.read()
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not {expected}: {error}") from error


def write_at(descriptor: int, data: memoryview, start: int | None) -> None:
    """Write all of the bytes, at an offset, or where the file ends."""
    data = data.cast("B")
    while data:
        count = os.write(descriptor, data) if start is None else os.pwrite(descriptor, data, start)
        data = data[count:]
        start = None if start is None else start + count


def write_whole(path: Path, text: str) -> None:
    """Write a small file that is there whole, on the disk, or not at all."""
    made = path.with_name(f"{path.name}.part")
    with naming(f"writing {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(made, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(made, path)
        except OSError:
            with suppress(OSError):
                made.unlink()
            raise
        sync_folder(path.parent)


def digest_of(path: Path, start: int = 0, size: int | None = None) -> str:
    """Return the SHA-256 of a file, as sha256sum shows it, or of `size` bytes from an offset on."""
    hashed = hashlib.sha256()
    with open_file(path) as file:
        file.seek(start)
        while part := file.read(PART if size is None else min(PART, size)):
            hashed.update(part)
            size = None if size is None else size - len(part)
    return hashed.hexdigest()


def copy_whole(source: Path, place: Path) -> tuple[int, str]:
    """Copy a file; return its size and SHA-256, of the very bytes that were copied."""
    hashed, size = hashlib.sha256(), 0
    with open_file(source) as read, open(place, "wb") as written:
        while part := read.read(PART):
            hashed.update(part)
            size += written.write(part)
    return size, hashed.hexdigest()


def sync_file(path: Path) -> None:
    """Bring a file to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk."""
    sync_file(path)


def as_text(name: str) -> str:
    """Return a file's name as text; bytes that are no text, which the system allows in names,
    become escapes.
    """
    return name.encode("utf-8", "backslashreplace").decode()


@contextmanager
def naming(doing: str) -> Iterator[None]:
    """Make an OSError say what was being done when the system refused; it stays of its kind."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror or error}, while {doing}") from error
