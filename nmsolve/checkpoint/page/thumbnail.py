"""The corner of a mask as an inline SVG: small in its row, large on request."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nmsolve.checkpoint.page.markup import Html, element, joined
from nmsolve.checkpoint.page.values import sized, unknown
from nmsolve.checkpoint.summary import TensorReport
from nmsolve.pattern import Pattern

#: Pixels of the longer side: a whole number per cell for 32, 16, 8 and 4 cells, since others would
#: blur or beat.
_SIDE = 64


def strokes(mask: NDArray[np.bool_]) -> str:
    """The path of a mask's kept entries: row i is drawn along y = i, one stroke of width 1 per run.

    A run takes a third of the characters that its rectangle would.

    Examples
    --------
    >>> strokes(np.array([[1, 1, 0, 1], [0, 0, 1, 0]], dtype=bool))
    'M0 0h2m1 0h1M2 1h1'
    """
    path = []
    for i, row in enumerate(mask):
        edges = np.flatnonzero(
            np.diff(np.concatenate(([False], row, [False])).astype(np.int8))
        ).tolist()
        pen = None
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            path.append(f"M{start} {i}" if pen is None else f"m{start - pen} 0")
            path.append(f"h{stop - start}")
            pen = stop
    return "".join(path)


def _borders(pattern: Pattern, rows: int, columns: int) -> str:
    """The path of the lines between groups, or between blocks where the pattern is transposable."""
    path = [f"M{x} -.5v{rows}" for x in range(pattern.m, columns, pattern.m)]
    if pattern.transposable:
        path += [f"M0 {y - 0.5:g}h{columns}" for y in range(pattern.m, rows, pattern.m)]
    return "".join(path)


def _caption(tensor: TensorReport, rows: int, columns: int) -> str:
    """A sentence on which entries are shown: a tensor with more axes than two shows one matrix, one
    with groups along columns is turned.
    """
    matrix = len(tensor.shape) == 2
    turned = (
        tensor.axis is not None and tensor.axis % max(1, len(tensor.shape)) != len(tensor.shape) - 1
    )
    shape = tensor.shape[::-1] if turned else tensor.shape
    part = (
        f"All {rows} × {columns} entries"
        if matrix and shape == (rows, columns)
        else f"The top-left {rows} × {columns}"
    )
    whole = sized(tensor.shape) if matrix else f"the first matrix of {sized(tensor.shape)}"
    return f"{part} of {whole}{', with groups along rows' if turned else ''}; filled where kept"


def thumbnail(number: int, tensor: TensorReport, corner: NDArray[np.bool_] | None) -> Html:
    """A button with the mask's corner, its groups along rows, and the popover that it opens; no
    script is needed for either.
    """
    if corner is None or corner.ndim != 2 or not corner.size:
        return unknown("mask")
    rows, columns = corner.shape
    scale = max(1, _SIDE // max(rows, columns))
    # strokes lie along whole numbers, so cells begin half a unit above
    box = f"0 -.5 {columns} {rows}"
    path = element("path", id=f"m{number}", d=strokes(corner))
    small = element(
        "svg",
        path,
        class_="cells",
        viewBox=box,
        width=scale * columns,
        height=scale * rows,
        aria_hidden="true",
    )
    label = f"Enlarge the mask of {tensor.name}"
    button = element(
        "button", small, type="button", class_="thumb", popovertarget=f"z{number}", aria_label=label
    )
    lines = "" if tensor.pattern is None else _borders(tensor.pattern, rows, columns)
    large = element(
        "svg",
        element("use", href=f"#m{number}"),
        element("path", class_="borders", d=lines) if lines else "",
        class_="cells",
        viewBox=box,
        role="img",
        aria_label=f"{rows} × {columns} entries, {int(corner.sum())} of them kept",
    )
    units = "blocks" if tensor.pattern and tensor.pattern.transposable else "groups"
    text = (
        f"{tensor.pattern}. "
        f"{_caption(tensor, rows, columns)}{f', lines between {units}' if lines else ''}."
    )
    popover = element(
        "div",
        element("p", element("bdi", tensor.name), class_="name"),
        large,
        element("p", text),
        element(
            "button", "Close", type="button", popovertarget=f"z{number}", popovertargetaction="hide"
        ),
        id=f"z{number}",
        class_="zoom",
        popover="auto",
    )
    return joined(button, popover)
