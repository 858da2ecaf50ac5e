"""Two texts: modern prose, to calibrate with and to measure on, and Shakespeare's plays, which are
of another kind.

Both are cleaned alike: paragraphs of 200 characters or more, white space collapsed.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Iterable
from dataclasses import dataclass

from examples.language_model.packages import installed_file

SHORTEST = 200
#: The part of the prose that calibration is drawn from; the rest, behind it, is held out.
CALIBRATION = 0.8


@dataclass(frozen=True)
class Text:
    """Paragraphs in their order."""

    title: str
    paragraphs: tuple[str, ...]

    @property
    def about(self) -> str:
        """Its title, length and checksum: results hold for this text."""
        whole = "\n\n".join(self.paragraphs)
        checksum = hashlib.sha256(whole.encode()).hexdigest()[:12]
        return (
            f"{self.title}; {len(self.paragraphs):,} paragraphs of {len(whole):,} characters "
            f"(SHA-256 {checksum}…)"
        )

    def parts(self) -> tuple[str, str]:
        """What calibration is drawn from, and what is held out: no paragraph is in both."""
        cut = round(CALIBRATION * len(self.paragraphs))
        return "\n\n".join(self.paragraphs[:cut]), "\n\n".join(self.paragraphs[cut:])

    def whole(self) -> str:
        """All of it."""
        return "\n\n".join(self.paragraphs)


def prose() -> Text:
    """The Jargon File, in the public domain by its own words: introduction, lexicon, appendices.

    Left out are what only the printed book has, comments, revision histories and listings.
    """
    text = installed_file("jargon-file", "data/jargon.xml").read_text(encoding="iso-8859-1")
    entities = dict(re.findall(r"<!ENTITY\s+(\w+)\s+'([^']*)'>", text))
    for left_out in (
        r"<!--.*?-->",
        r"<\?if condition=[\"']book[\"']\?>.*?<\?fi\?>",
        r"<(revhistory|literallayout|screen|programlisting)\b.*?</\1>",
    ):
        text = re.sub(left_out, "", text, flags=re.DOTALL)
    text = re.sub(r"&(\w+);", lambda found: entities.get(found[1], found[0]), text)
    paragraphs = (
        html.unescape(re.sub(r"<[^>]*>", "", part)) for part in re.split(r"</?para\b[^>]*>", text)
    )
    return Text(f"the Jargon File {entities['version']}", _long(paragraphs))


def plays() -> Text:
    """Shakespeare in modern spelling, from Project Gutenberg."""
    folder = installed_file("shakespeare", "shksprdata/texts")
    paragraphs = (
        part
        for path in sorted(folder.glob("*_gut.txt"))
        for part in re.split(r"\n\s*\n", path.read_text(encoding="utf-8", errors="replace"))
    )
    return Text("Shakespeare's works in modern spelling, speeches and stanzas", _long(paragraphs))


def _long(paragraphs: Iterable[str]) -> tuple[str, ...]:
    collapsed = (" ".join(paragraph.split()) for paragraph in paragraphs)
    return tuple(paragraph for paragraph in collapsed if len(paragraph) >= SHORTEST)
