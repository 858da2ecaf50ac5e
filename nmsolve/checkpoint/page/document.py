"""The page that `nmsolve report` writes: a `PruneReport` as one HTML document that needs nothing
but itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from nmsolve.checkpoint.page.chart import chart, markers, ranked
from nmsolve.checkpoint.page.markup import Html, breakable, element, joined
from nmsolve.checkpoint.page.missing import missing
from nmsolve.checkpoint.page.table import pruned_table
from nmsolve.checkpoint.page.values import counted, duration, finite, gap, percent, rounded, unknown
from nmsolve.checkpoint.summary import PruneReport

#: Nothing is loaded from anywhere, whatever names and reasons in the checkpoint say.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src "
    "data:; base-uri 'none'; form-action 'none'"
)
#: What says in a page that `nmsolve report` wrote it.
_GENERATOR = "nmsolve report"
_ASSETS = ("page.css", "drawings.css", "table.css", "page.js")
_GLOSSARY = {
    "Pattern": "n:m keeps n of every m consecutive weights; with T every row and every column of "
    "every m × m block keeps n, so that W and Wᵀ are both sparse; with <= it may be fewer than n.",
    "Density": "The share of the weights that is kept: 1 for a dense tensor.",
    "Kept |W|": "The sum of the magnitudes of the kept weights, relative to that of all weights of "
    "the tensor; a mask that is drawn at random keeps about n/m.",
    "Certified gap": "(bound − objective) / bound: no mask of the pattern has an objective above "
    "the bound, so 0 proves that there is no better mask.",
    "Status": "optimal: a certificate was evaluated and closes the gap; feasible: the mask "
    "satisfies the pattern.",
    "Time": "What reading, solving and writing took.",
}


def page(
    report: PruneReport,
    corners: Mapping[str, NDArray[np.bool_]],
    *,
    title: str,
    notes: Sequence[str] = (),
) -> str:
    """One HTML document: the same, byte for byte, for the same arguments.

    Parameters
    ----------
    report : PruneReport
        With the seconds of each tensor where they are known.
    corners : mapping of name to (rows, columns) bool array
        The top-left corner of a tensor's mask as (the first of its) matrices with groups along
        rows, up to 32 × 32, True = kept. Tensors may be missing.
    title : str
        The checkpoint's name.
    notes : sequence of str
        Sentences for below the heading.

    Returns
    -------
    str
        To be written as UTF-8. It loads nothing, and shows everything without its script too.
    """
    assets = files("nmsolve.checkpoint.page")
    *styles, script = (Html((assets / name).read_text(encoding="utf-8")) for name in _ASSETS)
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="generator", content=_GENERATOR),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("link", rel="icon", href="data:,"),  # or a browser would ask the server for one
        element("title", f"{title}: sparsity report"),
        element("style", *styles),
    )
    body = element(
        "body",
        _heading(report, title, notes),
        element("main", _summary(report), *_pruned(report, corners), missing(report)),
        _footer(),
        element("script", script),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def is_page(beginning: bytes) -> bool:
    """Return whether a file that begins like this is such a page.

    Examples
    --------
    >>> empty = PruneReport(source="", settings={}, tensors=())
    >>> is_page(page(empty, {}, title="").encode()), is_page(b"<!doctype html>")
    (True, False)
    """
    before, mark, _ = beginning.partition(
        str(element("meta", name="generator", content=_GENERATOR)).encode()
    )
    return bool(mark) and before.startswith(b"<!doctype html>\n") and b"<title" not in before


def _heading(report: PruneReport, title: str, notes: Sequence[str]) -> Html:
    settings = dict(report.settings)
    if not settings.get("pattern"):
        settings = {"pattern": [str(p) for p in ranked(report.pruned)], **settings}
    if report.source != title:
        settings = {"source": report.source, **settings}
    entries = [
        element(
            "div", element("dt", str(key).capitalize()), *(element("dd", line) for line in lines)
        )
        for key, value in settings.items()
        if (lines := _setting(value))
    ]
    return element(
        "header",
        element("p", "Sparsity report", class_="kicker"),
        element("h1", breakable(title)),
        element("dl", *entries, class_="settings") if entries else "",
        *(element("p", note, class_="note") for note in notes),
    )


def _setting(value: object) -> list[Html]:
    """A setting's lines; none for one that was left unset."""
    if isinstance(value, Mapping):
        return [joined(breakable(str(key)), " → ", str(entry)) for key, entry in value.items()]
    if isinstance(value, (list, tuple)):
        return [breakable(str(entry)) for entry in value]
    return [] if value is None or value == "" else [breakable(str(value))]


