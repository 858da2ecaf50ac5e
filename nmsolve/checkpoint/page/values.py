"""Numbers as the page shows them: as text, or as a dash that says what is not known."""

from __future__ import annotations

import math

from nmsolve.checkpoint.page.markup import Html, element, escaped

_THIN = "\u202f"  # a narrow space that does not break


def unknown(what: str) -> Html:
    """The dash for a value that does not exist; `what` names it to whoever points at it."""
    return element("abbr", "–", class_="unknown", title=f"{what}: not known")


def finite(value: float | None) -> float | None:
    """None for what is no number: a report may hold NaN."""
    return value if value is not None and math.isfinite(value) else None


def percent(value: float | None, what: str, digits: int = 2) -> Html:
    """A share in percent; what little there is does not read as nothing.

    Examples
    --------
    >>> [str(percent(share, "share")).replace("\u202f", " ") for share in (0.87654, 0.00001, 0)]
    ['87.65 %', '&lt;0.01 %', '0.00 %']
    """
    value = finite(value)
    if value is None:
        return unknown(what)
    if 0 < value < 0.5 * 10 ** (-2 - digits):
        return escaped(f"<{10**-digits:.{digits}f}{_THIN}%")
    return escaped(f"{100 * value:.{digits}f}{_THIN}%")


def gap(value: float | None) -> Html:
    """A relative gap; 0 has no exponent, so that what is proven stands out."""
    value = finite(value)
    return unknown("certified gap") if value is None else escaped(f"{value:.1e}" if value else "0")


def duration(seconds: float | None) -> Html:
    """Seconds, or from a minute on in minutes and hours.

    Examples
    --------
    >>> [str(duration(s)).replace("\u202f", " ") for s in (0.0123, 5.25, 59.96, 75, 7300)]
    ['0.012 s', '5.2 s', '1 min 0 s', '1 min 15 s', '2 h 1 min']
    """
    seconds = finite(seconds)
    if seconds is None:
        return unknown("time")
    if seconds < 1:
        return escaped(f"{seconds:.3f}{_THIN}s")
    if round(seconds, 1) < 60:
        return escaped(f"{seconds:.1f}{_THIN}s")
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return escaped(f"{minutes}{_THIN}min {rest}{_THIN}s")
    return escaped(f"{minutes // 60}{_THIN}h {minutes % 60}{_THIN}min")


def rounded(count: int) -> str:
    """A count in three digits.

    Examples
    --------
    >>> [rounded(c).replace("\u202f", " ") for c in (999, 12_345, 999_999, 8_030_261_248)]
    ['999', '12.3 K', '1 M', '8.03 B']
    """
    if count < 1000:
        return str(count)
    mantissa, exponent = f"{count:.2e}".split("e")
    thousands, digits = divmod(int(exponent), 3)
    if thousands > 4:
        return f"{count:.2e}"
    return f"{float(mantissa) * 10**digits:.3g}{_THIN}{' KMBT'[thousands]}"


def counted(count: int, noun: str) -> str:
    """A count with its noun.

    Examples
    --------
    >>> counted(1, "tensor"), counted(1200, "tensor")
    ('1 tensor', '1,200 tensors')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def sized(shape: tuple[int, ...]) -> str:
    """A shape, axis by axis."""
    return "×".join(map(str, shape)) or "scalar"
