"""Tensors written into the parts of files, and named in a journal once they are on the disk."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from nmsolve.checkpoint.journal import Unfinished
from nmsolve.disk import naming, write_at

#: Work is synced to disk, and then journalled, after so many bytes or seconds: what a kill can
#: cost.
SYNC_BYTES, SYNC_SECONDS = 2**28, 2.0


class Writer:
    """The parts of files that one process writes, and its journal.

    Parameters
    ----------
    unfinished : Unfinished
        The run's folder, which has the parts in their full size (`Unfinished.prepare`).
    rank : int
        This process's number: its journals have names of their own.
    """

    def __init__(self, unfinished: Unfinished, rank: int) -> None:
        self._unfinished = unfinished
        self._open: dict[Path, int] = {}
        self._pending: list[dict[str, Any]] = []
        self._bytes = 0
        self._synced = time.monotonic()
        self._hashing = ThreadPoolExecutor(1)
        self._journal = os.open(
            unfinished.journal(rank),
            os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC,
            0o666,
        )

    def write(
        self, kind: str, name: str, start: int, data: memoryview, hashed: hashlib._Hash
    ) -> None:
        """Write bytes of a part, from an offset on, and hash them meanwhile."""
        path = self._unfinished.body(kind, name)
        if path not in self._open:
            if len(self._open) >= 2:  # a file of weights and its masks; tensors come file by file
                self.sync()
                self._close_parts()
            self._open[path] = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        hashing = self._hashing.submit(hashed.update, data)
        write_at(self._open[path], data, start)
        # Sends the pages on their way while the next tensor is solved, so that a sync finds most of
        # them written.
        os.posix_fadvise(self._open[path], start, len(data), os.POSIX_FADV_DONTNEED)
        self._bytes += len(data)
        hashing.result()

    def finished(self, tensor: str, outcome: Mapping[str, Any]) -> None:
        """Journal a tensor, with the next sync."""
        self._pending.append({"tensor": tensor, **outcome})
        if self._bytes >= SYNC_BYTES or time.monotonic() - self._synced >= SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Bring all that is finished to the disk, and only then name it in the journal."""
        with naming(f"bringing {self._unfinished.path} to the disk; resume=True goes on"):
            for descriptor in self._open.values():
                os.fdatasync(descriptor)
            lines = "".join(json.dumps(entry) + "\n" for entry in self._pending).encode()
            if lines:
                write_at(self._journal, memoryview(lines), None)
                os.fdatasync(self._journal)
        self._pending.clear()
        self._bytes, self._synced = 0, time.monotonic()

    def close(self) -> None:
        """Let go of all files; what was not synced is not journalled."""
        self._close_parts()
        os.close(self._journal)
        self._hashing.shutdown()

    def _close_parts(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()
