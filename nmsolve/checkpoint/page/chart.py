"""Kept |W| tensor by tensor, as an inline SVG; the markers by which patterns are told apart.

Positions are percentages and sizes are pixels, so the drawing fills any width and its text stays as
large as the page's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from nmsolve.checkpoint.page.markup import Html, element, joined
from nmsolve.checkpoint.page.values import counted, finite, percent
from nmsolve.checkpoint.summary import TensorReport
from nmsolve.pattern import Pattern

#: Outlines within a circle of radius 1 or little more: told apart without colour.
_SHAPES = (
    "M-1 0a1 1 0 1 0 2 0a1 1 0 1 0-2 0z",
    "M-.9-.9h1.8v1.8h-1.8z",
    "M0-1.25L1.2.9H-1.2z",
    "M0-1.3L1.3 0 0 1.3-1.3 0z",
    "M0 1.25L1.2-.9H-1.2z",
)
_COLOURS = 6  # as many as page.css has; not a multiple of the shapes, so that 30 patterns differ
_TICKS = 5


def ranked(tensors: Iterable[TensorReport]) -> dict[Pattern, int]:
    """The patterns that occur, numbered from the sparsest on."""
    found = {t.pattern for t in tensors if t.pattern is not None}
    return {
        p: i
        for i, p in enumerate(
            sorted(found, key=lambda p: (p.density, p.m, p.transposable, p.at_most))
        )
    }


def markers(ranks: dict[Pattern, int], tensors: int) -> Html:
    """The definitions that `marker` and the chart refer to; smaller where more tensors share the
    width.
    """
    radius = _radius(tensors)
    shapes = (
        element(
            "path",
            id=f"k{i}",
            class_=f"k{i % _COLOURS}",
            d=_SHAPES[i % len(_SHAPES)],
            transform=f"scale({radius})",
        )
        for i in ranks.values()
    )
    return element("svg", element("defs", *shapes), class_="definitions", aria_hidden="true")


def marker(rank: int, tensors: int) -> Html:
    """A pattern's marker, to stand beside its name."""
    half = 1.4 * _radius(tensors)
    box = f"{-half:g} {-half:g} {2 * half:g} {2 * half:g}"
    return element(
        "svg", element("use", href=f"#k{rank}"), class_="marker", viewBox=box, aria_hidden="true"
    )


def chart(tensors: Sequence[TensorReport], ranks: dict[Pattern, int]) -> Html:
    """The drawing of every tensor whose share is known, its axes, legend and extremes in words."""
    shares = [finite(t.share) for t in tensors]
    known = [(share, i) for i, share in enumerate(shares) if share is not None]
    if not known:
        return element("p", "How much of |W| the masks keep is not known.")
    ticks, digits = _ticks(min(known)[0], max(known)[0])
    low, high = ticks[0], ticks[-1]

    drawn: list[Html] = []
    for tick in ticks:
        y = _position((high - tick) / (high - low))
        drawn.append(element("line", x1="0", x2="100%", y1=y, y2=y))
        drawn.append(
            element("text", percent(tick, "", digits), x="-8", y=y, dy=".35em", text_anchor="end")
        )
    n = len(tensors)
    drawn += [
        element(
            "text", f"{k:,}", x=_position((k - 0.5) / n), y="100%", dy="1.6em", text_anchor="middle"
        )
        for k in _numbers(n)
    ]
    for share, i in known:
        t, pattern = tensors[i], tensors[i].pattern
        if pattern is None:
            continue
        title = joined(f"{i + 1}. {t.name}\n{pattern}, kept |W| ", percent(share, ""))
        strip = element("rect", x=_position(i / n), width=_position(1 / n), height="100%")
        mark = element(
            "use",
            href=f"#k{ranks[pattern]}",
            x=_position((i + 0.5) / n),
            y=_position((high - share) / (high - low)),
        )
        drawn.append(
            element("a", element("title", title), strip, mark, href=f"#t{i + 1}", tabindex="-1")
        )

    labels = {"aria-labelledby": "chart-title chart-text"}
    picture = element("svg", *drawn, class_="chart", role="img", **labels)
    legend = element(
        "ul", *(element("li", marker(r, n), str(p)) for p, r in ranks.items()), class_="legend"
    )
    return element(
        "figure",
        legend if len(ranks) > 1 else "",
        element("div", picture, class_="plot"),
        element("p", "Pruned tensors, in the checkpoint's order", class_="axis"),
        element("figcaption", _caption(tensors, known), id="chart-text"),
    )


def _caption(tensors: Sequence[TensorReport], known: list[tuple[float, int]]) -> Html:
    """The extremes in words, and how many tensors the chart lacks."""

    def link(entry: tuple[float, int]) -> Html:
        share, i = entry
        return joined(
            percent(share, ""),
            " in ",
            element("a", element("bdi", tensors[i].name), href=f"#t{i + 1}", class_="name"),
        )

    least, most = min(known), max(known, key=lambda entry: (entry[0], -entry[1]))
    words = (
        joined("Kept ", link(least))
        if len(known) == 1
        else joined("From ", link(least), " to ", link(most))
    )
    missing = len(tensors) - len(known)
    return joined(
        words, ".", f" Not known, so not drawn: {counted(missing, 'tensor')}." if missing else ""
    )


def _radius(tensors: int) -> float:
    return 5 if tensors <= 40 else 4 if tensors <= 120 else 3


def _position(share: float) -> str:
    return f"{100 * share:.2f}%"


def _ticks(low: float, high: float) -> tuple[list[float], int]:
    """Round numbers that enclose low … high, about `_TICKS` of them, and the digits that their
    percentages need.
    """
    # a hundredth, or what is all but equal would look unlike
    spread = max(high - low, 0.01, 1e-6 * max(abs(low), abs(high)))
    step = _step(spread / (_TICKS - 1))
    first, last = math.floor(low / step), math.ceil(high / step)
    if first == last:
        first, last = first - 1, last + 1
    digits = max(0, -math.floor(math.log10(100 * step) + 1e-9))
    return [k * step for k in range(first, last + 1)], digits


def _numbers(n: int) -> list[int]:
    """The tensors that are numbered below the axis: the first, the last, and round numbers between
    that keep clear of it.
    """
    step = 1 if n <= 10 else int(_step(n / _TICKS))
    return [1, *(k for k in range(step, n, step) if 1 < k <= n - step / 2), *([n] if n > 1 else [])]


def _step(about: float) -> float:
    """1, 2 or 5 times a power of ten: the first that is no less than `about`."""
    power: float = 10 ** math.floor(math.log10(about))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= about * (1 - 1e-9))
