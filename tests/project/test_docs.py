"""The Python of the documents runs as it stands there; what they link to exists; 100 columns."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        ROOT / "examples" / "README.md",
        *ROOT.glob("tests/*.md"),
    ]
)


# Where no GPU is.
@pytest.mark.filterwarnings("ignore:nmsolve works on the masked dense weights:UserWarning")
@pytest.mark.parametrize(
    "name",
    ["README.md", "docs/checkpoints.md", "docs/format.md", "docs/pruning.md", "docs/torch.md"],
)
def test_snippets_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    blocks = re.findall(
        r"^```python\n(.*?)^```", (ROOT / name).read_text(), re.DOTALL | re.MULTILINE
    )
    assert blocks
    scope = {}
    for block in blocks:
        exec(compile(block, f"{name}: {block.splitlines()[0]}", "exec"), scope)


def too_long(text):
    """Return the lines beyond 100 columns, but for what cannot be broken: tables, JSON, links."""
    unbreakable = re.compile(r'\||\{"|\S*\[?\S+\]\(\S+\)\S*$|\s*\S+$')
    return [line for line in text.splitlines() if len(line) > 100 and not unbreakable.match(line)]


def test_prose_keeps_to_100_columns():
    assert len(PAGES) > 20
    assert {
        path.name: too_long(path.read_text()) for path in PAGES if too_long(path.read_text())
    } == {}


def test_a_long_line_is_found():
    assert too_long("word " * 30) == ["word " * 30]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    """Files of the repository that a page names exist, as links and in backquotes."""
    text = path.read_text()
    linked = {target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)}
    named = re.findall(r"`([\w.-]+(?:/[\w.-]+)+\.(?:py|md|txt|css|js))`", text)
    if path.name == "CHANGELOG.md":
        named = []  # names what there was
    missing = [t for t in linked if t and "://" not in t and not (path.parent / t).exists()]
    places = [ROOT, ROOT / "nmsolve", ROOT / "nmsolve" / "torch"]
    missing += [name for name in named if not any((place / name).exists() for place in places)]
    assert missing == []
