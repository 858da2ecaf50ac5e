"""Figures of a task, as PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.ticker import LogFormatter, MaxNLocator

from examples.pruning.conversion import METHODS
from examples.pruning.schemes import STAGES, Unit
from examples.pruning.tables import Result, allocated, budget_title, converted
from examples.study.outcome import Outcome
from examples.study.plots import plt, save


def conversion(outcome: Outcome, path: Path) -> bool:
    """Losses by pattern and method, above the model that was converted. False if there is nothing
    to draw.
    """
    conversions = converted(outcome)
    if not conversions:
        return False
    figure, axis = plt.subplots(figsize=(8, 3.4))
    shown = [method for method in METHODS if method != "masked"]
    width = 0.8 / len(shown)
    for place, method in enumerate(shown):
        spreads = [outcome.spread(Result(one.name(method)), "loss") for one in conversions]
        axis.errorbar(
            np.arange(len(conversions)) + width * (place - (len(shown) - 1) / 2),
            [spread.mean for spread in spreads],
            [spread.deviation for spread in spreads],
            fmt="o",
            markersize=4,
            elinewidth=0.7,
            label=method,
        )
    for place, one in enumerate(conversions):
        start = outcome.spread(Result(one.start), "loss").mean
        axis.hlines(
            start,
            place - 0.45,
            place + 0.45,
            color="0.2",
            linewidth=1,
            linestyle=":",
            label=None if place else "converted",
        )
    axis.set_xticks(
        range(len(conversions)), [one.pattern or "matching" for one in conversions], fontsize=8
    )
    axis.set_yscale("log")
    for ticks in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        ticks(LogFormatter(minor_thresholds=(1, 0.4)))
    axis.set_ylabel("test loss", fontsize=8)
    axis.tick_params(labelsize=7, which="both")
    axis.legend(fontsize=6.5, ncols=3)
    save(figure, path)
    return True


def allocation(outcome: Outcome, budgets: list[tuple[Unit, int]], path: Path) -> bool:
    """Losses of every way to a plan, a panel a budget and stage."""
    if not budgets:
        return False
    figure, axes = plt.subplots(
        len(budgets),
        len(STAGES),
        figsize=(9, 2.1 * len(budgets) + 0.6),
        squeeze=False,
        sharey="row",
    )
    for row, (unit, kept) in enumerate(budgets):
        schemes = allocated(outcome, unit, kept)
        for axis, stage in zip(axes[row], STAGES, strict=True):
            spreads = [outcome.spread(Result(scheme.name(stage)), "loss") for scheme in schemes]
            places = np.arange(len(schemes))[::-1]
            for place, scheme, spread in zip(places, schemes, spreads, strict=True):
                colour = (
                    "0.3"
                    if scheme.way == "uniform"
                    else "tab:orange"
                    if "domino" in scheme.way
                    else "tab:blue"
                )
                axis.errorbar(
                    spread.mean,
                    place,
                    xerr=spread.deviation,
                    fmt="o",
                    color=colour,
                    markersize=4,
                    elinewidth=0.7,
                )
            axis.set_yticks(places, [scheme.way for scheme in schemes], fontsize=7)
            axis.set_title(f"{budget_title(unit, kept)}: {stage}", fontsize=6.5)
            axis.tick_params(labelsize=7)
            axis.xaxis.set_major_locator(MaxNLocator(4))
    figure.supxlabel("test loss", fontsize=8)
    save(figure, path)
    return True
