"""How stages went, read from the lines alone: also of runs that were killed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.gpu.stages import STAGES

Line = dict[str, Any]


@dataclass(slots=True)
class Part:
    """A stage as it went the last time that it ran.

    run : the line that its run began with. rows : what it measured, and what failed. begin, end :
    its own first and last line.
    """

    name: str
    run: Line
    begin: Line | None = None
    end: Line | None = None
    rows: list[Line] = field(default_factory=list)

    def of(self, kind: str) -> list[Line]:
        """Its rows of a kind."""
        return [row for row in self.rows if row.get("kind") == kind]

    @property
    def outcome(self) -> str:
        """One of ok, nothing to do, failed, timed out, crashed, cut off, not run."""
        if self.end is not None:
            measured = [row for row in self.rows if row.get("kind") != "measuring"]
            idle = bool(measured) and all(row.get("kind") == "skipped" for row in measured)
            return (
                "nothing to do"
                if idle and self.end["outcome"] == "ok"
                else str(self.end["outcome"])
            )
        return "not run" if self.begin is None else "cut off"

    @property
    def seconds(self) -> float:
        """How long it took; of a stage that was cut off: until its last line."""
        if self.end is not None:
            return float(self.end["seconds"])
        return (
            0.0
            if self.begin is None
            else float(([self.begin, *self.rows][-1])["t"] - self.begin["t"])
        )

    @property
    def why(self) -> str:
        """What there is to say about the outcome."""
        if self.outcome == "ok":
            return ""
        if self.outcome == "nothing to do":
            return "; ".join(dict.fromkeys(row["why"] for row in self.of("skipped")))
        if self.end is None and self.begin is None:
            return "the run was cut off before it"
        errors, started = self.of("error"), self.of("measuring")
        detail = "" if self.end is None else self.end["detail"]
        if self.outcome in ("timed out", "crashed", "cut off"):
            where = (
                f"while measuring {started[-1]['what']}"
                if started
                else "before its first measurement"
            )
            return f"{detail}, {where}" if detail else where
        if errors:  # which say more than an exit status
            count = (
                f"{len(errors)} of {len(started)} measurements, the first: "
                if len(errors) > 1
                else ""
            )
            return f"{count}{errors[0]['what']}: {errors[0]['error']}"
        return str(detail)


def parts(lines: Sequence[Line]) -> list[Part]:
    """Every stage, in the stages' order: of each the last run in which it began, else the last that
    would have run it.
    """
    ran: dict[tuple[int, str], Part] = {}
    for line in lines:
        kind = line.get("kind")
        if kind == "run":
            ran.update(
                {(line.get("run", 0), name): Part(name, line) for name in line.get("stages", ())}
            )
        elif part := ran.get((line.get("run", 0), line.get("stage", ""))):
            if kind == "begin":
                part.begin = line
            elif kind == "end":
                part.end = line
            else:
                part.rows.append(line)
    latest: dict[str, Part] = {}
    for part in ran.values():
        if part.begin is not None or part.name not in latest or latest[part.name].begin is None:
            latest[part.name] = part
    order = [stage.name for stage in STAGES if stage.name in latest]
    return [latest[name] for name in [*order, *(name for name in latest if name not in order)]]
