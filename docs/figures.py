"""Draw the README's figures, docs/speed.png and docs/loss.png, from a saved run of `python -m
benchmarks`.

    python docs/figures.py [RUN.json]

Without an argument the run in benchmarks/results that was measured last.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS.parent / "benchmarks" / "results"

#: Method → what it is called beside its line, colour (Okabe and Ito's, which the colour-blind can
#: tell apart).
SPEED = {
    "nmsolve exact": ("nmsolve, exact", "#0072B2"),
    "argmax over 90 patterns": ("argmax over 90 patterns, exact", "#000000"),
    "keep-greedy, argsort in numba": ("keep-greedy", "#E69F00"),
    "entropic transport + rounding": ("entropic transport", "#D55E00"),
    "OR-tools min-cost flow": ("OR-tools, exact", "#009E73"),
    "networkx network simplex": ("networkx, exact", "#CC79A7"),
    "SciPy HiGHS LP": ("HiGHS LP, exact", "#777777"),
}
LOSS = {
    "cover, the rule alone": ("cover, rule alone (≤ n)", "#56B4E9"),
    "keep-greedy, argsort in numba": ("keep-greedy, rule alone (≤ n)", "#E69F00"),
    "nmsolve greedy": ("nmsolve greedy", "#A66F00"),
    "nmsolve cover": ("nmsolve cover", "#0072B2"),
    "entropic transport + rounding": ("entropic transport", "#D55E00"),
}
#: Least distance between two labels, as a factor on the logarithmic axis.
APART = {"speed": 1.75, "loss": 1.42}


def write(path: Path, folder: Path) -> None:
    """Read a run, write both figures."""
    run = json.loads(path.read_text(encoding="utf-8"))
    plt.rcParams |= {
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }

    figure, axes = frame(
        run,
        "Speed: million weights a second",
        "Finding transposable n:m masks, N(0, 1) weights, one thread",
    )
    draw(axes, run, SPEED, "rate", 1.0, APART["speed"])
    figure.savefig(folder / "speed.png", dpi=160)

    figure, axes = frame(
        run, "Kept |W| below the optimum, %", "What heuristics lose; the exact solver loses nothing"
    )
    draw(axes, run, LOSS, "loss", 100.0, APART["loss"])
    figure.savefig(folder / "loss.png", dpi=160)
    print("drawn from", path.name)


def newest() -> Path:
    """The saved run of the core's benchmark with the latest date; those of training and of GPUs lie
    beside it.
    """
    runs = {path: json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("*.json")}
    dates = {path: run["machine"]["date"] for path, run in runs.items() if "families" in run}
    if not dates:
        sys.exit(f"no run in {RESULTS}: make one with `make bench`")
    return max(dates, key=lambda path: dates[path])


def frame(run: dict[str, Any], label: str, title: str) -> tuple[plt.Figure, Axes]:
    """An empty figure: block size across, a logarithmic scale up, room for labels at the right."""
    figure, axes = plt.subplots(figsize=(7.4, 4.2), facecolor="white")
    figure.subplots_adjust(left=0.09, right=0.72, top=0.9, bottom=0.18)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    patterns = list(run["families"])
    axes.set_xticks([block_size(pattern) for pattern in patterns], patterns)
    axes.minorticks_off()
    axes.set_xlabel("Pattern (block size m doubles from left to right)")
    axes.set_ylabel(label)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    machine = run["machine"]
    source = (
        f"{machine['cpu']}, {machine['cpus']} CPUs, {machine['date'][:10]}; every result "
        "verified. Made by make bench."
    )
    figure.text(0.09, 0.02, source, fontsize=7.5, color="#555555")
    return figure, axes


def draw(
    axes: Axes,
    run: dict[str, Any],
    style: dict[str, tuple[str, str]],
    key: str,
    factor: float,
    apart: float,
) -> None:
    """One line a method, labelled at its right end instead of in a legend."""
    ends = {}
    for method, (_, colour) in style.items():
        found = [
            (block_size(one["pattern"]), factor * one[key])
            for one in run["methods"]
            if one["method"] == method
        ]
        sizes, values = zip(*found, strict=True)
        heavy = method == "nmsolve exact"
        axes.plot(
            sizes, values, marker="o", markersize=5, color=colour, linewidth=2.6 if heavy else 1.6
        )
        ends[method] = (sizes[-1], values[-1])
    largest = max(size for size, _ in ends.values())
    heights = spread({method: y for method, (x, y) in ends.items() if x == largest}, apart)
    for method, (x, y) in ends.items():
        text, colour = style[method]
        place = {
            "fontsize": 9,
            "color": colour,
            "va": "center",
            "textcoords": "offset points",
            "xytext": (9, 0),
        }
        axes.annotate(text, (x, heights.get(method, y)), annotation_clip=False, **place)


def spread(heights: dict[str, float], apart: float) -> dict[str, float]:
    """Heights of labels, in the same order, moved up where two are closer than a factor of
    `apart`.
    """
    placed: dict[str, float] = {}
    floor = 0.0
    for method, height in sorted(heights.items(), key=lambda item: item[1]):
        placed[method] = max(height, floor)
        floor = placed[method] * apart
    return placed


def block_size(pattern: str) -> int:
    """m of n:mT."""
    return int(pattern.removesuffix("T").split(":")[1])


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else newest(), DOCS)
