"""What the results show, in sentences made of the numbers."""

from __future__ import annotations

from collections.abc import Iterator

from examples.language_model.outcome import Outcome
from examples.language_model.rows import PATTERNS, Method, Row


def sentences(outcome: Outcome) -> Iterator[str]:
    """Our two methods against SparseGPT, row-wise and in both directions."""
    row_wise = [pattern for pattern in PATTERNS if not pattern.endswith("T")]
    transposable = [pattern for pattern in PATTERNS if pattern.endswith("T")]
    methods: tuple[Method, ...] = ("sparsegpt_", "adaprune_")
    for method in methods:
        for patterns, held_against in (
            (row_wise, "SparseGPT's at the same pattern"),
            (transposable, "SparseGPT's at row-wise 2:4"),
        ):
            shown = [text for pattern in patterns if (text := _one(outcome, Row(method, pattern)))]
            if shown:
                yield (
                    f"*{method}*, rise on held-out text and CPU time, over {held_against}: "
                    f"{'; '.join(shown)}."
                )


def _one(outcome: Outcome, row: Row) -> str:
    rise = outcome.rise_ratio(row, row.rival, "held_out")
    time = outcome.ratio(row, row.rival, "cpu_seconds")
    if rise is None or time is None:
        return ""
    return f"{row.pattern} {rise.show(2, ' ×')} in {time.show(2, ' ×')}"
