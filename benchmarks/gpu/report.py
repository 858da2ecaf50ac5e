"""Lines as Markdown: how every stage went, what was promised and measured, then the tables. Nothing
else is read.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.gpu.status import Line, Part, parts
from benchmarks.gpu.tables import TABLES, VERDICTS, measured, table, target

#: What the heading shows of a machine.
HEADING = (
    "device",
    "compute capability",
    "nmsolve",
    "commit",
    "torch",
    "cuda",
    "driver_version",
    "triton",
    "python",
    "numpy",
    "numba",
)
HOW = (
    "CUDA events behind a filled queue, or the host's clock where that is longer; medians of "
    "interleaved repetitions"
)
SMALL = (
    "A smoke run on a CPU: small matrices. It shows that everything runs, not what anything is "
    "worth, and there are no targets"
)


def markdown(lines: Sequence[Line]) -> str:
    """The report of a folder's lines."""
    stages = parts(lines)
    sections = [_heading(stages), "## Stages\n\n" + _stages(stages)]
    promised = [line for part in stages for line in part.of("figure") if line["target"] is not None]
    if promised:
        sections.append("## Targets\n\n" + _targets(promised))
    for part in stages:
        shown = [show(part.of(kind)) for kind, show in TABLES.items() if part.of(kind)]
        if shown:
            sections.append(f"## {part.name.capitalize()}\n\n" + "\n".join(shown))
    errors = [(part, line) for part in stages for line in part.of("error")]
    if errors:
        sections.append(
            "## What failed\n\n" + "\n".join(_error(part, line) for part, line in errors)
        )
    return "\n".join(sections)


def _heading(stages: Sequence[Part]) -> str:
    facts = {line["what"]: line["value"] for part in stages for line in part.of("fact")}
    known = [f"{name} {facts[name]}".removeprefix("device ") for name in HEADING if name in facts]
    devices = {part.run["device"] for part in stages}
    title = "A smoke run of the GPU benchmarks on a CPU" if devices == {"cpu"} else "GPU benchmarks"
    how = {"cpu": SMALL, "cuda": HOW}
    notes = [f"{how[device]}." for device in sorted(devices)]
    if len(devices) > 1:
        notes.insert(0, "**Stages of different devices**: see their table.")
    where = ", ".join(known) or "The machine is not known: the stage `environment` has not run"
    return f"# {title}\n\n{where}.\n\n" + "\n".join(notes) + "\n"


def _stages(stages: Sequence[Part]) -> str:
    rows = []
    for part in stages:
        run = f"{part.run['run']}: {part.run['device']}, {part.run['date']}"
        limit = "" if part.begin is None else f"{part.begin['limit_s']:.0f}"
        outcome = part.outcome if part.outcome in ("ok", "nothing to do") else f"**{part.outcome}**"
        rows.append([part.name, outcome, f"{part.seconds:.0f}", limit, run, part.why])
    return table(["stage", "outcome", "seconds", "limit", "run", "why"], "llrrll", rows)


def _targets(lines: Sequence[Line]) -> str:
    rows = [
        [line["what"], measured(line), target(line), VERDICTS[line["passed"]], line["note"]]
        for line in lines
    ]
    return table(["what", "measured", "target", "", "note"], "lrrll", rows)


def _error(part: Part, line: Line) -> str:
    where = f"\n\n```\n{line['where'].rstrip()}\n```" if "where" in line else ""
    return f"{part.name}, {line['what']}: {line['error']}{where}\n"
