"""Rows of a kind as a Markdown table. A pure function of lines, whichever run they are of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Line = dict[str, Any]
VERDICTS = {True: "pass", False: "**miss**", None: ""}


def table(head: Sequence[str], alignment: str, rows: Sequence[Sequence[str]]) -> str:
    """Cells as Markdown; alignment : a letter a column, l or r."""
    ruler = ["---:" if side == "r" else "---" for side in alignment]
    safe = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ruler, *safe]) + "\n"


def figures(lines: Sequence[Line]) -> str:
    """Numbers beside their targets."""
    rows = []
    for line in lines:
        loss = "" if line["loss"] is None else f"{100 * line['loss']:.2g} % below the optimum"
        note = "; ".join(filter(None, [line["note"], loss]))
        rows.append(
            [
                line["what"],
                _us(line["us"]),
                measured(line),
                target(line),
                VERDICTS[line["passed"]],
                note,
            ]
        )
    return table(["what", "µs", "measured", "target", "", "note"], "lrrrll", rows)


def measured(line: Line) -> str:
    """A figure's number, to three digits."""
    value = line["value"]
    return f"{value:,.0f} {line['unit']}" if abs(value) >= 1000 else f"{value:.3g} {line['unit']}"


def target(line: Line) -> str:
    """What was promised."""
    return (
        ""
        if line["target"] is None
        else f"{'≥' if line['at_least'] else '≤'} {line['target']:g} {line['unit']}"
    )


def facts(lines: Sequence[Line]) -> str:
    """Names and values."""
    return table(["what", ""], "ll", [[line["what"], line["value"]] for line in lines])


def skipped(lines: Sequence[Line]) -> str:
    """What was not measured."""
    return "".join(f"Not measured: {line['what']}: {line['why']}.\n" for line in lines)


def solved(lines: Sequence[Line]) -> str:
    """Masks that are optimal, verified and repeated."""
    rows = [
        [
            line["pattern"],
            line["dtype"],
            line["scores"],
            f"{line['side']}²",
            f"{line['first_s']:.2f}",
            _stats(line["stats"]),
        ]
        for line in lines
    ]
    head = ["pattern", "dtype", "scores", "", "first call, s", "statistics"]
    return "Optimal, verified on the host, repeated bit for bit:\n\n" + table(head, "lllrrl", rows)


def profiles(lines: Sequence[Line]) -> str:
    """Where the time of each solve goes, and what takes longest in it."""
    rows = []
    for line in lines:
        busy = line["busy_ms"]
        gaps = "" if busy is None else f"{line['wall_ms'] - busy:.2f}"
        waits = (
            ""
            if line["waits"] is None
            else ", ".join(f"{count} × {name}" for name, count in line["waits"].items()) or "none"
        )
        launches = "" if line["launches"] is None else str(line["launches"])
        numbers = [f"{line['wall_ms']:.2f}", "" if busy is None else f"{busy:.2f}", gaps, launches]
        rows.append(
            [
                line["what"],
                *numbers,
                waits,
                "" if line["peak_mb"] is None else f"{line['peak_mb']:.0f}",
            ]
        )
    head = ["solve", "wall ms", "device ms", "gaps ms", "launches", "waits", "MB beyond the input"]
    text = table(head, "lrrrrlr", rows)
    for line in lines:
        top = [[f"`{name}`", str(count), f"{us:.0f}"] for name, count, us in line["top"]]
        text += f"\n{'; '.join(filter(None, [line['what'], _stats(line['stats'])]))}\n\n" + table(
            ["what takes longest", "times", "µs"], "lrr", top
        )
    return text


