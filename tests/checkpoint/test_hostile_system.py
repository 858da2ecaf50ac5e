"""Full disks and little memory, each one line; pickles, which are not opened."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nmsolve import checkpoint
from tests.checkpoint import hostile
from tests.checkpoint.checkpoint_files import contents, weights
from tests.checkpoint.hostile import (
    PATTERN,
    UNFINISHED,
    Box,
    limited,
    mounting,
    on_small_disks,
    snapshot,
)
from tests.checkpoint.hostile_files import (
    described,
    edit_json,
    npy_header,
    put,
    tensor,
    write_safetensors,
    write_shards,
    write_weights,
)

ended = hostile.ended

# Disks.

#: How a disk is small: no file may be large, or it has a size, where the system allows to mount
#: one.
SMALL = {"quota": None} | ({} if mounting() is None else {"tmpfs": mounting()})


@pytest.mark.parametrize("disk", SMALL)
@pytest.mark.parametrize(
    "kind", ["folder", pytest.param("npz", marks=pytest.mark.long), "safetensors"]
)
def test_a_full_disk_is_one_line_and_a_larger_one_goes_on(kind: str, disk: str, box: Box) -> None:
    """Wherever it is that there is no more room: for the weights, masks, journal, archive,
    companions or the report.
    """
    (box / "disk").mkdir()
    if kind == "folder":
        src, name = write_shards(box / "dense"), "out"
        (src / "tokenizer.json").write_bytes(bytes(range(256)) * 64)
        save_file(
            {f"{i}.fc1.weight": weights(16, 48, seed=i) for i in range(6)},
            src / "model-1.safetensors",
        )
        edit_json(
            src / "model.safetensors.index.json",
            put(
                weight_map={
                    "0.fc1.weight": "model-1.safetensors",
                    "fc2.weight": "model-2.safetensors",
                }
            ),
        )
    else:
        src, name = box / f"dense.{kind}", f"out.{kind}"
        arrays = {f"{i}.fc1.weight": weights(16, 48, seed=i) for i in range(8)}
        np.savez_compressed(src, **arrays) if kind == "npz" else save_file(arrays, src)
    checkpoint.prune(src, box / f"whole/{name}", "2:4T", threads=1)
    whole, before = (
        contents(box / "whole" / name),
        snapshot(src) if src.is_dir() else src.read_bytes(),
    )
    found = on_small_disks(src, box / "disk", name, 4096 if disk == "tmpfs" else 1500, SMALL[disk])
    assert len(found) >= 4
    for run in found:
        assert (
            "No space left on device" if disk == "tmpfs" else "File too large"
        ) in run.first.line, run.size
        assert "disk" in run.first.line
        assert run.first.files == [], run.size
        assert (run.second.code, run.second.escaped) == (0, ""), (run.size, run.second)
        assert run.made == whole, run.size
    assert (snapshot(src) if src.is_dir() else src.read_bytes()) == before
    if disk == "tmpfs":
        assert (
            len({run.first.line.partition("while ")[2].partition(" ")[0] for run in found}) > 1
        )  # not always the same moment


def test_a_disk_that_is_full_for_the_page(box: Box) -> None:
    checkpoint.prune(
        write_weights(box / "dense.safetensors"), box / "sparse.safetensors", "2:4T", threads=1
    )
    before = snapshot(box.path)
    found = limited(
        [["report", box / "sparse.safetensors", "--out", box / "page.html"]], file_size=5000
    )[0]
    assert "page.html" in found.line
    assert snapshot(box.path) == before


def test_standard_output_that_is_full_ends_no_run(box: Box) -> None:
    write_weights(box / "dense.safetensors")
    argv = [
        sys.executable,
        "-m",
        "nmsolve",
        "prune",
        box / "dense.safetensors",
        box / "out.safetensors",
        *PATTERN,
    ]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            argv, stdout=full, stderr=subprocess.PIPE, text=True, timeout=50, check=False
        )
    assert "Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith(
        "nmsolve: stdout cannot be written (No space left on device)"
    )
    assert ended.returncode == 0
    assert checkpoint.verify(box / "out.safetensors").ok


# Memory.


def test_weights_and_masks_larger_than_memory_are_one_line(box: Box) -> None:
    """The files consist of holes, so that they take no room."""
    header = npy_header(described((2**13, 2**13)), b"")
    (box / "large.npy").write_bytes(header)
    os.truncate(box / "large.npy", len(header) + 2**28)
    entry = {"shape": [2**15, 2**14], "pattern": "2:4T", "axis": 1, "padding": "error"}
    metadata = {"format": "nmsolve-masks", "version": "1", "masks": json.dumps({"w": entry})}
    masks = write_safetensors(
        box / "large.safetensors", {"__metadata__": metadata, "w": tensor([2**26], 0, 2**26, "U8")}
    )
    os.truncate(masks, masks.stat().st_size + 2**26)
    commands: list[list[object]] = [
        ["prune", box / "large.npy", box / "out.npy", *PATTERN],
        ["solve", box / "large.npy", *PATTERN, "--out", box / "masks.safetensors"],
        ["solve", box / "large.npy", *PATTERN, "--out", box / "mask.npy"],
        ["verify", box / "large.npy", "2:4T"],
        ["report", box / "large.npy", "--out", box / "page.html"],
        ["verify", masks],
    ]
    wrong = {}
    for argv, found in zip(commands, limited(commands, memory=2**27), strict=True):
        if found.escaped or found.code != 2 or Path(str(argv[1])).name not in found.err:
            wrong[f"{argv[0]} {argv[1]}"] = found.escaped[-300:] or found.err
    for path in box.path.glob(f".*{UNFINISHED}"):
        shutil.rmtree(path)
    (box / "large.npy").unlink()
    masks.unlink()
    assert not wrong, "\n\n".join(f"{name}: {what}" for name, what in wrong.items())
    assert list(box.path.iterdir()) == []


# Pickles.


@pytest.mark.parametrize(
    "name", ["model.bin", "model.pt", "model.pth", "last.ckpt", "m.pkl", "m.pickle", "MODEL.BIN"]
)
def test_pickles_are_not_opened(name: str, box: Box) -> None:
    (box / name).write_bytes(b"cos\nabort\n(tR.")
    for line in box.all_refused(box / name):
        assert name in line
        assert "pickle" in line
        assert "torch.load" in line


def test_the_command_that_converts_a_pickle_works(box: Box) -> None:
    torch = pytest.importorskip("torch")
    tied = torch.from_numpy(weights(8, 8))
    state = {
        "fc1.weight": tied,
        "fc2.weight": tied,
        "fc3.weight": torch.from_numpy(weights(8, 16)).T,
        "half": torch.ones(4, 4).bfloat16(),
    }
    odd = box / 'my  model\'s $HOME `x` "weights".ckpt'
    torch.save({"state_dict": state, "epoch": 3}, odd)
    (box / "hub").mkdir()
    torch.save(state, box / "hub" / "pytorch_model.bin")
    for src in (odd, box / "hub"):
        line = box.prune_refused(src)
        command = line.partition("if you trust it: ")[2]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        ran = subprocess.run(
            command,
            shell=True,
            env=os.environ | {"PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        made = odd.with_suffix(".safetensors") if src == odd else box / "hub" / "model.safetensors"
        dst = box / "out.safetensors" if src == odd else box / "out"
        code, out, _ = box.run("prune", made if src == odd else src, dst, *PATTERN)
        assert code == 0
        assert re.search("[234] of 4 tensors pruned", out)
        assert (
            np.count_nonzero(
                load_file(dst if src == odd else dst / "model.safetensors")["fc3.weight"]
            )
            == 64
        )
    assert not (box / "out" / "pytorch_model.bin").exists()
