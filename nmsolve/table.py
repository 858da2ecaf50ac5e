"""Tables as text: columns as wide as what is in them, a last one that wraps."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence

_WIDTH = 120


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Rows under a head; columns named in `right` are flush right, the last one wraps within
    itself.

    Examples
    --------
    >>> rows = [("fc", "64", ""), ("embed", "1024", "not a matrix")]
    >>> print(table(("layer", "weights", "reason"), rows, {1}))
    layer  weights  reason
    fc          64
    embed     1024  not a matrix
    """
    *names, last = head
    cells = [tuple(names), *(tuple(row[:-1]) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(names))]
    lines = []
    for row, text in zip(cells, [last, *(row[-1] for row in rows)], strict=True):
        left = "  ".join(
            cell.rjust(w) if i in right else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        wrapped = textwrap.wrap(text, max(20, _WIDTH - len(left) - 2)) or [""]
        lines.append(f"{left}  {wrapped[0]}".rstrip())
        lines += [" " * (len(left) + 2) + more for more in wrapped[1:]]
    return "\n".join(lines)


def shortened(name: str, width: int = 40) -> str:
    """A module path that is no wider than `width`, with its end kept, from a dot on if there is
    one.

    Examples
    --------
    >>> shortened("model.decoder.layers.31.mlp.down_proj", 28)
    '….layers.31.mlp.down_proj'
    """
    if len(name) <= width:
        return name
    end = name[1 - width :]
    return "…" + end[max(0, end.find(".")) :]
