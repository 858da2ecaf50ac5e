"""Masks, weights, times and shards that are not the ones that report.json tells of: `report` and
`verify` say so, or refuse.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import nmsolve
from nmsolve import checkpoint
from nmsolve.bits import pack
from tests.checkpoint import hostile
from tests.checkpoint.checkpoint_files import weights, write_folder
from tests.checkpoint.hostile import Box
from tests.checkpoint.hostile_files import edit_json

ended = hostile.ended

TRAINED = "other values than those of the pruning (trained since, or of another run)"


@pytest.fixture
def done(box: Box) -> Path:
    """A pruned file beside the dense one: a weight that is pruned, another, and a bias that is
    not.
    """
    tensors = {
        "fc1.weight": weights(16, 16),
        "fc2.weight": weights(8, 16, seed=1),
        "fc1.bias": weights(16),
    }
    save_file(tensors, box / "dense.safetensors")
    checkpoint.prune(box / "dense.safetensors", box / "sparse.safetensors", "2:4", threads=1)
    return box / "sparse.safetensors"


def set_mask(path: Path, name: str, mask: np.ndarray) -> None:
    """Put another mask in the place of one, as packed, and nothing else."""
    masks = path.with_name("sparse.masks.safetensors")
    with safe_open(masks, "numpy") as file:
        metadata = file.metadata()
    save_file(load_file(masks) | {name: pack(mask)}, masks, metadata=metadata)


def change_weights(
    path: Path, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
) -> None:
    tensors = load_file(path)
    save_file(tensors | change(tensors), path)


def complement(dense: Path, sparse: Path) -> np.ndarray:
    """The worst mask of fc1 that holds 2:4, and the weights that it keeps."""
    mask = ~checkpoint.open_masks(sparse)["fc1.weight"]
    set_mask(sparse, "fc1.weight", mask)
    change_weights(sparse, lambda _: {"fc1.weight": load_file(dense)["fc1.weight"] * mask})
    return mask


def text(box: Box) -> str:
    return (box / "page.html").read_text()


def test_the_complement_of_a_mask_is_not_certified(done: Path, box: Box) -> None:
    dense = box / "dense.safetensors"
    mask = complement(dense, done)
    assert checkpoint.verify(done).ok
    line = box.refused("report", done, "-o", box / "page.html")
    assert "the mask of tensor 'fc1.weight' in" in line
    assert "sparse.masks.safetensors is not the one that" in line
    assert "sparse.report.json" in line
    assert "--against DENSE" in line
    assert "nmsolve verify" in line
    assert not (box / "page.html").exists()
    found = {t.name: t for t in checkpoint.report(done, box / "page.html", against=dense)}
    original = np.abs(load_file(dense)["fc1.weight"].astype(float))
    other, same = found["fc1.weight"], found["fc2.weight"]
    assert other.objective == pytest.approx(original[mask].sum(), rel=1e-12)
    assert other.bound == pytest.approx(original.sum() - original[mask].sum(), rel=1e-12)
    assert (other.status, other.seconds) == ("feasible", None)
    assert (same.status, same.seconds is None) == ("optimal", False)
    assert other.gap is not None
    assert other.gap > 0.3
    assert "1 tensor (fc1.weight) has another mask than sparse.report.json tells of" in text(box)


def test_another_run_of_the_same_shapes(done: Path, box: Box) -> None:
    save_file(
        {name: t[::-1].copy() for name, t in load_file(box / "dense.safetensors").items()},
        box / "second.safetensors",
    )
    checkpoint.prune(
        box / "second.safetensors", box / "run" / "sparse.safetensors", "2:4", threads=1
    )
    for name in ("sparse.safetensors", "sparse.masks.safetensors"):
        shutil.copy(box / "run" / name, box / name)
    assert checkpoint.verify(done).ok
    assert "the mask of tensor 'fc1.weight'" in box.refused("report", done, "-o", box / "page.html")
    found = checkpoint.report(done, box / "page.html", against=box / "second.safetensors")
    assert all(t.status == "optimal" and t.seconds is None for t in found.pruned)
    honest = checkpoint.report(box / "run" / "sparse.safetensors", box / "other.html")
    assert [t.digest for t in found.pruned] == [t.digest for t in honest.pruned]
    assert "2 tensors (fc1.weight, fc2.weight) have another mask" in text(box)
    assert "1 tensor (fc1.bias) has other values than when the checkpoint was pruned" in text(box)
    assert "another mask" not in (box / "other.html").read_text()


@pytest.mark.parametrize("factor", [-3, 1.5])
def test_kept_weights_with_other_values(factor: float, done: Path, box: Box) -> None:
    change_weights(done, lambda tensors: {"fc1.weight": tensors["fc1.weight"] * np.float32(factor)})
    code, out, _ = box.run("report", done, "-o", box / "page.html")
    assert code == 0
    for where in (out, text(box)):
        assert "1 tensor (fc1.weight) has " + TRAINED in where
        assert "kept |W| and gap are those of the pruning" in where
    found = checkpoint.report(done, box / "page.html", against=box / "dense.safetensors")
    assert "of the pruning" not in str(found)
    assert "Kept weights differ from those of dense.safetensors in 1 of 2" in str(found)


@pytest.mark.parametrize("fortran", [False, True])
def test_arrays_of_either_order(fortran: bool, box: Box) -> None:
    """What is compared are the bytes of the file, in the order in which they are there; −0 is what
    masking leaves.
    """
    W = weights(8, 16)
    np.save(box / "dense.npy", np.asfortranarray(W) if fortran else W)
    checkpoint.prune(box / "dense.npy", box / "sparse.npy", "2:4", threads=1)
    assert checkpoint.report(box / "sparse.npy", box / "page.html").notes == ()
    mask = checkpoint.open_masks(box / "sparse.npy")["arr_0"]
    for made, noted in ((W * mask, 0), (2 * W * mask, 1)):
        np.save(box / "sparse.npy", np.asfortranarray(made) if fortran else made)
        assert len(checkpoint.report(box / "sparse.npy", box / "page.html").notes) == noted


def test_as_it_was_there_is_nothing_to_note(done: Path, box: Box) -> None:
    assert checkpoint.report(done, box / "page.html").notes == ()
    change_weights(done, lambda tensors: {"fc1.bias": tensors["fc1.bias"] + 1})
    (note,) = checkpoint.report(done, box / "page.html").notes
    assert (
        note
        == "1 tensor (fc1.bias) has other values than when the checkpoint was pruned; no mask is "
        "applied there."
    )


def test_times_of_another_run_are_not_shown(done: Path, box: Box) -> None:
    edit_json(box / "sparse.times.json", lambda times: times | {"report": "0" * 64})
    found = checkpoint.report(done, box / "page.html")
    assert {t.seconds for t in found} == {None}
    assert (
        "sparse.times.json is not of the run that sparse.report.json tells of, so no times are "
        "shown." in text(box)
    )
    edit_json(
        box / "sparse.times.json", lambda times: times["seconds"]
    )  # as earlier versions wrote it
    assert None not in {t.seconds for t in checkpoint.report(done, box / "page.html")}


SHARD = "model-00002-of-00002.safetensors"


@pytest.fixture
def shards(box: Box) -> Path:
    """A pruned folder, one shard of which is dense again and has lost its masks."""
    write_folder(box / "dense", layers=2, width=16, dtype=np.dtype(np.float32))
    checkpoint.prune(box / "dense", box / "out", "2:4", threads=1)
    shutil.copy(box / "dense" / SHARD, box / "out" / SHARD)
    (box / "out" / "masks" / SHARD).unlink()
    return box / "out"


def test_a_shard_whose_masks_are_gone_is_no_shard_that_holds(shards: Path, box: Box) -> None:
    line = box.refused("verify", shards)
    gone = [
        t["name"]
        for t in json.loads((shards / "report.json").read_text())["tensors"]
        if t["file"] == SHARD and t["pattern"]
    ]
    assert (
        f"calls {len(gone)} tensors pruned that have no mask now: {gone[0]!r}, {gone[1]!r}, "
        f"{gone[2]!r}, …;" in line
    )
    assert "report.json" in line
    assert "--pattern" in line
    assert box.run("verify", shards, "--pattern", "2:4")[0] == 1
    (shards / "report.json").unlink()
    code, out, _ = box.run("verify", shards)  # nothing is left that would say so
    assert code == 0
    assert "not checked: it has no mask" in out


def test_nothing_else_of_a_report_is_trusted(shards: Path) -> None:
    """Whether it names tensors that are not there, or cannot be read."""
    whole = json.loads((shards / "report.json").read_text())
    kept = [t for t in whole["tensors"] if t["file"] != SHARD]
    more = next(t for t in kept if t["pattern"]) | {"name": "more.weight", "status": "optimal"}
    reports: list[object] = [whole | {"tensors": [*kept, more]}, whole | {"version": 99}, [], {}]
    for edited in reports:
        (shards / "report.json").write_text(json.dumps(edited))
        assert checkpoint.verify(shards).ok
    (shards / "report.json").unlink()
    (shards / "report.json").mkdir()
    assert checkpoint.verify(shards).ok


def test_masks_alone_of_which_a_file_is_gone(box: Box) -> None:
    write_folder(box / "dense", layers=2, width=16, dtype=np.dtype(np.float32))
    checkpoint.solve(box / "dense", box / "out", "2:4", threads=1)
    assert checkpoint.verify(box / "out").ok
    (box / "out" / "masks" / SHARD).unlink()
    with pytest.raises(
        nmsolve.InputError, match=r"report\.json calls 7 tensors pruned that have no mask now"
    ):
        checkpoint.verify(box / "out")
