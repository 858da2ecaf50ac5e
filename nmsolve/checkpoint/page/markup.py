"""HTML that is escaped by construction: `Html` is markup, and every other string is text."""

from __future__ import annotations

import re
from html import escape

#: Controls, which HTML forbids, and lone surrogates, which UTF-8 cannot write: both occur in names
#: that a JSON header spells.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_VOID = {"input", "link", "meta", "wbr"}


class Html(str):
    """Markup: goes into a page as it is."""

    __slots__ = ()


def escaped(text: str) -> Html:
    """Text as markup that shows it, in content or between quotes.

    Examples
    --------
    >>> print(escaped("</script><b title='x'>"))
    &lt;/script&gt;&lt;b title=&#x27;x&#x27;&gt;
    """
    return text if isinstance(text, Html) else Html(escape(_FORBIDDEN.sub("\ufffd", text)))


def joined(*parts: str) -> Html:
    """Markup of several parts, one after another."""
    return Html("".join(escaped(part) for part in parts))


def element(tag: str, *children: str, **attributes: str | int | bool | None) -> Html:
    """One element. Attributes that are None or False are left out; `class_` is class, `data_v` is
    data-v.

    Examples
    --------
    >>> print(element("td", "<b>", element("wbr"), class_="n", data_v=3, hidden=False))
    <td class="n" data-v="3">&lt;b&gt;<wbr></td>
    """
    start = [tag]
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        name = name.removesuffix("_").replace("_", "-")
        start.append(name if value is True else f'{name}="{escaped(str(value))}"')
    opened = f"<{' '.join(start)}>"
    return Html(opened if tag in _VOID else f"{opened}{joined(*children)}</{tag}>")


def breakable(name: str) -> Html:
    """A name from the checkpoint: may wrap after dots and slashes, and its own text direction ends
    with it.

    Examples
    --------
    >>> print(breakable("layers.0"))
    <bdi>layers.<wbr>0</bdi>
    """
    return element("bdi", Html(re.sub(r"([./×])(?=.)", r"\1<wbr>", escaped(name))))
