"""Where sparsity is missing, and why: dense tensors by reason, and files that were left behind."""

from __future__ import annotations

from collections.abc import Sequence

from nmsolve.checkpoint.page.markup import Html, breakable, element, joined
from nmsolve.checkpoint.page.values import counted, percent, sized
from nmsolve.checkpoint.summary import PruneReport, TensorReport


def missing(report: PruneReport) -> Html:
    """The section; reasons that cost most weights come first."""
    groups: dict[str, list[TensorReport]] = {}
    for t in report.dense:
        groups.setdefault(t.reason or "No reason is recorded", []).append(t)
    # stable: ties as in the checkpoint
    ordered = sorted(groups.items(), key=lambda group: -sum(t.weights for t in group[1]))
    return element(
        "section",
        element("h2", "Where sparsity is missing, and why"),
        ""
        if groups
        else element(
            "p",
            "Nowhere: every tensor is pruned." if len(report) else "The checkpoint has no tensors.",
        ),
        element(
            "ul", *(_group(reason, ts, report.weights) for reason, ts in ordered), class_="reasons"
        )
        if groups
        else "",
        _left_behind(report.left_behind) if report.left_behind else "",
    )


def _group(reason: str, tensors: Sequence[TensorReport], whole: int) -> Html:
    weights = sum(t.weights for t in tensors)
    share = weights / max(1, whole)
    figures = joined(
        f"{counted(len(tensors), 'tensor')}, {counted(weights, 'weight')}, ",
        percent(share, "share"),
        " of all",
    )
    names = (
        element("li", element("span", breakable(t.name), class_="name"), " ", sized(t.shape))
        for t in tensors
    )
    return element(
        "li",
        element("h3", reason),
        element("p", figures),
        element(
            "svg",
            element("rect", width=f"{100 * share:.3f}%", height="100%"),
            class_="bar",
            aria_hidden="true",
        ),
        element("details", element("summary", "Names"), element("ul", *names, class_="names")),
    )


def _left_behind(names: Sequence[str]) -> Html:
    return joined(
        element("h3", "Files left behind"),
        element("p", "They hold weights that were not pruned, so they were not taken along."),
        element(
            "ul", *(element("li", breakable(name), class_="name") for name in names), class_="names"
        ),
    )
