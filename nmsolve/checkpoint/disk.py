"""Writing that is whole and on the disk, or an error that says what was being done."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_at(descriptor: int, data: memoryview, start: int | None) -> None:
    """All of the bytes, at an offset, or where the file ends."""
    data = data.cast("B")
    while data:
        count = os.write(descriptor, data) if start is None else os.pwrite(descriptor, data, start)
        data = data[count:]
        start = None if start is None else start + count


def write_whole(path: Path, text: str) -> None:
    """A small file that is there whole, on the disk, or not at all."""
    made = path.with_name(f"{path.name}.part")
    with naming(f"writing {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(made, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(made, path)
        sync_folder(path.parent)


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


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Make an OSError say what was being done when the system refused; it stays of its kind."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror or error}, while {what}") from error
