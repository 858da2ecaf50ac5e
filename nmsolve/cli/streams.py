"""stdout and stderr that may be full or closed: commands go on printing, and ask at the end whether
the text was written.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import Any, TextIO, cast


class Stream:
    """A text stream whose first failure is remembered instead of raised.

    Attributes
    ----------
    stream : text stream
        The one that is written to.
    own : bool
        Whether its descriptor is this process's to change. Text that could not be written is still
        in a buffer, and Python would fail at the end of the process too, with exit code 120.
    failure : OSError, optional
        None as long as all was written.
    """

    def __init__(self, stream: TextIO | None, own: bool) -> None:
        self.failure: OSError | None = None
        self.own = own
        if stream is None:  # the shell closed it: 2>&-
            self.failure = OSError(errno.EBADF, os.strerror(errno.EBADF))
            stream = open(os.devnull, "w")  # noqa: SIM115
        elif isinstance(stream, TextIOWrapper):
            # × and | on a terminal that knows ASCII only must not end a finished run
            stream.reconfigure(errors="backslashreplace")
        self.stream = stream

    def write(self, text: str, /) -> int:
        if self.failure is None:
            try:
                return self.stream.write(text)
            except OSError as error:
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        if self.failure is None:
            try:
                self.stream.flush()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.failure = error
        if self.own:
            with suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())
                os.close(nowhere)

    @property
    def lost(self) -> str | None:
        """The reason why text was not written; None if it was, or if its reader went away, having
        seen enough.
        """
        self.flush()
        return (
            None
            if self.failure is None or self.failure.errno == errno.EPIPE
            else self.failure.strerror or str(self.failure)
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def guarded_streams(own: bool) -> Iterator[tuple[Stream, Stream]]:
    """Guard stdout and stderr, which are yielded. own : see `Stream`."""
    if own:
        _plug()
    before = sys.stdout, sys.stderr
    out, err = Stream(sys.stdout, own), Stream(sys.stderr, own)
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield out, err
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before


def _plug() -> None:
    """Open the standard descriptors that are closed, or the next file would get one, and be written
    to by whatever prints to it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which takes the lowest one that is free
