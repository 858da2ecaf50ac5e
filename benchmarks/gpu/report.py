"""A GPU run as Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.layers import LayerRow
from benchmarks.gpu.masks import Row


def line(row: Row | LayerRow) -> str:
    """A row in a line, as it comes."""
    if isinstance(row, Row):
        return f"{row.what}: {row.value:.3g} {row.unit} ({row.us:.0f} µs)"
    times = row.failure or f"dense {row.dense_us:.0f} µs, sparse {row.sparse_us:.0f} µs"
    return f"{row.rows} × {row.cols}, {row.backend}, {'training' if row.training else 'inference'}: {times}"


def markdown(run: dict[str, Any]) -> str:
    """What was measured on what, and what failed."""
    machine = run["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    title, how = "GPU benchmarks", "CUDA events, medians of interleaved repetitions, operands rotated beyond the L2"
    if machine["capability"] is None:
        title, how = (
            "A smoke run of the GPU benchmarks on a CPU",
            "Small matrices: that the script runs, not what anything is worth",
        )
    capability = "" if machine["capability"] is None else f", compute capability {machine['capability']}"
    head = f"""# {title}

{machine["device"]}{capability}. {versions}. {machine["date"]}, {run["seconds"]:.0f} s.
Backends: {"; ".join(f"{name} – {reason}" for name, reason in machine["backends"].items())}.

{how}; every result verified outside the timer.
"""
    parts = [head, "## Masks, {0} × {0}\n\n".format(run["side"]) + _rows(run["masks"])]
    parts.append("## A new mask\n\n" + _rows(run["refresh"]))
    if run["layers"]:
        parts.append("## Linear layers, bfloat16, 2:4T\n\n" + _layers(run["layers"]))
    if run["errors"]:
        parts.append("## What failed\n\n" + "\n".join(f"```\n{error}```" for error in run["errors"]) + "\n")
    return "\n".join(parts)


def _rows(rows: list[dict[str, Any]]) -> str:
    verdicts = {True: "pass", False: "**miss**", None: ""}
    lines = []
    for row in rows:
        target = "" if row["target"] is None else f"{'≥' if row['at_least'] else '<'} {row['target']:g} {row['unit']}"
        loss = "" if row["loss"] is None else f"{100 * row['loss']:.2g} % below the optimum"
        note = "; ".join(filter(None, [row["note"], loss]))
        lines.append([row["what"], f"{row['us']:.0f}", f"{row['value']:.3g} {row['unit']}", target, verdicts[row["passed"]], note])
    return _table(["what", "µs", "measured", "target", "", "note"], "lrrrll", lines)


def _layers(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        where = [
            f"{row['rows']} × {row['cols']}",
            f"{row['tokens']:,}",
            row["backend"],
            "training" if row["training"] else "inference",
        ]
        if row["failure"]:
            lines.append([*where, "", "", row["failure"], ""])
            continue
        raw = "" if row["raw_ratio"] is None else f"{row['raw_ratio']:.2f}"
        ratio = f"{row['dense_us'] / row['sparse_us']:.2f}"
        lines.append([*where, f"{row['dense_us']:.0f}", f"{row['sparse_us']:.0f}", ratio, raw])
    head = ["layer", "tokens", "backend", "", "dense µs", "sparse µs", "dense / sparse", "products alone"]
    return _table(head, "lrllrrrr", lines)


def _table(head: list[str], alignment: str, rows: list[list[str]]) -> str:
    ruler = ["---:" if side == "r" else "---" for side in alignment]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ruler, *rows]) + "\n"
