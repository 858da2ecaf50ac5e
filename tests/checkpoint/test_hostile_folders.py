"""Folders with hostile indexes, missing shards, links, odd companions and odd names of files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from nmsolve import checkpoint
from tests.checkpoint import hostile
from tests.checkpoint.hostile import PATTERN, UNFINISHED, Box, error_line, limited, snapshot
from tests.checkpoint.hostile_files import DEEP, edit_json, put, write_shards

ended = hostile.ended

# Folders: indexes and shards.

MAPS: dict[str, object] = {
    "no object": [],
    "null": None,
    "text": "model-1.safetensors",
    "number": 7,
    "empty": {},
    "to null": {"fc1.weight": None},
    "to a number": {"fc1.weight": 1},
    "to a list": {"fc1.weight": ["model-1.safetensors"]},
    "to nothing": {"fc1.weight": ""},
    "to the folder above": {"fc1.weight": "../model-1.safetensors"},
    "to another folder": {"fc1.weight": "more/model-1.safetensors"},
    "to the folder": {"fc1.weight": "./model-1.safetensors"},
    "to the root": {"fc1.weight": "/model-1.safetensors"},
    "backwards": {"fc1.weight": "..\\model-1.safetensors"},
    "to a pickle": {"fc1.weight": "model-1.bin"},
    "to the config": {"fc1.weight": "config.json"},
    "to no file": {"fc1.weight": "model-9.safetensors"},
    "to escapes": {"fc1.weight": "\x1b[2J\x07.safetensors"},
    "to more escapes": {"fc1.weight": "\x9b2J\u202e.safetensors"},
    "to null characters": {"fc1.weight": "model-1\0.safetensors"},
    "to lines": {"fc1.weight": "model\n-1.safetensors"},
    "a long name": {"fc1.weight": "x" * 5000 + ".safetensors"},
    "a tensor elsewhere": {
        "fc1.weight": "model-2.safetensors",
        "fc2.weight": "model-2.safetensors",
    },
    "a tensor nowhere": {"fc1.weight": "model-1.safetensors", "c\x1b[2J": "model-2.safetensors"},
}


@pytest.mark.parametrize("case", MAPS)
def test_hostile_indexes(case: str, box: Box) -> None:
    src = write_shards(box / "dense")
    edit_json(src / "model.safetensors.index.json", put(weight_map=MAPS[case]))
    shutil.copy(src / "model-1.safetensors", box / "model-1.safetensors")
    shutil.copy(src / "model-1.safetensors", src / "more")
    for line in box.all_refused(src):
        assert "model.safetensors.index.json" in line


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b"\xff\xff",
        b"[" * DEEP,
        b'{"weight_map":' * DEEP,
        b'{"weight_map": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda text: repr(text[:20]),
)
def test_files_that_are_no_index(text: bytes, box: Box) -> None:
    src = write_shards(box / "dense")
    (src / "model.safetensors.index.json").write_bytes(text)
    for line in box.all_refused(src):
        assert "model.safetensors.index.json" in line


def test_half_a_character_in_an_index(box: Box) -> None:
    """Standard error writes what it cannot encode as an escape, but not as pytest replaces it."""
    src = write_shards(box / "dense")
    edit_json(
        src / "model.safetensors.index.json", put(weight_map={"fc1.weight": "\ud800.safetensors"})
    )
    found = limited([["prune", src, box / "out", *PATTERN]])[0]
    assert "index.json" in found.line


def test_shards_that_are_missing_or_damaged(box: Box) -> None:
    src = write_shards(box / "dense")
    whole = (src / "model-2.safetensors").read_bytes()
    (src / "model-2.safetensors").write_bytes(whole[:-1])
    for line in box.all_refused(src):
        assert "model-2.safetensors" in line
    (src / "model-2.safetensors").unlink()
    for line in box.all_refused(src):
        assert "model-2.safetensors" in line
        assert "'fc2.weight'" in line
    (src / "model-2.safetensors").symlink_to("nothing")
    for line in box.all_refused(src):
        assert "model-2.safetensors" in line
    (src / "model-2.safetensors").unlink()
    (src / "model-2.safetensors").mkdir()
    for line in box.all_refused(src):
        assert "model-2.safetensors" in line


def test_a_name_in_two_files(box: Box) -> None:
    src = write_shards(box / "dense")
    (src / "model.safetensors.index.json").unlink()
    shutil.copy(src / "model-1.safetensors", src / "model.safetensors")
    for line in box.all_refused(src):
        for part in ("'fc1.weight'", "model-1.safetensors", "model.safetensors"):
            assert part in line


def test_folders_without_weights(box: Box) -> None:
    for name in ("nothing.safetensors", "nothing.npz", "nothing"):
        (box / name).mkdir()
        for line in box.all_refused(box / name):
            assert name in line
            assert "no .safetensors" in line


@pytest.mark.parametrize(
    "name",
    [
        "absent",
        "absent.npy",
        "absent.safetensors",
        "absent.npz",
        "a/b.npy",
        "x" * 300,
        "dense/config.json/x",
    ],
)
def test_what_is_not_there(name: str, box: Box) -> None:
    write_shards(box / "dense")
    for line in box.all_refused(box / name):
        assert name in line
    assert name in box.refused("prune", box / "dense", box / "out", *PATTERN, "--exclude", name)


@pytest.mark.parametrize("suffix", ["", ".gguf", ".h5", ".onnx", ".msgpack", ".txt"])
def test_files_of_other_kinds(suffix: str, box: Box) -> None:
    src = box / f"dense{suffix}"
    src.write_bytes(b"GGUF" * 100)
    for line in box.all_refused(src):
        assert src.name in line


# Folders with more in them.


def test_links_as_in_a_cache(box: Box) -> None:
    """Every file of a snapshot is a link to a blob with another name; what is written are files."""
    src = write_shards(box / "dense")
    (box / "blobs").mkdir()
    (box / "snapshot").mkdir()
    for number, file in enumerate(sorted(path for path in src.iterdir() if path.is_file())):
        shutil.copy(file, box / "blobs" / f"{number:064x}")
        (box / "snapshot" / file.name).symlink_to(f"../blobs/{number:064x}")
    before = snapshot(box.path)
    assert box.run("prune", box / "snapshot", box / "out", *PATTERN)[0] == 0
    assert {
        name: entry
        for name, entry in snapshot(box.path).items()
        if not name.startswith(str(box / "out"))
    } == before
    assert not [path for path in (box / "out").rglob("*") if path.is_symlink()]
    assert (box / "out" / "config.json").read_text() == "{}"
    one = box / "snapshot" / "model-1.safetensors"
    assert box.run("prune", one, box / "one.safetensors", *PATTERN)[0] == 0
    assert (box / "one.safetensors").read_bytes() == (
        box / "out" / "model-1.safetensors"
    ).read_bytes()


def test_folders_that_are_links_are_not_entered(box: Box) -> None:
    src = write_shards(box / "dense")
    (src / "loop").symlink_to(".")
    (src / "more" / "up").symlink_to("..")
    (box / "other").mkdir()
    (src / "other").symlink_to("../other")
    assert box.run("prune", src, box / "out", *PATTERN)[0] == 0
    assert {path.name for path in (box / "out" / "more").iterdir()} == {"vocab.txt"}
    assert not (box / "out" / "loop").exists()
    assert not (box / "out" / "other").exists()


@pytest.mark.parametrize("name", ["broken.json", "more/broken.json", "circle"])
def test_companions_that_cannot_be_copied_are_seen_at_the_beginning(name: str, box: Box) -> None:
    """Rather than when hours of solving are over."""
    src = write_shards(box / "dense")
    (src / name).symlink_to(Path(name).name if name == "circle" else "nothing")
    assert Path(name).name in box.prune_refused(src, begun=True)
    code, _, err = box.run("prune", src, box / "other", *PATTERN)
    assert code == 2
    assert len(err.splitlines()) == 1


def test_hidden_files_and_folders_are_passed_by(box: Box) -> None:
    src = write_shards(box / "dense")
    (src / ".git").mkdir(0)
    (src / ".broken").symlink_to("nothing")
    assert box.run("prune", src, box / "out", *PATTERN)[0] == 0
    assert not [path for path in (box / "out").iterdir() if path.name.startswith(".")]
    (src / ".git").chmod(0o700)


@pytest.mark.parametrize(
    "name",
    [
        "masks",
        "report.json/a.txt",
        "times.json/a.txt",
        "masks/model-1.safetensors/a.txt",
        "model-1.safetensors.part",
    ],
)
def test_companions_that_are_named_like_what_is_written(name: str, box: Box) -> None:
    src = write_shards(box / "dense")
    (src / name).parent.mkdir(parents=True, exist_ok=True)
    (src / name).write_text("theirs")
    if box.survives("prune", src, box / "out", *PATTERN, begun=True):
        assert checkpoint.verify(box / "out").ok
        assert len(checkpoint.open_masks(box / "out")) == 2
        assert (box / "out" / "config.json").read_text() == "{}"
        assert not (box / "out" / UNFINISHED).exists()


def test_a_thousand_folders_in_one_another(box: Box) -> None:
    src = write_shards(box / "dense")
    here = os.open(src, os.O_RDONLY)
    for _ in range(1100):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    try:
        code, out, err = box.run("prune", src, box / "out", *PATTERN)
        assert code == 0 or error_line(code, out, err)
    finally:
        subprocess.run(["rm", "-rf", src], check=True)


@pytest.mark.parametrize(
    "place", ["source", "companion", "shard", "folder of companions", "destination", "left behind"]
)
def test_file_names_that_are_no_text(place: str, box: Box) -> None:
    """They are only bytes to the system, and come as half characters."""
    src = write_shards(box / "dense")
    odd = os.fsdecode(b"caf\xe9")
    out = box / "out"
    if place == "source":
        src = src.rename(box / odd)
    elif place == "companion":
        (src / f"{odd}.txt").write_text("theirs")
    elif place == "shard":
        (src / "model.safetensors.index.json").unlink()
        (src / "model-1.safetensors").rename(src / f"{odd}.safetensors")
    elif place == "folder of companions":
        (src / "more").rename(src / odd)
    elif place == "destination":
        out = box / odd
    else:
        (src / f"{odd}.bin").write_text("theirs")
    before = snapshot(src)
    argv = [sys.executable, "-m", "nmsolve", "prune", src, out, *PATTERN]
    ran = subprocess.run(
        argv,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=50,
        check=False,
    )
    assert "Traceback" not in ran.stderr, ran.stderr
    assert snapshot(src) == before
    if ran.returncode:
        error_line(ran.returncode, ran.stdout, ran.stderr, begun=True)
        assert not out.exists() or {path.name for path in out.iterdir()} <= {UNFINISHED}
    else:
        assert checkpoint.verify(out).ok
        assert not (out / UNFINISHED).exists()


@pytest.mark.parametrize("step", ["folder", "no number", "empty", "missing", "companion", "listed"])
def test_file_names_that_drive_a_terminal(step: str, box: Box) -> None:
    """Whatever is done with them, they are shown, and not obeyed: `Box.run` looks for that."""
    odd = "m\x1b]0;x\x07\x9b2J"
    src = write_shards(box / "dense")
    (src / "model.safetensors.index.json").unlink()
    if step == "folder":
        assert box.run("prune", src.rename(box / odd), box / "out", *PATTERN)[0] == 0
    elif step == "no number":
        save_file({"fc.weight": np.full((8, 8), np.nan, np.float32)}, src / f"{odd}.safetensors")
        box.prune_refused(src, begun=True)
    elif step == "empty":
        (src / f"{odd}.safetensors").write_bytes(b"")
        box.all_refused(src)
    elif step == "missing":
        box.all_refused(box / f"{odd}.safetensors")
    elif step == "companion":
        (src / f"{odd}.json").symlink_to("nothing")
        box.prune_refused(src, begun=True)
    else:
        (box / "other").mkdir()
        (box / "other" / f"{odd}.txt").write_text("")
        box.all_refused(box / "other")
