"""The demo's picture: a block of weights beside its 4:8 and 4:8T masks, and what every method keeps
of each pattern.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nmsolve.api import solve

if TYPE_CHECKING:
    from nmsolve.demo import Row

#: What the picture says that it was drawn by.
SOFTWARE = "nmsolve demo"
#: Side of the square that is drawn, and of the blocks in it.
SIDE, M = 16, 8
N = M // 2
COLORS = {"exact": "#0b4f8a", "greedy": "#e08a1e", "cover": "#7fb3a6"}
INK, FAINT, WRONG = "#222222", "#777777", "#c8321e"


def draw(weights: NDArray[np.float32], rows: Sequence[Row]) -> bytes:
    """The picture as a PNG. weights : (out, in), of which the first 16 × 16 are shown. rows : the
    demo's table.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.7), dpi=150, facecolor="white")
    heading: dict[str, Any] = {"color": INK, "fontsize": 14, "fontweight": "bold", "ha": "left"}
    figure.text(0.02, 0.925, f"{SIDE} × {SIDE} weights and their optimal masks", **heading)
    figure.text(0.70, 0.925, "|W| kept, all layers", **heading)

    block = np.abs(weights[:SIDE, :SIDE])
    for left, pattern in zip((0.02, 0.235, 0.45), (None, f"{N}:{M}", f"{N}:{M}T"), strict=True):
        mask = np.ones(block.shape, bool) if pattern is None else solve(block, pattern).mask
        _draw_block(figure.add_axes((left, 0.155, 0.2, 0.596)), block, mask, pattern)
    _draw_bars(figure.add_axes((0.745, 0.085, 0.245, 0.79)), rows)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": SOFTWARE})
    return picture.getvalue()


def is_picture(beginning: bytes) -> bool:
    """Whether a file that begins like this is such a picture."""
    return (
        beginning.startswith(b"\x89PNG\r\n\x1a\n")
        and f"tEXtSoftware\0{SOFTWARE}".encode() in beginning
    )


def _draw_block(
    axes: Any, block: NDArray[np.float32], mask: NDArray[np.bool_], pattern: str | None
) -> None:
    """Kept weights in color; how many each column of an 8 × 8 block keeps stands above and below,
    in red where it is not 4.
    """
    kept = np.where(mask, block, np.nan)
    axes.set_facecolor("#f1f1f1")
    axes.pcolormesh(
        kept,
        cmap="YlGnBu",
        vmin=-0.2 * block.max(),
        vmax=block.max(),
        edgecolors="white",
        linewidth=1,
    )
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.tick_params(length=0, labelbottom=False, labelleft=False)
    for side in axes.spines.values():
        side.set_visible(False)
    for edge in range(0, SIDE + 1, M):
        axes.axhline(edge, color=INK, linewidth=1.2, clip_on=False)
        axes.axvline(edge, color=INK, linewidth=1.2, clip_on=False)
    if pattern is None:
        axes.set_title("|W|", color=INK, fontsize=13, pad=20)
        axes.set_xlabel("darker is larger", color=FAINT, fontsize=11, labelpad=14)
        return

    by_column = mask.reshape(-1, M, SIDE).sum(axis=1)
    for place, counts in ((-0.55, by_column[0]), (SIDE + 0.55, by_column[-1])):
        for column, count in enumerate(counts):
            color, weight = (FAINT, "normal") if count == N else (WRONG, "bold")
            axes.text(
                column + 0.5,
                place,
                str(count),
                color=color,
                fontweight=weight,
                fontsize=9,
                ha="center",
                va="center",
            )
    axes.set_title(
        f"{pattern} keeps {block[mask].sum() / block.sum():.1%}", color=INK, fontsize=13, pad=20
    )
    least, most = by_column.min(), by_column.max()
    columns = f"columns {least} to {most}" if least < most else f"columns {least}"
    axes.set_xlabel(f"kept of {M}: rows {N}, {columns}", color=FAINT, fontsize=11, labelpad=14)


def _draw_bars(axes: Any, rows: Sequence[Row]) -> None:
    patterns = list(dict.fromkeys(row.pattern for row in rows))
    methods = list(dict.fromkeys(row.method for row in rows))
    height = 0.8 / len(methods)
    for method in methods:
        kept = [100 * row.kept for row in rows if row.method == method]
        places = (
            np.arange(len(patterns)) + (methods.index(method) - (len(methods) - 1) / 2) * height
        )
        bars = axes.barh(places, kept, 0.9 * height, color=COLORS[method], label=method)
        axes.bar_label(
            bars, [f"{value:.2f} %" for value in kept], padding=4, fontsize=9.5, color=INK
        )
    axes.set_yticks(np.arange(len(patterns)), patterns, fontsize=12, color=INK)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xticks([0, 25, 50, 75], ["0", "25", "50", "75 %"], color=FAINT)
    axes.tick_params(length=0)
    axes.grid(axis="x", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.legend(loc="upper right", frameon=False, fontsize=11, borderaxespad=0)
