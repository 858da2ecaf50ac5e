"""A run as Markdown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.training.refresh import QUOTED

#: Heads, and what stands under them for one result.
Columns = dict[str, Callable[[dict[str, Any]], str]]


def markdown(run: dict[str, Any]) -> str:
    """Targets, and the tables behind them."""
    parts = [_heading(run), "## Targets\n\n" + _targets(run["targets"])]
    if run["refresh"]:
        parts.append(_refresh(run))
    if run["hooks"]:
        parts.append(_hooks(run))
    if run["refused"]:
        parts.append(f"## LBC's memory\n\nRefused, with the figure: {run['refused']}\n")
    return "\n".join(parts)


def _heading(run: dict[str, Any]) -> str:
    machine, settings = run["machine"], run["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    if "cpu" in machine:
        where = (
            f"{machine['cpu']}, {machine['cpus']} CPUs, {machine['memory_gib']} GiB, "
            f"{machine['system']}; SIMD: "
        )
        where += (
            f"{' '.join(machine['simd'])}. Load average before the run {machine['load_before']}"
        )
    else:
        where = f"{machine['device']}, compute capability {machine['capability']}"
    quick = " This was a --quick run: a small model, few steps." if settings["quick"] else ""
    return f"""# Training benchmarks

{where}. Versions: {versions}. {machine["date"]}, {run["seconds"]:.0f} s.{quick}

{settings["layers"]} × nn.TransformerEncoderLayer({settings["width"]}, {settings["heads"]} heads,
feed-forward 4 ×, norm_first, no dropout), {settings["batch"]} × {settings["length"]} =
{settings["tokens"]} tokens a step, {settings["dtype"]}, torch on {run["threads"]} threads. A step
is forward, backward and optimizer step, AdamW as torch chooses to run it unless a row says
otherwise. Cases take turns of {settings["steps"]} steps, {settings["rounds"]} rounds, in reverse
order every other time; a turn counts by its median step, and differences are medians over rounds,
with quartiles. Hooks are timed where they run, inside optimizer.step().
"""


def _targets(rows: list[dict[str, Any]]) -> str:
    verdicts = {True: "pass", False: "**miss**", None: ""}
    lines = []
    for row in rows:
        target = "" if row["target"] is None else f"< {row['target']:g} {row['unit']}"
        lines.append(
            [
                row["what"],
                f"{_short(row['measured'])} {row['unit']}",
                target,
                verdicts[row["passed"]],
                row["note"],
            ]
        )
    return _table(["what", "measured", "target", "", "note"], "lrrll", lines)


def _refresh(run: dict[str, Any]) -> str:
    columns: Columns = {
        "pattern": lambda one: one["pattern"],
        "solver": lambda one: one["solver"],
        "dense step, ms": lambda one: _short(one["dense_ms"]),
        "masked forward and backward": lambda one: _spread(one["masked"]),
        "refresh, ms": lambda one: _short(one["refresh_ms"]),
        "Mw/s": lambda one: _short(one["weights"] / one["refresh_ms"] / 1e3),
        f"every {run['settings']['every']} steps": lambda one: f"{_short(one['each_40'])} %",
        "every step": lambda one: f"{_short(one['each_step'])} %",
        "by least times": lambda one: f"{_short(one['least'])} %",
        "every step, by whole steps": lambda one: _spread(one["whole"]),
    }
    first = run["refresh"][0]
    quoted = ", ".join(f"{name} {share:g} %" for name, share in QUOTED.items())
    return f"""## A refresh of all masks

{first["layers"]} weights of {first["weights"]:,} entries in all, attention's in_proj included;
nmt.STE. Shares are of the dense step. "Refresh" is what it adds to the hooks (solving, exchanging
masks, counting what changed), "by whole steps" what it adds to whole steps, "masked forward and
backward" what a masked step without a refresh takes more than a dense one. "By least times": the
least of the rounds instead of their medians, which a machine that others use disturbs less.

{_results(run["refresh"], columns)} Quoted, not measured here: the transposable-masks paper reports,
for ResNet-50 on its own hardware, 4:8T masks refreshed every 40 steps, by its own solvers:
{quoted}.
"""


def _hooks(run: dict[str, Any]) -> str:
    columns: Columns = {
        "method": lambda one: one["name"],
        "pattern": lambda one: one["pattern"],
        "step, ms": lambda one: _short(one["step_ms"]),
        "optimizer.step(), ms": lambda one: _short(one["optimizer_ms"]),
        "hooks, ms": lambda one: _short(one["hooks_ms"]),
        "of the step": lambda one: f"{_short(one['share'])} %",
        "by least times": lambda one: f"{_short(one['least'])} %",
        "added to optimizer.step()": lambda one: _spread(one["optimizer"]),
        "added to the step": lambda one: _spread(one["whole"]),
        "masked forward and backward, added to a dense step": lambda one: _spread(one["masked"]),
    }
    return f"""## Hooks in steps without a refresh

Steps with masks but without the method's hooks, steps with them, and steps of the dense model take
turns.

{_results(run["hooks"], columns)}"""


def _results(found: list[dict[str, Any]], columns: Columns) -> str:
    """A table with two columns of text before those of numbers."""
    lines = [[show(one) for show in columns.values()] for one in found]
    return _table(list(columns), "ll" + "r" * (len(columns) - 2), lines)


def _spread(spread: dict[str, float]) -> str:
    return f"{spread['median']:+.1f} % ({spread['low']:+.1f} … {spread['high']:+.1f})"


def _table(head: list[str], alignment: str, rows: list[list[str]]) -> str:
    ruler = ["---:" if side == "r" else "---" for side in alignment]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ruler, *rows]) + "\n"


def _short(value: float) -> str:
    """Three significant digits, without an exponent."""
    return (
        f"{value:,.0f}"
        if abs(value) >= 100
        else f"{value:.3g}"
        if abs(value) >= 1e-3
        else f"{value:.4f}"
    )
