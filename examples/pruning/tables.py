"""Tables of a task, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from examples.pruning.conversion import CONVERSIONS, METHODS, Conversion
from examples.pruning.schemes import KEPT, STAGES, M, Scheme, Unit, ways
from examples.study.outcome import Outcome
from examples.study.tables import markdown


@dataclass(frozen=True)
class Result:
    """A result by the name that it is saved under."""

    name: str


def conversions(outcome: Outcome) -> str:
    """Every method at every pattern."""
    head = ("pattern", "method", *outcome.headings, "error of layers", "kept", "seconds")
    return markdown(head, _conversion_rows(outcome), 2)


def _conversion_rows(outcome: Outcome) -> Iterator[tuple[str, ...]]:
    for conversion in converted(outcome):
        start = Result(conversion.start)
        if conversion.pattern in ("2:4", None):
            kept = outcome.spread(start, "params").mean
            yield ("", conversion.start, *outcome.show_with_loss(start), "", f"{kept:.0%}", "")
        for method in METHODS:
            one = Result(conversion.name(method))
            yield (
                conversion.pattern or "matching",
                method,
                *outcome.show_with_loss(one),
                outcome.spread(one, "error").show(3) if has_key(outcome, one, "error") else "",
                f"{outcome.spread(one, 'params').mean:.0%}",
                f"{outcome.seconds(one):.2g}",
            )


def converted(outcome: Outcome) -> list[Conversion]:
    """The conversions that there are runs of, in order."""
    return [
        conversion
        for conversion in CONVERSIONS
        if outcome.has(*(Result(name) for name in conversion.names))
    ]


def has_key(outcome: Outcome, one: Result, key: str) -> bool:
    """Whether a result has a number."""
    return all(key in run for run in outcome.runs.get(one.name, {}).values())


def schemes(outcome: Outcome, unit: Unit, kept: int) -> str:
    """Every way to a plan under a budget, at every stage."""
    key = "" if outcome.task.measure == "loss" else "accuracy, % / loss"
    head = (
        "plan",
        "parameters",
        "FLOPs",
        "search, s",
        *(f"{stage}, {key or 'loss'}" for stage in STAGES),
    )
    rows = []
    for scheme in allocated(outcome, unit, kept):
        first = Result(scheme.name(STAGES[0]))
        shares = (f"{outcome.spread(first, share).mean:.1%}" for share in ("params", "flops"))
        stages = (
            " / ".join(outcome.show_with_loss(Result(scheme.name(stage)))) for stage in STAGES
        )
        rows.append((scheme.way, *shares, f"{outcome.seconds(first):.2g}", *stages))
    return markdown(head, rows)


def allocated(outcome: Outcome, unit: Unit, kept: int) -> list[Scheme]:
    """The ways that there are runs of, in order."""
    listed = [Scheme(way, unit, kept) for way in ways(unit)]
    return [
        scheme
        for scheme in listed
        if outcome.has(*(Result(scheme.name(stage)) for stage in STAGES))
    ]


def budgets(outcome: Outcome) -> Iterator[tuple[Unit, int]]:
    """Those that there are runs of."""
    for unit, numbers in KEPT.items():
        for kept in numbers:
            if allocated(outcome, unit, kept):
                yield unit, kept


def budget_title(unit: Unit, kept: int) -> str:
    """For headings."""
    return f"At most {kept / M:.4g} of the {'weights' if unit == 'params' else 'multiply-adds'}"
