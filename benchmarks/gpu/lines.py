"""results.jsonl: a JSON object a line, on the disk before the next is measured.

Several processes append, and any of them may be killed within a write. A line is one write to a
file opened for appending; a line that was cut short is closed by whoever writes next, and skipped
by whoever reads.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAME = "results.jsonl"


def append(path: Path, line: dict[str, Any]) -> None:
    """Write a line, with the time of day, and wait until it is on the disk."""
    text = json.dumps({"t": round(time.time(), 3), **line}, ensure_ascii=False, default=str)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(file).st_size
        cut_short = size > 0 and os.pread(file, 1, size - 1) != b"\n"
        os.write(file, b"\n" * cut_short + text.encode() + b"\n")
        os.fsync(file)
    finally:
        os.close(file)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Alone with a folder among processes that ask for the same."""
    file = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def read(path: Path) -> list[dict[str, Any]]:
    """All lines that are whole, in order; none if there is no file."""
    found = []
    for text in path.read_bytes().split(b"\n") if path.exists() else ():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict):
            found.append(line)
    return found
