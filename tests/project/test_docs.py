"""The Python of the documents runs, top to bottom, as it stands there."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.usefixtures("quick")
@pytest.mark.filterwarnings(
    "ignore:nmsolve works on the masked dense weights:UserWarning"
)  # where no GPU is
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
