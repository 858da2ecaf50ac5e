"""Ctrl-C while a command runs: the first ends it in good order, a second at once; exit code 130 and
no traceback.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from nmsolve.starting import leave

#: Clears the line of a live bar, and shows the cursor, which it hides.
_CLEAR = "\r\x1b[K\x1b[?25h"


class Stopping:
    """The answer to Ctrl-C.

    Attributes
    ----------
    running : bool
        Whether a command runs.
    pressed : bool
        Whether Ctrl-C was pressed.
    bar : bool
        Whether a live bar is on the terminal.
    """

    def __init__(self) -> None:
        self.pressed = self.bar = self.running = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.pressed or not self.running:
            self.leave()
        self.pressed = True
        raise KeyboardInterrupt

    @property
    def clear(self) -> str:
        """The escapes that leave the terminal as it was."""
        return _CLEAR if self.bar else ""

    def leave(self) -> NoReturn:
        """End the process at once."""
        leave(last=self.clear)

    def unraisable(self, found: sys.UnraisableHookArgs) -> None:
        """Take an exception in a callback, for which Python would print a traceback, and go on in
        spite of Ctrl-C.
        """
        if found.exc_type is KeyboardInterrupt:
            self.leave()
        sys.__unraisablehook__(found)


#: Of this process, which has one terminal.
STOPPING = Stopping()


@contextmanager
def interruptible() -> Iterator[None]:
    """Answer Ctrl-C as the command that this process is; afterwards, until it has ended, at
    once.
    """
    # jobs in the background ignore it
    takes = signal.getsignal(signal.SIGINT) in (signal.default_int_handler, leave)
    if takes and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, STOPPING)
        sys.unraisablehook = STOPPING.unraisable
    STOPPING.running = True
    try:
        yield
    finally:
        STOPPING.running = False
