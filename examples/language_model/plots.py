"""Figures of the results, as PNG."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from examples.language_model.outcome import Outcome, Range
from examples.language_model.rows import METHODS, PATTERNS, Row
from examples.study.plots import plt, save

#: Okabe and Ito's, which the colour-blind can tell apart.
COLOURS = dict(
    zip(
        METHODS[1:],
        ("#999999", "#56B4E9", "#000000", "#F0E442", "#E69F00", "#0072B2", "#009E73"),
        strict=True,
    )
)
#: Filled where they are row-wise.
MARKERS = dict(zip(PATTERNS, "osDos^v", strict=True))
GAP = 0.15


def rises(outcome: Outcome, path: Path) -> None:
    """The rise of log-perplexity on held-out text by pattern and method."""
    patterns = [p for p in PATTERNS if any(row.pattern == p for row in outcome.runs)]
    figure, axis = plt.subplots(figsize=(8, 3.4))
    for index, pattern in enumerate(patterns):
        shown = [row for row in outcome.runs if row.pattern == pattern]
        for place, row in enumerate(shown):
            rise = outcome.rise(row, "held_out")
            axis.errorbar(
                index + GAP * (place - (len(shown) - 1) / 2),
                rise.mean,
                _bars(rise),
                fmt="o",
                color=COLOURS[row.method],
                markersize=4.5,
                elinewidth=1,
            )
    rival = Row("SparseGPT", "2:4")
    if rival in outcome.runs:
        rise = outcome.rise(rival, "held_out").mean
        axis.axhline(rise, color=COLOURS["SparseGPT"], linewidth=0.8, linestyle=":", zorder=0)
    axis.set_xticks(range(len(patterns)), patterns)
    axis.tick_params(axis="x", length=0)
    _frame(axis)
    axis.legend(
        handles=_methods(outcome),
        fontsize=7.5,
        frameon=False,
        loc="lower center",
        bbox_to_anchor=(0.5, 1),
        ncols=4,
    )
    save(figure, path)


def costs(outcome: Outcome, path: Path) -> None:
    """The same rise against CPU time: a colour a method, a marker a pattern. Without magnitude,
    which takes next to none.
    """
    figure, axis = plt.subplots(figsize=(8, 3.8))
    shown = [row for row in outcome.runs if row.calibrated]
    for row in shown:
        time, rise = Range.of(outcome.values(row, "cpu_seconds")), outcome.rise(row, "held_out")
        axis.errorbar(
            time.mean,
            rise.mean,
            _bars(rise),
            _bars(time),
            fmt=MARKERS[row.pattern],
            color=COLOURS[row.method],
            markerfacecolor="white" if row.pattern.endswith("T") else None,
            markersize=5.5,
            elinewidth=0.8,
        )
    axis.set_xlim(left=0)
    axis.set_xlabel("CPU seconds", fontsize=8)
    _frame(axis)
    axis.grid(axis="x", color="0.9", linewidth=0.6)
    methods = [handle for handle in _methods(outcome) if handle.get_label() != "magnitude"]
    patterns = [
        _handle(MARKERS[pattern], "0.3", pattern, "white" if pattern.endswith("T") else None)
        for pattern in PATTERNS
        if any(row.pattern == pattern for row in shown)
    ]
    axis.legend(
        handles=methods + patterns,
        fontsize=7.5,
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1, 0.5),
    )
    save(figure, path)


def _frame(axis: Axes) -> None:
    """Rises on a logarithmic axis, with light lines."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_ylabel("rise of log-perplexity, held out", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(axis="y", color="0.9", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _methods(outcome: Outcome) -> list[Line2D]:
    there = {row.method for row in outcome.runs}
    return [_handle("o", colour, name) for name, colour in COLOURS.items() if name in there]


def _handle(marker: str, colour: str, label: str, inside: str | None = None) -> Line2D:
    return Line2D(
        [], [], linestyle="", marker=marker, color=colour, label=label, markerfacecolor=inside
    )


def _bars(of: Range) -> list[list[float]]:
    """From the mean to the least and to the greatest; the mean may be rounded beyond them."""
    return [[max(of.mean - of.least, 0.0)], [max(of.greatest - of.mean, 0.0)]]
