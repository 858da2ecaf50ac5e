"""`nmsolve.checkpoint.report`: what it reads off checkpoints, masks and dense weights."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import nmsolve
from nmsolve import checkpoint
from nmsolve.checkpoint.reporting import pattern_of
from nmsolve.cli import main
from tests.checkpoint.checkpoint_files import weights, write_folder


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    write_folder(tmp_path / "dense")
    checkpoint.prune(
        tmp_path / "dense",
        tmp_path / "sparse",
        {"*.mlp": "4:8T", "*": "2:4"},
        method="greedy",
        exclude="lm_head",
    )
    return tmp_path / "dense", tmp_path / "sparse"


def test_of_what_prune_wrote(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, sparse = folders
    assert main(["report", str(sparse), "-o", str(tmp_path / "page.html")]) == 0
    printed = capsys.readouterr().out
    assert "18 of 23 tensors pruned" in printed
    assert f"written to {tmp_path / 'page.html'}" in printed
    page = (tmp_path / "page.html").read_text()
    assert page.lower().startswith("<!doctype html>")
    assert "model.layers.2.mlp.down_proj" in page.replace("<wbr>", "")
    assert "excluded" in page
    assert "a table of embeddings" in page
    found = checkpoint.report(sparse, tmp_path / "page.html")
    assert all(t.seconds is not None for t in found)


def test_against_dense_everything_is_computed_anew(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """What report.json claims does not count: gaps are to the certified optimum, kept |W| is that
    of the masks.
    """
    dense, sparse = folders
    claimed = (sparse / "report.json").read_text()
    honest = checkpoint.report(sparse, tmp_path / "page.html", against=dense)
    (sparse / "report.json").write_text(
        re.sub(r'"objective": \d+', '"objective": 1', claimed).replace("feasible", "optimal")
    )
    again = checkpoint.report(sparse, tmp_path / "page.html", against=dense)
    edited = "times.json is not of the run that report.json tells of, so no times are shown."
    assert edited in again.notes
    assert (
        replace(again, notes=tuple(note for note in again.notes if note != edited)).to_json()
        == honest.to_json()
    )
    tensors = {
        name: t for file in dense.glob("*.safetensors") for name, t in load_file(file).items()
    }
    masks = checkpoint.open_masks(sparse)
    for t in honest.pruned:
        best = nmsolve.solve(tensors[t.name], t.pattern or "")
        assert t.objective == pytest.approx(
            np.abs(tensors[t.name].astype(float)[masks[t.name]]).sum(), rel=1e-12
        )
        assert t.bound == pytest.approx(best.bound, rel=1e-12)
        assert t.status == ("feasible" if t.gap and t.gap > 1e-6 else "optimal")
    assert any(t.gap and t.gap > 1e-3 for t in honest.pruned)  # greedy, on blocks
    assert "computed anew against dense" in (tmp_path / "page.html").read_text()
    assert "they were trained" not in (tmp_path / "page.html").read_text()


def test_weights_that_were_trained_since_are_pointed_out(tmp_path: Path) -> None:
    save_file({"fc.weight": weights(8, 8)}, tmp_path / "dense.safetensors")
    checkpoint.prune(tmp_path / "dense.safetensors", tmp_path / "sparse.safetensors", "2:4")
    save_file(
        {"fc.weight": load_file(tmp_path / "sparse.safetensors")["fc.weight"] * 2},
        tmp_path / "sparse.safetensors",
    )
    checkpoint.report(
        tmp_path / "sparse.safetensors",
        tmp_path / "page.html",
        against=tmp_path / "dense.safetensors",
    )
    assert (
        "Kept weights differ from those of dense.safetensors in 1 of 1 tensors with a mask"
        in (tmp_path / "page.html").read_text()
    )


def test_masks_that_were_not_applied_are_pointed_out(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """A dense shard put back, and masks that `solve` wrote beside weights that nobody pruned."""
    dense, sparse = folders
    checkpoint.report(sparse, tmp_path / "page.html")
    assert "not zero where" not in (tmp_path / "page.html").read_text()
    (sparse / "model-00001-of-00002.safetensors").write_bytes(
        (dense / "model-00001-of-00002.safetensors").read_bytes()
    )
    checkpoint.report(sparse, tmp_path / "page.html")
    assert (
        "not zero where their masks drop them, in 12 of 18 tensors"
        in (tmp_path / "page.html").read_text()
    )
    save_file({"fc.weight": weights(8, 8)}, tmp_path / "one.safetensors")
    checkpoint.solve(tmp_path / "one.safetensors", tmp_path / "one.masks.safetensors", "2:4")
    checkpoint.report(tmp_path / "one.safetensors", tmp_path / "page.html")
    assert (
        "not zero where their masks drop them, in 1 of 1 tensors"
        in (tmp_path / "page.html").read_text()
    )
    with pytest.raises(nmsolve.InputError, match="holds masks alone"):
        checkpoint.report(tmp_path / "one.masks.safetensors", tmp_path / "page.html")
    for mask in (sparse / "masks").iterdir():
        mask.unlink()
    with pytest.raises(
        nmsolve.InputError, match=r"report\.json is there, but none of its masks are"
    ):
        checkpoint.report(sparse, tmp_path / "page.html")


def test_of_a_checkpoint_that_others_pruned(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Without report or masks, patterns are read off the zeros, and reasons off the names."""
    _, sparse = folders
    (sparse / "report.json").unlink()
    with_masks = checkpoint.report(sparse, tmp_path / "page.html")
    for mask in (sparse / "masks").iterdir():
        mask.unlink()
    without = checkpoint.report(sparse, tmp_path / "page.html")
    for found in (with_masks, without):
        patterns = {t.name: str(t.pattern) for t in found.pruned}
        assert set(patterns.values()) == {"2:4", "4:8T"}
        assert all((pattern == "4:8T") == (".mlp." in name) for name, pattern in patterns.items())
        assert {t.density for t in found.pruned} == {0.5}
    assert {t.reason for t in without.dense if "lm_head" in t.name} == {
        "its zeros, if any, follow no n:m pattern"
    }
    assert "No report.json is beside this checkpoint" in (tmp_path / "page.html").read_text()


@given(st.sampled_from(["2:4", "1:4", "2:4T", "3:4", "4:8T"]), st.integers(0, 99))
def test_a_pattern_is_read_off_its_masks(pattern: str, seed: int) -> None:
    mask = nmsolve.solve(weights(64, 64, seed=seed), pattern).mask
    assert str(pattern_of(mask)) == pattern


def test_what_does_not_belong_together_is_refused(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    dense, sparse = folders
    write_folder(tmp_path / "other", width=64)
    with pytest.raises(
        nmsolve.InputError, match=r"other has no tensor 'model\.layers.* that is BF16 of shape"
    ):
        checkpoint.report(sparse, tmp_path / "page.html", against=tmp_path / "other")
    (sparse / "report.json").write_text(
        (sparse / "report.json").read_text().replace("q_proj", "p_proj")
    )
    with pytest.raises(nmsolve.InputError, match=r"report\.json is of another checkpoint"):
        checkpoint.report(sparse, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
    assert checkpoint.report(dense, tmp_path / "page.html").pruned == ()