def _summary(report: PruneReport) -> Html:
    pruned, weights = report.pruned, report.weights
    gaps = [value for t in pruned if (value := finite(t.gap)) is not None]
    seconds = [value for t in report if (value := finite(t.seconds)) is not None]
    optimal = sum(t.status == "optimal" for t in pruned)
    covered = sum(t.weights for t in pruned)
    kept = sum(t.weights if t.kept is None else t.kept for t in pruned)

    proven = (
        f"{'all' if optimal == len(pruned) else f'{optimal:,} of {len(pruned):,}'} proven optimal"
    )
    worst = max(gaps, default=None)
    largest = joined("; the largest of a tensor ", gap(worst)) if worst else ""
    unclear = f"; not known for {len(pruned) - len(gaps):,}" if len(gaps) < len(pruned) else ""
    untimed = sum(finite(t.seconds) is None for t in pruned)
    timed = f"not known for {counted(untimed, 'tensor')}" if untimed else "summed over tensors"
    tiles = (
        ("Weights", rounded(weights), f"{weights:,}" if weights >= 1000 else ""),
        (
            "Tensors pruned",
            f"{len(pruned):,}",
            joined(f"of {len(report):,}, with ", _of(covered, weights), " of the weights"),
        ),
        ("Density of the whole", f"{report.density:.4f}", "dense tensors included"),
        ("Kept |W|", percent(report.share, "kept |W|"), "of the sum of magnitudes where pruned"),
        ("Certified gap", gap(report.gap), joined(proven, largest, unclear) if pruned else ""),
        (
            "Time",
            duration(math.fsum(seconds)) if seconds else unknown("time"),
            timed if seconds else "",
        ),
    )
    listed = (
        element(
            "div",
            element("dt", label),
            element("dd", figure, class_="figure"),
            element("dd", detail) if detail else "",
        )
        for label, figure, detail in tiles
    )
    shares = [
        (kept, "kept by masks"),
        (covered - kept, "removed by masks"),
        (weights - covered, "in dense tensors"),
    ]
    return element(
        "section",
        element("dl", *listed, class_="tiles"),
        _composition(shares, weights) if weights else "",
        aria_label="Summary",
    )


def _composition(shares: Sequence[tuple[int, str]], weights: int) -> Html:
    """All weights as one bar: what masks keep, what they remove, what they do not touch."""
    start, bars, legend = 0, [], []
    for i, (count, label) in enumerate(shares):
        if count <= 0:
            continue
        x, width = (f"{100 * part / weights:.3f}%" for part in (start, count))
        bars.append(element("rect", x=x, width=width, height="100%", class_=f"w{i}"))
        swatch = element(
            "svg",
            element("rect", width="100%", height="100%", class_=f"w{i}"),
            class_="swatch",
            aria_hidden="true",
        )
        legend.append(element("li", swatch, joined(_of(count, weights), f" {label}")))
        start += count
    return joined(
        element("svg", *bars, class_="composition", aria_hidden="true"),
        element("ul", *legend, class_="legend composition-legend"),
    )


def _of(part: int, whole: int) -> Html:
    return percent(part / max(1, whole), "share", 1)


def _pruned(report: PruneReport, corners: Mapping[str, NDArray[np.bool_]]) -> list[Html]:
    """The sections on pruned tensors, or one that says there are none."""
    pruned, ranks = report.pruned, ranked(report.pruned)
    if not pruned:
        return [
            element(
                "section", element("h2", "Pruned tensors"), element("p", "No tensor was pruned.")
            )
        ]
    search = element("input", type="search", id="filter", autocomplete="off", spellcheck="false")
    found = element("span", id="found", role="status")
    return [
        markers(ranks, len(pruned)),
        element(
            "section",
            element("h2", "Kept |W|, tensor by tensor", id="chart-title"),
            chart(pruned, ranks),
        ),
        element(
            "section",
            element("h2", "Pruned tensors", id="tensors"),
            element(
                "p",
                element("label", "Name contains", for_="filter"),
                search,
                found,
                class_="filter",
            ),
            pruned_table(pruned, corners, ranks),
        ),
    ]


def _footer() -> Html:
    words = (
        element("div", element("dt", term), element("dd", meaning))
        for term, meaning in _GLOSSARY.items()
    )
    return element("footer", element("h2", "Glossary"), element("dl", *words, class_="glossary"))
