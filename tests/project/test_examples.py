"""The examples run, each as a user would start it, and stay short."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments):
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize(
    "name",
    [
        "plain_loop",
        pytest.param("hugging_face", marks=pytest.mark.long),
        pytest.param("lightning_fit", marks=pytest.mark.long),
    ],
)
def test_scripts(name):
    path = ROOT / "examples" / f"{name}.py"
    assert len(path.read_text().splitlines()) < 80
    assert "2:4T" in run(path, "--tiny")


@pytest.mark.long
def test_domino_search():
    assert "2:16" in run(ROOT / "examples" / "domino_search.py", "--tiny")


@pytest.mark.long
def test_study(tmp_path):
    run("-m", "examples.study", "--tiny", "--out", str(tmp_path))
    assert list(tmp_path.glob("*.md"))


@pytest.mark.long
def test_pruning_study(tmp_path):
    run("-m", "examples.pruning", "--tiny", "--out", str(tmp_path))
    report = (tmp_path / "README.md").read_text()
    assert "AdaPrune, Adam" in report
    assert "exact, loss" in report
    assert run("-m", "examples.pruning", "--tiny", "--report", "--out", str(tmp_path))
    assert (tmp_path / "README.md").read_text() == report
