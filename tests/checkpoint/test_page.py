"""The page of `nmsolve report` as text: escaped, deterministic, whole for reports of every size,
and small.
"""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from nmsolve.checkpoint.page import page
from tests.checkpoint.page_reports import (
    CORNERS,
    MIXED_REPORT,
    SMALL,
    corner,
    hostile_page,
    report,
    tensor,
)

ROOT = Path(__file__).resolve().parents[2]

VOID = {"input", "link", "meta", "wbr", "img"}


class Outline(HTMLParser):
    """Elements with their attributes; whether all of them are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.errors = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.errors.append(tag)


@pytest.mark.parametrize("case", SMALL)
def test_reports_of_every_size_are_documents(case):
    text = page(SMALL[case], {}, title=case)
    outline = Outline(text)
    assert text.startswith("<!doctype html>")
    assert (outline.open, outline.errors) == ([], [])
    assert ("No tensor was pruned." in text) == (not SMALL[case].pruned)
    assert ("Nowhere: every tensor is pruned." in text) == (
        bool(SMALL[case].tensors) and not SMALL[case].dense
    )
    assert "nan" not in text.split("<body>")[1].split("<footer>")[0]


def test_hostile_text_stays_text():
    text = hostile_page()
    text.encode()
    outline = Outline(text)
    assert (outline.open, outline.errors) == ([], [])
    tags = {tag for tag, _ in outline.elements}
    assert not tags & {"img", "iframe", "base", "object", "embed", "form"}
    assert sum(tag == "script" for tag, _ in outline.elements) == 1
    for tag, attributes in outline.elements:
        assert not [
            name
            for name in attributes
            if name.startswith("on") or name in ("src", "style", "autofocus", "srcdoc")
        ], tag
        assert attributes.get("href", "#").startswith(("#", "data:,"))


def test_the_script_and_the_style_are_those_of_the_package():
    """Nothing from a report gets between their tags, and they cannot end them."""
    text = hostile_page()
    for tag in ("script", "style"):
        assert re.findall(f"<{tag}>(.*?)</{tag}>", text, re.S) == re.findall(
            f"<{tag}>(.*?)</{tag}>", page(SMALL["one"], {}, title=""), re.S
        )
    assert "http" not in re.search("<script>(.*?)</script>", text, re.S)[1]


def test_the_policy_forbids_to_load_anything():
    outline = Outline(page(SMALL["one"], {}, title=""))
    policies = [
        given["content"]
        for _, given in outline.elements
        if given.get("http-equiv") == "Content-Security-Policy"
    ]
    allowed = dict(rule.split(" ", 1) for rule in policies[0].split("; "))
    inline, nothing = "'unsafe-inline'", "'none'"
    assert allowed == {
        "default-src": nothing,
        "style-src": inline,
        "script-src": inline,
        "img-src": "data:",
        "base-uri": nothing,
        "form-action": nothing,
    }
    assert [tag for tag, _ in outline.elements][:4] == [
        "html",
        "head",
        "meta",
        "meta",
    ]  # a policy holds for what follows it


def test_the_page_is_deterministic():
    again = page(MIXED_REPORT, dict(reversed(CORNERS.items())), title="net")
    assert page(MIXED_REPORT, CORNERS, title="net") == again
    program = (
        "from tests.checkpoint import page_reports as r; print(r.page(r.MIXED_REPORT, "
        "r.CORNERS, title='net').encode())"
    )
    seeded = os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": str(ROOT)}
    other = subprocess.run(
        [sys.executable, "-c", program], env=seeded, capture_output=True, check=True, text=True
    ).stdout
    assert other.strip() == repr(again.encode())


def test_unknown_values_are_dashes_that_say_so():
    text = page(SMALL["unknown"], {}, title="")
    cells = re.findall('<td [^>]*data-label="([^"]*)"[^>]*>(.*?)</td>', text)
    dashes = {
        label: title
        for label, cell in cells
        for title in re.findall('<abbr class="unknown" title="(.*?)">–</abbr>', cell)
    }
    assert dashes == {
        "Mask": "mask: not known",
        "Density": "density: not known",
        "Kept |W|": "kept |W|: not known",
        "Gap": "certified gap: not known",
        "Status": "status: not known",
        "Time": "time: not known",
    }
    assert text.count("–</abbr></dd>") == 3  # kept |W|, gap and time of the whole


CAPTIONS = [
    ((64, 128), 1, (32, 32), "2:4T", "The top-left 32 × 32 of 64×128", ", lines between blocks"),
    (
        (64, 128),
        0,
        (32, 32),
        "2:4",
        "The top-left 32 × 32 of 64×128, with groups along rows",
        ", lines between groups",
    ),
    ((8, 16), 1, (8, 16), "2:4", "All 8 × 16 entries of 8×16", ", lines between groups"),
    (
        (16, 8),
        0,
        (8, 16),
        "2:4",
        "All 8 × 16 entries of 16×8, with groups along rows",
        ", lines between groups",
    ),
    (
        (8, 16, 3),
        1,
        (8, 16),
        "2:4",
        "The top-left 8 × 16 of the first matrix of 8×16×3, with groups along rows",
        ", lines between groups",
    ),
    ((5, 8, 16), 2, (8, 16), "4:16", "The top-left 8 × 16 of the first matrix of 5×8×16", ""),
]


@pytest.mark.parametrize(("shape", "axis", "sides", "pattern", "part", "between"), CAPTIONS)
def test_captions_say_which_entries_are_shown(shape, axis, sides, pattern, part, between):
    text = page(report(tensor("a", pattern, shape, axis=axis)), {"a": corner(0, *sides)}, title="")
    assert f"<p>{pattern}. {part}; filled where kept{between}.</p>" in text
    lines = re.findall('<path class="borders" d="(.*?)">', text)
    rows, columns = sides
    m = int(pattern.rstrip("T").split(":")[1])
    across = [f"M0 {y - 0.5}h{columns}" for y in range(m, rows, m)] if "T" in pattern else []
    assert "".join(lines) == "".join([f"M{x} -.5v{rows}" for x in range(m, columns, m)] + across)


def test_a_checkpoint_of_400_layers_stays_small():
    names = [f"model.layers.{i // 7}.a_projection_{i % 7}.weight" for i in range(400)]
    text = page(
        report(*map(tensor, names)),
        {name: corner(i) for i, name in enumerate(names)},
        title="large",
    )
    assert len(text.encode()) < 2_500_000
