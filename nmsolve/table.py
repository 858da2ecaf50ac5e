"""Tables as text: the one printer of all reports."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence

_WIDTH = 120


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Collection[int] = (),
    *,
    ruled: bool = False,
) -> str:
    """Return rows under a head, in columns as wide as their cells.

    Parameters
    ----------
    head : sequence of str
        A name for each column.
    rows : sequence of sequences of str
        As long as the head.
    right : collection of int
        Columns that are flush right. The last column wraps within itself unless it is one of them.
    ruled : bool
        Draw a line wherever the first column changes.

    Returns
    -------
    str
        Lines without trailing spaces.

    Examples
    --------
    >>> rows = [("fc", "64", ""), ("embed", "1024", "not a matrix")]
    >>> print(table(("layer", "weights", "reason"), rows, {1}))
    layer  weights  reason
    fc          64
    embed     1024  not a matrix
    >>> rows = [("2:4", "4"), ("2:4", "8"), ("1:4", "2")]
    >>> print(table(("pattern", "kept"), rows, {1}, ruled=True))
    pattern  kept
    -------------
    2:4         4
    2:4         8
    -------------
    1:4         2
    """
    cells = [tuple(head), *map(tuple, rows)]
    fixed = len(head) if len(head) - 1 in right else len(head) - 1
    widths = [max(len(row[i]) for row in cells) for i in range(fixed)]
    lines: list[str] = []
    above = cells[0]
    for row in cells:
        if ruled and row[0] != above[0]:
            lines.append("-" * (sum(widths) + 2 * len(widths) - 2))
        above = row
        left = "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row[:fixed], widths, strict=True))
        )
        room = max(20, _WIDTH - len(left) - 2)
        first, *more = (textwrap.wrap(row[-1], room) if fixed < len(head) else []) or [""]
        lines.append(f"{left}  {first}".rstrip())
        lines += [" " * (len(left) + 2) + line for line in more]
    return "\n".join(lines)


def extent(shape: Sequence[int]) -> str:
    """Return a shape as tables show it.

    Examples
    --------
    >>> extent((64, 3, 7, 7))
    '64×3×7×7'
    """
    return "×".join(map(str, shape))


def shortened(name: str, width: int = 40) -> str:
    """Return a module path that is no wider than `width`, with its end kept, from a dot on if there
    is one.

    Examples
    --------
    >>> shortened("model.decoder.layers.31.mlp.down_proj", 28)
    '….layers.31.mlp.down_proj'
    """
    if len(name) <= width:
        return name
    end = name[1 - width :]
    return "…" + end[max(0, end.find(".")) :]
