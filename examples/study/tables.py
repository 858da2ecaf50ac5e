"""Tables of a task, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from examples.study.configurations import CRITERIA, DENSE, Comparisons, Configuration, refined
from examples.study.diversity import bits
from examples.study.outcome import Outcome


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """A table whose first columns are text and the others numbers."""
    rule = ["---"] * text_columns + ["---:"] * (len(head) - text_columns)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def methods(outcome: Outcome, comparisons: Comparisons) -> str:
    """Every method at every pattern."""
    head = (
        "pattern",
        "method",
        *outcome.headings,
        "training FLOPs",
        "entries that changed a weight",
        "seconds",
    )
    return markdown(head, _method_rows(outcome, comparisons), 2)


def _method_rows(outcome: Outcome, comparisons: Comparisons) -> Iterator[tuple[str, ...]]:
    listed = [
        DENSE,
        *(
            Configuration(m, pattern)
            for pattern, methods in comparisons.methods.items()
            for m in methods
        ),
    ]
    for one in listed:
        if outcome.has(one):
            yield (
                one.pattern or "",
                one.method,
                *outcome.show_with_loss(one),
                f"{outcome.spread(one, 'training_flops').mean:.2f} ×",
                outcome.spread(one, "flips").show(2) if one.pattern else "",
                f"{outcome.spread(one, 'seconds').mean:.1f}",
            )


def differences(outcome: Outcome, comparisons: Comparisons) -> str:
    """Methods against each other at equal patterns, seed by seed."""
    pairs = [("STE", "Dense"), ("SR-STE", "STE"), ("LBC", "SR-STE"), ("Fixed", "SR-STE")]
    head = ("pattern", *(f"{first} − {second}" for first, second in pairs))
    rows = []
    for pattern, available in comparisons.methods.items():
        cells = []
        for first, second in pairs:
            compared = [
                DENSE if name == "Dense" else Configuration(name, pattern)
                for name in (first, second)
            ]
            known = first in available and outcome.has(*compared)
            cells.append(outcome.show_difference(outcome.difference(*compared)) if known else "")
        rows.append((pattern, *cells))
    return markdown(head, rows)


def criteria(outcome: Outcome, comparisons: Comparisons) -> str:
    """What LBC removes candidates by."""
    head = ("pattern", "criterion", *outcome.headings, "− learned")
    rows = []
    for pattern in comparisons.criteria:
        learned = Configuration("LBC", pattern)
        for criterion in CRITERIA:
            one = Configuration("LBC", pattern, criterion)
            if outcome.has(one, learned):
                against = (
                    ""
                    if one == learned
                    else outcome.show_difference(outcome.difference(one, learned))
                )
                rows.append((pattern, criterion, *outcome.show_with_loss(one), against))
    return markdown(head, rows, 2)


def density(outcome: Outcome, comparisons: Comparisons) -> str:
    """Patterns of one density, with how many masks they allow."""
    head = ("density", "pattern", "bits a weight", "by the paper's formula", *outcome.headings)
    rows = []
    for share, patterns in comparisons.density.items():
        for pattern in patterns:
            one = Configuration("SR-STE", pattern)
            if outcome.has(one):
                known = bits(pattern)
                rows.append(
                    (
                        share,
                        pattern,
                        f"{known.exact:.3f}",
                        f"{known.paper:.3f}",
                        *outcome.show_with_loss(one),
                    )
                )
    return markdown(head, rows, 2)


def decays(outcome: Outcome, comparisons: Comparisons) -> str:
    """SR-STE's λ, on the part that settings are chosen by."""
    head = (
        "pattern",
        "λ",
        "validation accuracy, %",
        "validation loss",
        "entries that changed a weight",
    )
    rows = []
    for pattern in comparisons.decays:
        for factor in comparisons.factors:
            one = refined(pattern, factor)
            if outcome.has(one):
                shown = f"{factor * outcome.task.decay:.2g}"
                measured = (
                    outcome.spread(one, "validation_accuracy").show(2, 100),
                    outcome.spread(one, "validation_loss").show(4),
                )
                rows.append((pattern, shown, *measured, outcome.spread(one, "flips").show(2)))
    return markdown(head, rows, 2)
