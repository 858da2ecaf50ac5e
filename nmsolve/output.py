"""A file that a command writes where its user says: looked at before any work is done, and in its
place whole or not at all.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

from nmsolve.disk import naming, sync_folder, write_at
from nmsolve.errors import InputError

Buffer = bytes | memoryview

#: How much of a file its writer is recognised by.
BEGINNING = 4096


class Output:
    """A place that has been found fit to be written to; a context, in which `write` fills it.

    Parameters
    ----------
    path : Path
        As the user wrote it. A link is followed. What is no file (a pipe with a reader, a character
        device, this process's stdout) is opened now, and written to as it is.
    inputs : iterable of Path
        Files and folders that are read: none of them is replaced, nor any file in them, under
        whatever name.
    ours : callable, optional
        Whether a file that begins with these bytes was written by the same command, and so may be
        replaced. Without it none may.
    force : bool
        Replace any file but an input.
    parents : bool
        Make the folder, if there is none.

    Attributes
    ----------
    path : Path
    force : bool
        As given.
    stdout : bool
        Whether it is this process's stdout.

    Raises
    ------
    InputError
        For a file that is there and may not be replaced, a folder, a pipe that nothing reads, a
        link that leads nowhere.
    OSError
        If the system would refuse to make the file: what it says is the same at the end of hours of
        work.
    """

    def __init__(
        self,
        path: Path,
        *,
        inputs: Iterable[Path] = (),
        ours: Callable[[bytes], bool] | None = None,
        force: bool = False,
        parents: bool = False,
    ) -> None:
        self.path, self.force = path, force
        self.stdout = False
        self._descriptor: int | None = None
        with naming(f"looking at {path}, which is to be written"):
            before = status(path)
            self._place = Path(os.path.realpath(path))
        self._before = before
        if before is not None:
            self._check_inputs(before, inputs)
            self.stdout = is_stdout(before)
            if self.stdout or stat.S_ISFIFO(before.st_mode) or stat.S_ISCHR(before.st_mode):
                self._descriptor = self._opened()
                return
            self._check_there(before, ours)
        self._check_folder(parents)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @property
    def is_file(self) -> bool:
        """True if it is a file, or will be."""
        return self._descriptor is None

    def write(self, *parts: Buffer) -> None:
        """Put bytes there, all of these one after another.

        Raises
        ------
        InputError
            If something has appeared, or changed, there meanwhile: then the data stay beside it.
        OSError
            If the system refuses, for a full disk; then nothing has changed.
        """
        if self._descriptor is not None:
            self._pass_on(self._descriptor, parts)
            return
        with naming(f"writing {self.path}"):
            self._place.parent.mkdir(parents=True, exist_ok=True)
            made, descriptor = _new_file(self._place.parent)
            try:
                with open(descriptor, "wb") as file:
                    if self._before is not None:
                        os.fchmod(descriptor, stat.S_IMODE(self._before.st_mode) & 0o777)
                    file.writelines(parts)
                    file.flush()
                    os.fsync(descriptor)
                self._publish(made)
            except InputError:
                raise
            except BaseException:
                with suppress(OSError):
                    os.unlink(made)
                raise
            with suppress(PermissionError):  # a folder that may be written to, and not read
                sync_folder(self._place.parent)

    def _check_inputs(self, before: os.stat_result, inputs: Iterable[Path]) -> None:
        for path in inputs:
            for file in _files(path):
                with suppress(OSError):  # a file that cannot be read says so when it is
                    if not os.path.samestat(os.stat(file), before):
                        continue
                    named = "" if str(file) == str(self.path) else f" is {file}, which"
                    raise InputError(
                        f"{self.path}{named} this command reads, and never writes to: name another "
                        "file"
                    )

    def _check_there(self, before: os.stat_result, ours: Callable[[bytes], bool] | None) -> None:
        if stat.S_ISDIR(before.st_mode):
            raise InputError(
                f"{self.path} is a folder, and what is to be written is a file: name one, in it if "
                "you like"
            )
        if not stat.S_ISREG(before.st_mode):
            raise InputError(f"{self.path} is there and is not a file: name another place")
        if self.force:
            return
        if ours is None or not ours(_beginning(self._place)):
            raise InputError(
                f"{self.path} exists, and nothing in it says that this command wrote it: name "
                "another file, or replace it by force=True"
            )
        if not os.access(self._place, os.W_OK):
            raise InputError(
                f"{self.path} is write-protected: name another file, or replace it by force=True"
            )

    def _check_folder(self, parents: bool) -> None:
        folder = self._place.parent
        while parents and not os.path.lexists(folder):
            folder = folder.parent
        with naming(f"writing {self.path}"):
            # asks the system itself, which knows of rights more than any check would
            made, descriptor = _new_file(folder)
            os.close(descriptor)
            os.unlink(made)

    def _opened(self) -> int:
        """A descriptor for what is no file: opened once, since a reader takes the closing for the
        end.
        """
        with naming(f"opening {self.path}"):
            if self.stdout:
                return os.dup(1)
            try:
                descriptor = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as error:
                if error.errno == errno.ENXIO and stat.S_ISFIFO(os.stat(self.path).st_mode):
                    raise InputError(
                        f"{self.path} is a pipe that nothing reads: start its reader first"
                    ) from None
                raise
            os.set_blocking(descriptor, True)
            return descriptor

    def _pass_on(self, descriptor: int, parts: Iterable[Buffer]) -> None:
        if self.stdout and sys.stdout is not None:
            sys.stdout.flush()
        try:
            for part in parts:
                write_at(descriptor, memoryview(part), None)
        except BrokenPipeError:
            raise InputError(f"{self.path}: its reader has gone before it was written") from None
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}, while writing {self.path}") from error

    def _publish(self, made: Path) -> None:
        """Give a whole file its name, in one step."""
        if self.force:
            os.replace(made, self._place)
        elif self._before is not None:
            now = status(self._place)
            if now is None or _identity(now) != _identity(self._before):
                raise InputError(
                    f"{self.path} has changed meanwhile, and nothing is overwritten: what was to "
                    f"be there is in {made}"
                )
            os.replace(made, self._place)
        else:
            try:
                self._claim(made)
            except FileExistsError:
                raise InputError(
                    f"{self.path} appeared meanwhile, and nothing is overwritten: what was to be "
                    f"there is in {made}"
                ) from None

    def _claim(self, made: Path) -> None:
        """Give it a name that nothing has."""
        try:
            os.link(made, self._place)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            os.close(os.open(self._place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
            os.replace(made, self._place)
        else:
            os.unlink(made)


def status(path: Path) -> os.stat_result | None:
    """Return the status of a place; None if nothing is there.

    Raises
    ------
    InputError
        For a link that leads nowhere.
    """
    try:
        return os.stat(path)
    except FileNotFoundError:
        if os.path.islink(path):
            raise InputError(
                f"{path} is a link to {os.readlink(path)}, which is not there: name that file "
                "itself"
            ) from None
        return None


def _new_file(folder: Path) -> tuple[Path, int]:
    """A new file with a random name, and its descriptor."""
    made = folder / f".nmsolve-{secrets.token_hex(8)}.part"
    return made, os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def _files(path: Path) -> Iterator[Path]:
    yield path
    if path.is_dir():
        for folder, _, names in os.walk(path):
            yield from (Path(folder, name) for name in names)


def is_stdout(found: os.stat_result) -> bool:
    """Return whether text of this process goes there, in which a mask could not be read."""
    try:
        return os.path.samestat(found, os.fstat(1))
    except OSError:
        return False


def _beginning(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(BEGINNING)
    except PermissionError:
        return b""


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
