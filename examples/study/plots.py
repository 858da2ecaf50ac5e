"""Figures of a task, as PNG."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from examples.study.configurations import DENSE, Comparisons, Configuration
from examples.study.diversity import bits
from examples.study.outcome import Outcome

COLOURS = {
    "Dense": "0.3",
    "Fixed": "tab:brown",
    "STE": "tab:orange",
    "SR-STE": "tab:blue",
    "LBC": "tab:green",
}
METHODS = list(COLOURS)
MARKERS = ["o", "s", "D", "v", "^", "<", ">"]
#: How far apart points of equal FLOPs are drawn.
GAP = 0.009
DPI = 90


def divergence(outcome: Outcome, comparisons: Comparisons, path: Path) -> bool:
    """SAD over training, STE against SR-STE: means over seeds, with one standard deviation. False
    if there is nothing to draw.
    """
    pairs = {
        p: [Configuration(m, p) for m in ("STE", "SR-STE") if m in methods]
        for p, methods in comparisons.methods.items()
    }
    patterns = [pattern for pattern, ones in pairs.items() if len(ones) == 2 and outcome.has(*ones)]
    if not patterns:
        return False
    columns = min(4, len(patterns))
    rows = -(-len(patterns) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(2.7 * columns, 2.2 * rows), sharex=True, squeeze=False
    )
    for axis in axes.flat[len(patterns) :]:
        axis.set_visible(False)
    for axis, pattern in zip(axes.flat, patterns, strict=False):
        for one in pairs[pattern]:
            runs = [outcome.runs[one.name][seed] for seed in outcome.seeds(one)]
            curves = 100 * np.array([run["sad"] for run in runs])
            mean, deviation = (
                curves.mean(0),
                curves.std(0, ddof=1) if len(curves) > 1 else np.zeros(curves.shape[1]),
            )
            axis.plot(runs[0]["sad_steps"], mean, color=COLOURS[one.method], label=one.method)
            low = np.maximum(mean - deviation, 0)
            axis.fill_between(
                runs[0]["sad_steps"],
                low,
                mean + deviation,
                color=COLOURS[one.method],
                alpha=0.25,
                linewidth=0,
            )
        axis.set_title(pattern, fontsize=9)
        axis.tick_params(labelsize=7)
    axes[0, 0].legend(fontsize=7)
    figure.supxlabel("step", fontsize=8)
    figure.supylabel("SAD a window, % of weights", fontsize=8)
    save(figure, path)
    return True


def cost(outcome: Outcome, comparisons: Comparisons, path: Path) -> bool:
    """The measure against training FLOPs, as in LBC's Figure 3. A colour a method, a marker a
    pattern; equal FLOPs side by side.
    """
    if not outcome.has(DENSE):
        return False
    shown = [
        DENSE,
        *(
            Configuration(m, pattern)
            for pattern, methods in comparisons.methods.items()
            for m in methods
        ),
    ]
    columns: dict[float, list[Configuration]] = {}
    for one in filter(outcome.has, shown):
        columns.setdefault(round(outcome.spread(one, "training_flops").mean, 2), []).append(one)
    figure, axis = plt.subplots(figsize=(7, 3.6))
    for flops, ones in columns.items():
        for place, one in enumerate(sorted(ones, key=lambda one: METHODS.index(one.method))):
            x, y = flops + GAP * (place - (len(ones) - 1) / 2), _measure(outcome, one)
            style = {
                "color": COLOURS[one.method],
                "marker": _marker(one, comparisons),
                "linestyle": "",
            }
            axis.errorbar(x, y[0], y[1], markersize=5, elinewidth=0.8, **style)
    methods = [
        Line2D([], [], color=COLOURS[m], marker="o", markersize=4, linestyle="", label=m)
        for m in METHODS
    ]
    patterns = [
        Line2D([], [], color="0.5", marker=mark, markersize=5, linestyle="", label=pattern)
        for pattern, mark in zip(comparisons.methods, MARKERS, strict=False)
    ]
    axis.legend(
        handles=[*methods, *patterns], fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5)
    )
    axis.set_xlabel("training FLOPs, relative to dense", fontsize=8)
    axis.set_ylabel(outcome.heading, fontsize=8)
    axis.tick_params(labelsize=7)
    save(figure, path)
    return True


def _marker(one: Configuration, comparisons: Comparisons) -> str:
    return "*" if one.pattern is None else MARKERS[list(comparisons.methods).index(one.pattern)]


def density(outcome: Outcome, comparisons: Comparisons, path: Path) -> bool:
    """The measure against bits per weight, counted exactly and by the paper's formula, a row a
    density.
    """
    rows = {
        share: [p for p in ps if outcome.has(Configuration("SR-STE", p))]
        for share, ps in comparisons.density.items()
    }
    rows = {share: patterns for share, patterns in rows.items() if len(patterns) >= 3}
    if not rows:
        return False
    figure, axes = plt.subplots(
        len(rows), 2, figsize=(7, 2.3 * len(rows)), squeeze=False, sharey="row"
    )
    for row, (share, patterns) in enumerate(rows.items()):
        for axis, kind in zip(axes[row], ("exact", "paper"), strict=True):
            _scatter(axis, outcome, patterns, kind)
            ones = [Configuration("SR-STE", pattern) for pattern in patterns]
            rank = outcome.rank(ones, [getattr(bits(pattern), kind) for pattern in patterns])
            how = "exact counts" if kind == "exact" else "the paper's formula"
            axis.set_title(
                f"density {share}, {how}: ρ = {rank.rho:+.2f}, p = {rank.p:.2g}", fontsize=7
            )
    figure.supxlabel("log2 of the number of masks, bits a weight", fontsize=8)
    figure.supylabel(outcome.heading, fontsize=8)
    save(figure, path)
    return True


def _scatter(axis: Axes, outcome: Outcome, patterns: list[str], kind: str) -> None:
    for pattern in patterns:
        x, y = getattr(bits(pattern), kind), _measure(outcome, Configuration("SR-STE", pattern))
        transposable = pattern.endswith("T")
        colour, marker = ("tab:purple", "^") if transposable else ("tab:blue", "o")
        axis.errorbar(
            x, y[0], y[1], marker=marker, markersize=4, color=colour, linestyle="", elinewidth=0.8
        )
        axis.annotate(pattern, (x, y[0]), fontsize=6, xytext=(3, 3), textcoords="offset points")
    axis.margins(x=0.12)  # room for the names
    axis.tick_params(labelsize=7)


def _measure(outcome: Outcome, one: Configuration) -> tuple[float, float]:
    spread = outcome.spread(one, outcome.task.measure)
    factor = 100.0 if outcome.task.measure == "accuracy" else 1.0
    return factor * spread.mean, factor * spread.deviation


def save(figure: plt.Figure, path: Path) -> None:
    figure.tight_layout()
    # Without the version of matplotlib in it, the file changes only when the picture does.
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    plt.close(figure)
