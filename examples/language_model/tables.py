"""Tables of the results, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from examples.language_model.outcome import Outcome, Range
from examples.language_model.rows import DENSE
from examples.study.tables import markdown


def quality(outcome: Outcome) -> str:
    """Perplexities, and rises over the dense model."""
    head = (
        "pattern",
        "method",
        "perplexity, held out",
        "other text",
        "rise / SparseGPT's, held out",
        "other text",
    )
    return markdown(head, _quality_rows(outcome), 2)


def _quality_rows(outcome: Outcome) -> Iterator[tuple[str, ...]]:
    for row in outcome.runs:
        perplexities = (
            _perplexity(Range.of(outcome.values(row, text))) for text in ("held_out", "other")
        )
        ratios = (
            _ratio(None if row == DENSE else outcome.rise_ratio(row, row.rival, text))
            for text in ("held_out", "other")
        )
        yield (row.pattern or "", row.method, *perplexities, *ratios)


def cost(outcome: Outcome) -> str:
    """Time, memory and runs of a block."""
    head = (
        "pattern",
        "method",
        "seconds",
        "CPU seconds",
        "seconds / SparseGPT's",
        "CPU seconds / SparseGPT's",
        "MiB",
        "runs of a block",
    )
    return markdown(head, _cost_rows(outcome), 2)


def _cost_rows(outcome: Outcome) -> Iterator[tuple[str, ...]]:
    for row in outcome.runs:
        if row == DENSE:
            continue
        times = (Range.of(outcome.values(row, key)).show(0) for key in ("seconds", "cpu_seconds"))
        ratios = (_ratio(outcome.ratio(row, row.rival, key)) for key in ("seconds", "cpu_seconds"))
        yield (
            row.pattern or "",
            row.method,
            *times,
            *ratios,
            Range.of(outcome.values(row, "mebibytes")).show(0),
            f"{max(outcome.values(row, 'runs')):.2g}",
        )


def _perplexity(found: Range) -> str:
    return found.show(1 if found.mean < 1000 else 0)


def _ratio(found: Range | None) -> str:
    return "" if found is None else found.show(2, " ×")
