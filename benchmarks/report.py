"""A run as JSON, and its tables as Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.machine import slug

RESULTS = Path(__file__).parent / "results"


def save(run: dict[str, Any], folder: Path) -> list[Path]:
    """<hardware>-<versions>.json and .md in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    name = slug(run["machine"])
    texts = {".json": json.dumps(run, indent=1, ensure_ascii=False) + "\n", ".md": markdown(run)}
    paths = [folder / f"{name}{suffix}" for suffix in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        path.write_text(text, encoding="utf-8")
    return paths


def markdown(run: dict[str, Any]) -> str:
    """Three tables and what they were measured on."""
    return "\n".join([_heading(run), _performance(run), _families(run), _methods(run)])


def _heading(run: dict[str, Any]) -> str:
    machine = run["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    quick = (
        " This was a --quick run: small matrices, few repetitions."
        if run["settings"]["quick"]
        else ""
    )
    return f"""# Benchmarks

{machine["cpu"]}, {machine["cpus"]} CPUs, {machine["memory_gib"]} GiB, {machine["system"]}; SIMD:
{" ".join(machine["simd"])}. Versions: {versions}. {machine["date"]}, {run["seconds"]:.0f} s, load
average before the run {machine["load_before"]}.{quick}

One thread unless a row says otherwise. Mw/s = million weights a second, at the median of
interleaved repetitions. Every result was verified outside the timer: masks against the pattern,
objectives and bounds recomputed, repetitions equal bit for bit.
"""


def _performance(run: dict[str, Any]) -> str:
    side = run["settings"]["side"]
    rows = []
    for row in run["performance"]:
        target = (
            ""
            if row["target"] is None
            else f"{'≥' if row['at_least'] else '<'} {_short(row['target'])} {row['unit']}"
        )
        verdict = {True: "pass", False: "**miss**", None: ""}[row["passed"]]
        rates = ", ".join(f"{name} {_short(rate)}" for name, rate in row["rates"].items())
        detail = "; ".join(filter(None, [row["note"], rates and f"Mw/s: {rates}"]))
        rows.append(
            [row["what"], f"{_short(row['measured'])} {row['unit']}", target, verdict, detail]
        )
    return f"## Performance, {side} × {side}\n\n" + _table(
        ["what", "measured", "target", "", "detail"], "lrrll", rows
    )


def _families(run: dict[str, Any]) -> str:
    families, side = run["families"], run["settings"]["family_side"]
    names = next(iter(families.values()))
    rows = [[name, *(_short(rates[name]) for rates in families.values())] for name in names]
    title = (
        f"## Exact solver by score family, Mw/s, {side} × {side} float32 "
        "(`benchmarks/instances.py`)\n\n"
    )
    return title + _table(["family", *families], "l" + "r" * len(families), rows)


def _methods(run: dict[str, Any]) -> str:
    rows = [
        [
            one["pattern"],
            one["method"],
            _short(one["rate"]),
            "optimal" if one["exact"] else f"{100 * one['loss']:.2g} %",
            "–" if one["gap"] is None else f"{100 * one['gap']:.2g} %",
            f"{one['weights']:,}",
        ]
        for one in run["methods"]
    ]
    text = """## Methods on N(0, 1) scores (`benchmarks/rivals.py`)

Loss: how far below the optimum of exactly n. The bare greedy and cover rules keep at most n;
nmsolve completes them. Gap: what a method itself proves. Slow methods are measured on fewer
weights, their loss against the optimum of those.

"""
    return text + _table(
        ["pattern", "method", "Mw/s", "loss", "certified gap", "weights"], "llrrrr", rows
    )


def _table(head: list[str], alignment: str, rows: list[list[str]]) -> str:
    ruler = ["---:" if side == "r" else "---" for side in alignment]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ruler, *rows]) + "\n"


def _short(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
