"""Text that a terminal shows and does not obey: names of files and tensors may hold anything."""

from __future__ import annotations

import re
import sys

import click

_STANDS = "nmsolve.stands"


def printable(text: str) -> str:
    """A text with everything that is not to be seen, but for line ends, as escapes.

    Examples
    --------
    >>> printable("w\\x1b[2J é")
    'w\\\\x1b[2J é'
    """
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape", "surrogatepass").decode()
        for c in text
    )


def show(*parts: object) -> None:
    """Print to stdout."""
    print(*(printable(str(part)) for part in parts))


def show_aside(*parts: object) -> None:
    """Print to stderr what is not the output itself."""
    print(*(printable(str(part)) for part in parts), file=sys.stderr)


def stands() -> None:
    """Note that what the command in progress is for is done, on the disk or as an exit code: its
    text may be lost.
    """
    click.get_current_context().meta[_STANDS] = True


def has_stood(context: click.Context) -> bool:
    """Whether a command has noted that."""
    return bool(context.meta.get(_STANDS))


def show_error(text: object) -> None:
    """Print what went wrong to stderr, on one line."""
    print("nmsolve: error:", printable(re.sub(r"\s*\n\s*", " ", str(text))), file=sys.stderr)
