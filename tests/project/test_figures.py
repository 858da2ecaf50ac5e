"""The README's figures can be drawn from the results that are saved."""

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_figures_are_drawn_from_the_results_in_the_repository(tmp_path):
    figures = runpy.run_path(str(ROOT / "docs" / "figures.py"))
    figures["write"](figures["newest"](), tmp_path)
    for name in ("speed.png", "loss.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / name).stat().st_size > 10_000
