"""Text that a terminal shows and does not obey: names of files and tensors may hold anything."""

from __future__ import annotations

import re
import sys


def printable(text: str) -> str:
    """A text with everything that is not to be seen, but for line ends, as escapes.

    Examples
    --------
    >>> printable("w\\x1b[2J é")
    'w\\\\x1b[2J é'
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def show(*parts: object) -> None:
    """Print to stdout."""
    print(*(printable(str(part)) for part in parts))


def show_error(text: object) -> None:
    """Print what went wrong to stderr, on one line."""
    print("nmsolve: error:", printable(re.sub(r"\s*\n\s*", " ", str(text))), file=sys.stderr)
