"""Text that a terminal shows and does not obey: names of files and tensors may hold anything."""

from __future__ import annotations

import re
import shlex
import sys

import click

_STANDS = "nmsolve.stands"
#: Options as the library's messages name them.
_FLAG = re.compile(r"\b(resume|force)=True\b")
_VALUE = re.compile(r"\b(pattern|include|exclude|method|padding|against)=('[^']*'|DENSE\b)")


def printable(text: str) -> str:
    """Return a text with everything that is not to be seen, but for line ends, as escapes.

    Examples
    --------
    >>> printable("w\\x1b[2J é")
    'w\\\\x1b[2J é'
    """
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape", "surrogatepass").decode()
        for c in text
    )


def as_options(text: str) -> str:
    """Return a message of the library with options as a shell's user writes them.

    Examples
    --------
    >>> as_options("go on by resume=True; include='a.*' matches nothing; pass padding='pad'")
    "go on by --resume; --include 'a.*' matches nothing; pass --padding pad"
    """
    text = _FLAG.sub(r"--\1", text)
    return _VALUE.sub(lambda found: f"--{found[1]} {shlex.quote(found[2].strip(chr(39)))}", text)


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
    """Return whether a command has noted that."""
    return bool(context.meta.get(_STANDS))


def show_error(text: object) -> None:
    """Print what went wrong to stderr, on one line."""
    line = re.sub(r"\s*\n\s*", " ", as_options(str(text)))
    print("nmsolve: error:", printable(line), file=sys.stderr)
