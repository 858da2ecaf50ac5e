"""The demo's picture: a block of weights beside its 4:8 and 4:8T masks, and what every method keeps
of each pattern.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsolve.api import solve
from nmsolve.demo_results import Row

#: The program that the picture names.
SOFTWARE = "nmsolve demo"
#: Side of the square that is drawn, and of the blocks in it.
SIDE, M = 16, 8
N = M // 2
COLORS = {"exact": "#0b4f8a", "greedy": "#e08a1e", "cover": "#7fb3a6"}
INK, FAINT, WRONG, PRUNED, GRID = "#222222", "#777777", "#c8321e", "#f1f1f1", "#dddddd"
#: Colors of weights from 0 to the largest: ColorBrewer's YlGnBu but for its palest two.
SHADES = np.array(
    [
        (226, 243, 186),
        (160, 218, 184),
        (89, 191, 192),
        (32, 146, 192),
        (34, 93, 167),
        (37, 51, 148),
        (8, 29, 88),
    ]
)
#: Pixels: of the picture, of a weight, of the top of the squares, of the bars' field.
WIDTH, HEIGHT, CELL, TOP = 2100, 705, 26, 176
BARS = (1565, 90, 2075, 640)


class _Page:
    """A picture and how text is set on it: centred at a point, or beginning there."""

    def __init__(self) -> None:
        from PIL import Image, ImageDraw

        self.image = Image.new("RGB", (WIDTH, HEIGHT), "white")
        self.draw = ImageDraw.Draw(self.image)

    def text(
        self, place: tuple[float, float], text: str, size: float, color: str = INK, **options: Any
    ) -> None:
        from PIL import ImageFont

        bold = options.pop("bold", False)
        self.draw.text(
            place,
            text,
            fill=color,
            font=ImageFont.load_default(size),
            anchor=options.pop("anchor", "mm"),
            stroke_width=0.5 if bold else 0,
        )

    def png(self) -> bytes:
        from PIL import PngImagePlugin

        about = PngImagePlugin.PngInfo()
        about.add_text("Software", SOFTWARE)
        picture = io.BytesIO()
        self.image.save(picture, format="png", pnginfo=about)
        return picture.getvalue()


def draw(weights: NDArray[np.float32], rows: Sequence[Row]) -> bytes:
    """Return the picture as a PNG.

    Parameters
    ----------
    weights : (out, in) float32 array
        Of which the first 16 × 16 are shown.
    rows : sequence of Row
        The demo's table.
    """
    page = _Page()
    page.text(
        (42, 42),
        f"{SIDE} by {SIDE} weights and their optimal masks",
        31,
        bold=True,
        anchor="lm",
    )
    page.text((1470, 42), "|W| kept, all layers", 31, bold=True, anchor="lm")
    block = np.abs(weights[:SIDE, :SIDE])
    for left, pattern in zip((42, 494, 945), (None, f"{N}:{M}", f"{N}:{M}T"), strict=True):
        mask = np.ones(block.shape, bool) if pattern is None else solve(block, pattern).mask
        _draw_block(page, left, block, mask, pattern)
    _draw_bars(page, rows)
    return page.png()


def is_picture(beginning: bytes) -> bool:
    """Return whether a file that begins like this is such a picture."""
    return (
        beginning.startswith(b"\x89PNG\r\n\x1a\n")
        and f"tEXtSoftware\0{SOFTWARE}".encode() in beginning
    )


def _shade(share: float) -> tuple[int, ...]:
    """The color of a weight that is this share of the largest."""
    place = share * (len(SHADES) - 1)
    below = min(int(place), len(SHADES) - 2)
    mixed = SHADES[below] + (place - below) * (SHADES[below + 1] - SHADES[below])
    return tuple(int(value) for value in mixed.round())


def _draw_block(
    page: _Page, left: int, block: NDArray[np.float32], mask: NDArray[np.bool_], pattern: str | None
) -> None:
    """Kept weights in color; how many each column of an 8 × 8 block keeps stands above and below,
    in red where it is not 4.
    """
    side = SIDE * CELL
    middle, bottom = left + side / 2, TOP + side
    for (i, j), value in np.ndenumerate(block):
        x, y = left + j * CELL, TOP + i * CELL
        color = _shade(float(value / block.max())) if mask[i, j] else PRUNED
        page.draw.rectangle((x + 1, y + 1, x + CELL - 1, y + CELL - 1), fill=color)
    for edge in range(0, side + 1, M * CELL):
        page.draw.line((left, TOP + edge, left + side, TOP + edge), fill=INK, width=2)
        page.draw.line((left + edge, TOP, left + edge, bottom), fill=INK, width=2)
    if pattern is None:
        page.text((middle, TOP - 54), "|W|", 28)
        page.text((middle, bottom + 46), "darker is larger", 23, FAINT)
        return

    by_column = mask.reshape(-1, M, SIDE).sum(axis=1)
    for y, counts in ((TOP - 16, by_column[0]), (bottom + 16, by_column[-1])):
        for column, count in enumerate(counts):
            right = count == N
            page.text(
                (left + (column + 0.5) * CELL, y),
                str(count),
                20,
                FAINT if right else WRONG,
                bold=not right,
            )
    kept = block[mask].sum() / block.sum()
    page.text((middle, TOP - 54), f"{pattern} keeps {kept:.1%}", 28)
    least, most = by_column.min(), by_column.max()
    columns = f"columns {least} to {most}" if least < most else f"columns {least}"
    page.text((middle, bottom + 46), f"kept of {M}: rows {N}, {columns}", 23, FAINT)


def _draw_bars(page: _Page, rows: Sequence[Row]) -> None:
    """Draw the share of |W| that each method keeps by each pattern, in percent."""
    left, top, right, bottom = BARS
    patterns = list(dict.fromkeys(row.pattern for row in rows))
    methods = list(dict.fromkeys(row.method for row in rows))
    field = (bottom - top) / len(patterns)
    height = 0.8 * field / len(methods)
    width = right - left
    for percent in (25, 50, 75):
        x = left + width * percent / 100
        page.draw.line((x, top, x, bottom), fill=GRID, width=2)
    for percent in (0, 25, 50, 75):
        name = f"{percent} %" if percent == 75 else str(percent)
        page.text((left + width * percent / 100, bottom + 22), name, 21, FAINT)
    page.draw.line((left, top, left, bottom), fill=INK, width=2)
    for i, pattern in enumerate(patterns):
        page.text((left - 16, top + (i + 0.5) * field), pattern, 26, anchor="rm")
        for j, method in enumerate(methods):
            (kept,) = (r.kept for r in rows if (r.pattern, r.method) == (pattern, method))
            y = top + i * field + 0.1 * field + j * height
            x = left + width * kept
            page.draw.rectangle(
                (left + 1, y + 0.05 * height, x, y + 0.95 * height), fill=COLORS[method]
            )
            page.text((x + 8, y + height / 2), f"{100 * kept:.2f} %", 20, anchor="lm")
    for j, method in enumerate(methods):
        y = top + 20 + 36 * j
        page.draw.rectangle((right - 140, y - 9, right - 96, y + 9), fill=COLORS[method])
        page.text((right - 82, y), method, 24, anchor="lm")
