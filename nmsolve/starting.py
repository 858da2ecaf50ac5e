"""Ctrl-C while the command line is still being imported: exit code 130 and no traceback.

Imported before anything else, and does nothing unless this process is the command: in a user's
program, Ctrl-C is theirs. It imports little itself: until it is there, Python handles Ctrl-C.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # `signal` itself imports enum, which takes ten times as long as all of this
import atexit
import os
import select
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # not imported from typing, which takes as long as all of this
    from types import FrameType
    from typing import NoReturn

#: What a shell reports for a process that Ctrl-C ended.
INTERRUPTED = 130
#: Whether Ctrl-C is what this process ends by.
interrupted = False


def leave(
    signum: int = signal.SIGINT, frame: FrameType | None = None, *, last: str = ""
) -> NoReturn:
    """End the process here and now, as a kill would, which every file on the disk survives.

    last : text for the terminal.
    """
    if sys.stderr is not None:  # without one, descriptor 2 may be a file of ours
        try:
            if select.select((), (2,), (), 0)[1]:  # or a pipe that nobody reads would be waited for
                os.write(2, f"{last}nmsolve: stopped\n".encode())
        except (OSError, ValueError):
            pass
    os._exit(INTERRUPTED)


def is_command() -> bool:
    """Return whether this process was started as `nmsolve` or `python -m nmsolve`."""
    first: str = (getattr(sys, "argv", None) or [""])[0]
    if first != "-m":  # which it is while a package is imported whose __main__ is to run
        return os.path.basename(first) == "nmsolve"
    given = sys.orig_argv
    return "-mnmsolve" in given or (
        "-m" in given and given[given.index("-m") + 1 :][:1] == ["nmsolve"]
    )


def end() -> None:
    """Do the last thing of all: after it comes Python's own end, in which Ctrl-C would kill, with
    another exit code.
    """
    # Python may kill itself with SIGINT, if it has met that in code that was compiled from text
    if interrupted:
        os._exit(INTERRUPTED)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


# jobs in the background ignore it
if is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    try:
        signal.signal(signal.SIGINT, leave)
        atexit.register(end)  # first, and so called last
    except ValueError:  # in another thread than the first, where no command begins
        pass
