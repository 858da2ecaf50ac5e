"""The table of pruned tensors, which page.js sorts and filters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nmsolve.checkpoint.page.chart import marker
from nmsolve.checkpoint.page.markup import Html, breakable, element, escaped, joined
from nmsolve.checkpoint.page.thumbnail import thumbnail
from nmsolve.checkpoint.page.values import duration, finite, gap, percent, sized, unknown
from nmsolve.checkpoint.summary import TensorReport
from nmsolve.pattern import Pattern


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of the table.

    value : the number that a cell is sorted by, None where it is not known; a column without
    `value` is sorted by its text.
    """

    key: str
    label: str
    show: Callable[[int, TensorReport], Html]
    value: Callable[[int, TensorReport], float | None] | None = None


def pruned_table(
    tensors: Sequence[TensorReport],
    corners: Mapping[str, NDArray[np.bool_]],
    ranks: dict[Pattern, int],
) -> Html:
    """A row for each tensor: `t12` is the anchor of the twelfth."""
    columns = _columns(len(tensors), ranks)
    head = [_head(column) for column in columns]
    head.insert(1, element("th", "Mask", scope="col", role="columnheader", class_="c-mask"))
    rows = []
    for number, t in enumerate(tensors, 1):
        cells = [_cell(column, number, t) for column in columns]
        mask = thumbnail(number, t, corners.get(t.name))
        cells.insert(1, element("td", mask, role="cell", class_="c-mask", data_label="Mask"))
        rows.append(element("tr", *cells, id=f"t{number}", role="row"))
    return element(
        "table",
        element("thead", element("tr", *head, role="row"), role="rowgroup"),
        element("tbody", *rows, role="rowgroup"),
        role="table",
        class_="tensors",
        aria_labelledby="tensors",
    )


def _columns(count: int, ranks: dict[Pattern, int]) -> list[_Column]:
    def pattern(_: int, t: TensorReport) -> Html:
        if t.pattern is None:
            return unknown("pattern")
        return joined(marker(ranks[t.pattern], count) if len(ranks) > 1 else "", str(t.pattern))

    return [
        _Column("number", "#", lambda i, t: escaped(str(i)), lambda i, t: i),
        _Column("name", "Tensor", lambda i, t: breakable(t.name)),
        _Column("file", "File", lambda i, t: breakable(t.file)),
        _Column(
            "pattern", "Pattern", pattern, lambda i, t: ranks[t.pattern] if t.pattern else None
        ),
        _Column("shape", "Shape", lambda i, t: breakable(sized(t.shape)), lambda i, t: t.weights),
        _Column("dtype", "Dtype", lambda i, t: escaped(t.dtype)),
        _Column("density", "Density", _density, lambda i, t: None if t.kept is None else t.density),
        _Column(
            "kept",
            "Kept |W|",
            lambda i, t: percent(t.share, "kept |W|"),
            lambda i, t: finite(t.share),
        ),
        _Column("gap", "Gap", lambda i, t: gap(t.gap), lambda i, t: finite(t.gap)),
        _Column(
            "status", "Status", lambda i, t: escaped(t.status) if t.status else unknown("status")
        ),
        _Column("time", "Time", lambda i, t: duration(t.seconds), lambda i, t: finite(t.seconds)),
    ]


def _density(_: int, t: TensorReport) -> Html:
    return unknown("density") if t.kept is None else escaped(f"{t.density:.4f}")


def _head(column: _Column) -> Html:
    """A column's heading; its button is disabled until the script that serves it runs."""
    return element(
        "th",
        element("button", column.label, type="button", disabled=True),
        scope="col",
        role="columnheader",
        class_=f"c-{column.key}",
        aria_sort="ascending" if column.key == "number" else None,
        data_numeric=column.value is not None,
    )


def _cell(column: _Column, number: int, t: TensorReport) -> Html:
    value = None if column.value is None else column.value(number, t)
    return element(
        "td",
        column.show(number, t),
        role="cell",
        class_=f"c-{column.key}",
        data_label=column.label,
        data_v=None if value is None else f"{value!r}",
    )
