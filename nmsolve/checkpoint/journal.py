"""A run that is not finished: a folder with parts of files, journals of what is done (`writer`
writes both), and how it becomes the checkpoint.

Whatever a kill interrupts, one of three states is on disk, and `--resume` goes on from each:

1. Tensors are being written. A journal names a tensor only after its bytes have been synced, so
   what a journal names is there, and everything else is written again.
2. publish.json exists: every file is whole, synced, and waits to be renamed into its place, the
   index last. Without run.json all have been, and the folder is being removed.
3. publish.json is gone, and run.json too: all is in place.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from nmsolve.disk import digest_of, naming, read_json, sync_folder, write_at, write_whole
from nmsolve.errors import InputError

RUN, LOCK, PUBLISH = "run.json", "lock", "publish.json"
#: Kinds of files that are made in the folder of a run, each in a folder of its own.
WEIGHTS, MASKS, COPIED, REST = "weights", "masks", "copied", "rest"
#: Keys of the note of a run: size, time and header of each file that it reads; the plan of each
#: tensor.
SOURCE, PLAN = "files of the source", "plan"
#: Files as they were made, and their places.
Moves = Sequence[tuple[Path, Path]]


class Unfinished:
    """The folder of a run.

    Attributes
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: BinaryIO | None = None

    def hold(self) -> None:
        """Keep other runs away until `release`; the system lets go when the process ends, however
        it does.

        Raises
        ------
        InputError
            If another run holds it.
        """
        if self.path.is_symlink():
            raise InputError(
                f"{self.path} is a link, and the folder of a run is emptied in the end: remove the "
                "link"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        lock = open(self.path / LOCK, "ab")  # noqa: SIM115 — held open on purpose
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise InputError(
                f"another run is writing {self.path}: wait for it, or end it"
            ) from None
        self._lock = lock

    def release(self) -> None:
        """Let other runs have it."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def discard(self) -> None:
        """Remove the folder, if a kill left it empty after the last file had been put into its
        place.
        """
        if self.path.exists():
            self.path.rmdir()

    @property
    def begun(self) -> bool:
        """True if a run has begun here."""
        return (self.path / RUN).exists()

    def begin(self, run: Mapping[str, Any]) -> None:
        """Note what this run does."""
        write_whole(self.path / RUN, json.dumps(run))

    def differences(self, run: Mapping[str, Any]) -> list[str]:
        """Return the differences of a run that began here from another, in words."""
        began = read_json(self.path / RUN, "a note of a run")
        if not isinstance(began, dict):
            return [f"{self.path / RUN} is damaged"]
        found = []
        for key, now in json.loads(json.dumps(run)).items():
            then = began.get(key)
            if isinstance(then, dict) and isinstance(now, dict) and key in (SOURCE, PLAN):
                other = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
                found += [
                    f"{name} has changed since"
                    if key == SOURCE
                    else f"{name}: {then.get(name)} then, {now.get(name)} now"
                    for name in other[:3]
                ]
            elif then != now:
                found.append(f"{key}: {then!r} then, {now!r} now")
        return found

    def body(self, kind: str, name: str) -> Path:
        """Return the part of a file of weights or masks."""
        return self.path / kind / name

    def prepare(self, kind: str, name: str, size: int, pieces: Iterable[tuple[int, bytes]]) -> None:
        """Make a part of its full size, so that a full disk shows now, with all that is not tensors
        in it.
        """
        path = self.body(kind, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with naming(f"making room for {path} ({size:,} bytes)"):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                if os.fstat(descriptor).st_size != size:
                    os.ftruncate(descriptor, 0)
                    if size:
                        os.posix_fallocate(descriptor, 0, size)
                for start, data in pieces:
                    write_at(descriptor, memoryview(data), start)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def holds(self, kind: str, name: str, start: int, size: int, expected: str) -> bool:
        """Return whether a part has, from an offset on, bytes of this SHA-256."""
        path = self.body(kind, name)
        return path.exists() and digest_of(path, start, size) == expected

    def done(self) -> dict[str, dict[str, Any]]:
        """Return what the journals say: tensor name → its outcome."""
        found: dict[str, dict[str, Any]] = {}
        for path in sorted(self.path.glob("journal-*.jsonl")):
            for line in path.read_bytes().split(b"\n"):
                try:
                    entry = json.loads(line)
                    found[entry.pop("tensor")] = entry
                except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
                    break  # the last line, which a kill has cut short
        return found

    def journal(self, rank: int) -> Path:
        """Return a new journal's path: one that a kill has cut short is never appended to."""
        number = len(list(self.path.glob(f"journal-{rank}-*.jsonl")))
        return self.path / f"journal-{rank}-{number}.jsonl"

    def publish(self, moves: Moves) -> None:
        """Rename whole, synced files of this folder into their places beside it, in this order, and
        remove the folder.
        """
        write_whole(self.path / PUBLISH, json.dumps(self._relative(moves)))
        self.go_on_publishing(moves)

    @property
    def publishing(self) -> bool:
        """True if a run got as far as `publish`."""
        return (self.path / PUBLISH).exists()

    def go_on_publishing(self, moves: Moves) -> None:
        """Do what is left of `publish`.

        Raises
        ------
        InputError
            If it was begun with other moves, or something has appeared in a file's place.
        """
        if read_json(self.path / PUBLISH, "a note of this run") != self._relative(moves):
            raise InputError(
                f"{self.path / PUBLISH} is damaged: remove {self.path}, and begin again"
            )
        for made, place in moves if self.begun else ():
            if not made.exists():
                continue
            if os.path.lexists(place):
                raise InputError(
                    f"{place} appeared while this run was at work, and nothing is overwritten: "
                    "move it away, and resume"
                )
            with naming(f"renaming {made} to {place}"):
                place.parent.mkdir(parents=True, exist_ok=True)
                os.rename(made, place)
        top = self.path.parent
        folders = {folder for _, place in moves for folder in place.parents}
        for folder in folders:
            if folder == top or top in folder.parents:
                sync_folder(folder)
        # in this order: a kill in between leaves a run that knows how far it was
        last = (RUN, PUBLISH)
        for entry in sorted(self.path.iterdir()):
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name not in last:
                entry.unlink()
        for name in last:
            (self.path / name).unlink(missing_ok=True)
        self.path.rmdir()
        self.release()

    def _relative(self, moves: Moves) -> list[list[str]]:
        return [
            [str(made.relative_to(self.path)), str(place.relative_to(self.path.parent))]
            for made, place in moves
        ]