def products(lines: Sequence[Line]) -> str:
    """The default algorithm and the fastest right one beside dense."""
    rows = []
    for line in lines:
        times = {int(k): us for k, us in line["algorithm_us"].items()}
        best = min(times, key=lambda k: times[k])
        wrong = "; ".join(f"**{k}**: {reason}" for k, reason in line["wrong"].items())
        first = f"{times[0]:.0f} ({line['dense_us'] / times[0]:.2f} ×)"
        other = (
            ""
            if best == 0
            else f"{times[best]:.0f} ({line['dense_us'] / times[best]:.2f} ×), {best}"
        )
        where = [f"{line['rows']} × {line['cols']}", f"{line['tokens']:,}", line["backend"]]
        rows.append(
            [
                *where,
                f"{line['dense_us']:.0f}",
                first,
                other,
                str(len(times)),
                wrong,
                _us(line["pack_us"]),
            ]
        )
    head = [
        "weight",
        "tokens",
        "backend",
        "dense µs",
        "sparse µs (dense / sparse)",
        "the fastest, which",
        "right",
        "wrong",
        "pack µs",
    ]
    return table(head, "lrlrrrrlr", rows)


def layers(lines: Sequence[Line]) -> str:
    """Dense and sparse layers, and the same as graphs."""
    rows = []
    for line in lines:
        kind = "forward + backward" if line["training"] else "forward"
        where = [f"{line['rows']} × {line['cols']}", f"{line['tokens']:,}", line["backend"], kind]
        pairs = [
            _pair(line["dense_us"], line["sparse_us"]),
            _pair(line["dense_graph_us"], line["sparse_graph_us"]),
        ]
        alone = "" if line["products_ratio"] is None else f"{line['products_ratio']:.2f} ×"
        rows.append([*where, *pairs[0], *pairs[1], alone])
    head = [
        "layer",
        "tokens",
        "backend",
        "",
        "dense / sparse µs",
        "",
        "as graphs µs",
        "",
        "products alone",
    ]
    return table(head, "lrllrrrrr", rows)


def decisions(lines: Sequence[Line]) -> str:
    """What `accelerate_` decided."""
    rows = []
    for line in lines:
        times = _pair(line["dense_us"], line["sparse_us"])[0]
        rows.append(
            [
                line["model"],
                line["layer"],
                line["shape"],
                line["backend"] or "",
                times,
                line["decision"],
                line["reason"],
            ]
        )
    return table(
        ["model", "layer", "shape", "backend", "dense / sparse µs", "decision", "reason"],
        "llllrll",
        rows,
    )


def tests(lines: Sequence[Line]) -> str:
    """How many there were of each outcome, and those that did not pass by name."""
    last = {
        line["name"]: line for line in lines
    }  # a failed test has a second row, with its message
    worst = {}
    for line in lines:
        if line["outcome"] in ("failed", "error") or line["name"] not in worst:
            worst[line["name"]] = line["outcome"]
    counts = {
        outcome: list(worst.values()).count(outcome) for outcome in dict.fromkeys(worst.values())
    }
    text = ", ".join(f"{count} {outcome}" for outcome, count in counts.items()) + ".\n"
    bad = [
        [name, outcome, last[name]["message"]]
        for name, outcome in worst.items()
        if outcome in ("failed", "error", "running")
    ]
    return text + ("\n" + table(["test", "", ""], "lll", bad) if bad else "")


def _us(us: float | None) -> str:
    return "" if us is None else f"{us:,.0f}"


def _pair(dense: float | None, sparse: float | None) -> list[str]:
    """Two times, and their ratio."""
    if dense is None or sparse is None:
        return ["", ""]
    return [f"{dense:.0f} / {sparse:.0f}", f"{dense / sparse:.2f} ×"]


def _stats(stats: dict[str, float]) -> str:
    shown = {
        name: value
        for name, value in stats.items()
        if value and name not in ("seconds", "weights_per_second", "threads")
    }
    return ", ".join(f"{name} {value:,.0f}" for name, value in shown.items())


#: Kinds in the order in which a section shows them, and how.
TABLES = {
    "fact": facts, "figure": figures, "solved": solved, "profile": profiles, "product": products,
    "decision": decisions,
    "layer": layers, "test": tests, "skipped": skipped,
}  # fmt: skip
