"""`resume` on a run that is finished, or whose parts are damaged: the same answer again, or
none.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import nmsolve
from nmsolve import checkpoint
from tests.checkpoint import hostile
from tests.checkpoint.checkpoint_files import contents, weights, write_folder
from tests.checkpoint.hostile import Box
from tests.checkpoint.hostile_files import each_tensor, edit_json, put, without
from tests.checkpoint.test_kills import interrupted

ended = hostile.ended


def seconds_ago(path: Path, change: Callable[[Path], object]) -> None:
    """Change a file behind the back of its time."""
    status = path.stat()
    change(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def flip(path: Path, at: int = -3) -> None:
    """One bit of a file, or of a weight in it."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def new_values(path: Path) -> None:
    save_file({name: -2 * value for name, value in load_file(path).items()}, path)


@pytest.fixture
def done(box: Box) -> Path:
    """A folder that has been pruned to `out`."""
    write_folder(box / "dense", layers=1, width=16, dtype=np.dtype(np.float32))
    checkpoint.prune(box / "dense", box / "out", "2:4T", threads=1)
    return box / "dense"


def again(box: Box, *options: str) -> str:
    """Why resuming is refused."""
    return box.refused(
        "prune",
        box / "dense",
        box / "out",
        "--pattern",
        "2:4T",
        "--threads",
        "1",
        "--resume",
        *options,
    )


SHARD = "model-00001-of-00002.safetensors"


def test_as_it_was(done: Path, box: Box) -> None:
    before = contents(box.path)
    code, out, _ = box.run(
        "prune", done, box / "out", "--pattern", "2:4T", "--threads", "1", "--resume"
    )
    assert code == 0
    assert "tensors pruned" in out
    assert contents(box.path) == before


def test_the_report_tells_what_a_shell_can_check(done: Path, box: Box) -> None:
    report = json.loads((box / "out" / "report.json").read_text())
    assert report["nmsolve"] == nmsolve.__version__
    for entry in report["files"]:
        data, made = (done / entry["name"]).read_bytes(), (box / "out" / entry["name"]).read_bytes()
        length = 8 + int.from_bytes(data[:8], "little")
        assert (
            entry["header"]
            == hashlib.sha256(data[:length]).hexdigest()
            == hashlib.sha256(made[:length]).hexdigest()
        )
        assert (entry["source_size"], entry["size"]) == (len(data), len(made))
        assert entry["masks_size"] == (box / "out" / "masks" / entry["name"]).stat().st_size
        tensors, masks = (
            load_file(box / "out" / entry["name"]),
            load_file(box / "out" / "masks" / entry["name"]),
        )
        for tensor in (t for t in report["tensors"] if t["file"] == entry["name"]):
            assert tensor["digest"] == hashlib.sha256(tensors[tensor["name"]].tobytes()).hexdigest()
            if tensor["pattern"]:
                assert (
                    tensor["mask_digest"]
                    == hashlib.sha256(masks[tensor["name"]].tobytes()).hexdigest()
                )
            else:
                assert tensor["mask_digest"] is None
    assert {entry["name"] for entry in report["copied"]} == {
        *("config.json", "tokenizer.json", "model.safetensors.index.json", "1_Pooling/config.json")
    }
    for entry in report["copied"]:
        data = (box / "out" / entry["name"]).read_bytes()
        assert (entry["size"], entry["digest"]) == (len(data), hashlib.sha256(data).hexdigest())
    times = json.loads((box / "out" / "times.json").read_text())
    assert times["modified"] == {
        entry["name"]: (done / entry["name"]).stat().st_mtime_ns for entry in report["files"]
    }


CHANGED: dict[str, tuple[str, Callable[[Path], object]]] = {
    "time": (SHARD, lambda path: os.utime(path, ns=(1, 1))),
    "values": (SHARD, new_values),
    "values, not the time": (SHARD, lambda path: seconds_ago(path, new_values)),
    "one bit, not the time": (SHARD, lambda path: seconds_ago(path, flip)),
    "size": (SHARD, lambda path: save_file(load_file(path) | {"more.weight": weights(8, 8)}, path)),
    "header": (
        SHARD,
        lambda path: seconds_ago(
            path, lambda path: path.write_bytes(path.read_bytes().replace(b'"pt"', b'"np"'))
        ),
    ),
    "config": (
        "config.json",
        lambda path: seconds_ago(path, lambda path: path.write_text('{"model_type": "llamb"}')),
    ),
    "a file more": ("new.txt", lambda path: path.write_text("new")),
    "weights more": ("new.bin", lambda path: path.write_text("new")),
    "a file less": ("tokenizer.json", os.unlink),
}


@pytest.mark.parametrize("case", CHANGED)
def test_a_source_that_changed_since(case: str, done: Path, box: Box) -> None:
    name, change = CHANGED[case]
    change(done / name)
    line = again(box)
    assert name in line
    assert "report.json" in line
    assert "name another DST" in line


def test_dropped_weights_that_changed_since(done: Path, box: Box) -> None:
    """What is kept of them, and so all that was written, is as before; another mask is the best
    now.
    """
    name = "model.layers.0.mlp.up_proj.weight"
    mask = checkpoint.open_masks(box / "out")[name]
    (path,) = (path for path in done.glob("*.safetensors") if name in load_file(path))
    tensors = load_file(path)
    tensors[name] = np.where(mask, tensors[name], np.float32(100))
    seconds_ago(path, lambda path: save_file(tensors, path, {"format": "pt"}))
    line = again(box)
    assert repr(name) in line
    assert path.name in line


DAMAGED: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a bit of a weight": (SHARD, flip),
    "a bit of the header": (SHARD, lambda path: flip(path, 20)),
    "dense again": (
        SHARD,
        lambda path: shutil.copyfile(path.parents[1] / "dense" / path.name, path),
    ),
    "cut": (SHARD, lambda path: os.truncate(path, path.stat().st_size - 1)),
    "weights gone": (SHARD, os.unlink),
    "a folder": (SHARD, lambda path: (path.unlink(), path.mkdir())),
    "a bit of a mask": (f"masks/{SHARD}", lambda path: flip(path, -1)),
    "what masks are called": (f"masks/{SHARD}", lambda path: flip(path, 60)),
    "masks gone": (f"masks/{SHARD}", os.unlink),
    "config": ("config.json", flip),
    "index gone": ("model.safetensors.index.json", os.unlink),
    "index": ("model.safetensors.index.json", flip),
    "a folder's file": ("1_Pooling/config.json", lambda path: path.write_text("{ }")),
    "a number of the report": (
        "report.json",
        lambda path: edit_json(path, each_tensor(objective=1.0)),
    ),
    "times gone": ("times.json", os.unlink),
    "times empty": ("times.json", lambda path: path.write_text("{")),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_was_written_is_damaged(case: str, done: Path, box: Box) -> None:
    name, change = DAMAGED[case]
    change(box / "out" / name)
    line = again(box)
    assert str(box / "out" / name) in line


def test_other_options(done: Path, box: Box) -> None:
    for options, told in (
        (("--exclude", "lm_head"), "exclude: [] then, ['lm_head'] now"),
        (("--include", "model"), "include: None then, ['model'] now"),
        (("--padding", "dense"), "padding: 'skip' then, 'dense' now"),
        (("--method", "greedy"), "method: 'exact' then, 'greedy' now"),
    ):
        assert told in again(box, *options)
    line = box.refused("solve", done, "--pattern", "2:4T", "--resume", "--out", box / "out")
    assert "weights too then" in line
    checkpoint.solve(done, box / "masks", "2:4T", threads=1)
    line = box.refused("prune", done, box / "masks", "--pattern", "2:4T", "--resume")
    assert "masks alone then" in line


def test_another_version(done: Path, box: Box) -> None:
    edit_json(box / "out" / "report.json", put(nmsolve="0.0.9"))
    assert f"nmsolve 0.0.9 then, {nmsolve.__version__} now" in again(box)


def test_reports_of_version_1_are_read_and_not_gone_on_with(done: Path, box: Box) -> None:
    """They say nothing of what they were made of."""

    def older(whole: dict[str, object]) -> dict[str, object]:
        for key in ("nmsolve", "files", "copied", "notes"):
            whole = without(key)(whole)
        tensors = [without("digest")(without("mask_digest")(tensor)) for tensor in whole["tensors"]]  # type: ignore[attr-defined]
        return whole | {"version": 1, "tensors": tensors}

    edit_json(box / "out" / "report.json", older)
    edit_json(box / "out" / "times.json", lambda whole: whole["seconds"])
    found = checkpoint.report(box / "out", box / "page.html")
    assert all(t.seconds is not None for t in found)
    assert found.pruned[0].status == "optimal"
    assert "did not note what it was made of" in again(box)


def test_a_tensor_that_is_planned_otherwise_now(done: Path, box: Box) -> None:
    """As with another version of a library that is asked."""

    def other(whole: dict[str, object]) -> dict[str, object]:
        whole["tensors"][-1]["reason"] = "because"  # type: ignore[index]
        return whole

    edit_json(box / "out" / "report.json", other)
    assert "because then" in again(box)


@pytest.mark.parametrize("suffix", [".safetensors", ".npy", ".npz", " packed.npz"])
def test_files(suffix: str, box: Box) -> None:
    src, out = box / f"dense{suffix}", box / f"out{suffix}"
    tensors = {"fc.weight": weights(8, 8), "fc.bias": weights(8), "odd.weight": weights(3, 4)}

    def write(scale: float) -> None:
        if suffix == ".safetensors":
            save_file({name: value * np.float32(scale) for name, value in tensors.items()}, src)
        elif suffix == ".npy":
            np.save(src, tensors["fc.weight"] * scale)
        else:
            save = np.savez_compressed if "packed" in suffix else np.savez
            save(src, **{name: value * scale for name, value in tensors.items()})

    write(1)
    checkpoint.prune(src, out, "2:4", threads=1)
    status = src.stat()
    run = ("prune", src, out, "--pattern", "2:4", "--threads", "1", "--resume")
    assert box.run(*run)[0] == 0
    write(-1)  # the same sum of |W|; an archive's size may be another
    os.utime(src, ns=(1, status.st_mtime_ns))
    assert str(src.name) in box.refused(*run)
    write(1)
    os.utime(src, ns=(1, status.st_mtime_ns))
    if suffix == " packed.npz":  # dates of its members are in its bytes
        return
    assert box.run(*run)[0] == 0
    flip(out, -30 if suffix != ".npz" else out.read_bytes().index(b"NUMPY") + 200)
    assert str(out.name) in box.refused(*run)


def test_masks_alone(box: Box) -> None:
    write_folder(box / "dense", layers=1, width=16, dtype=np.dtype(np.float32))
    run = ("solve", box / "dense", "--pattern", "2:4T", "--resume", "--out", box / "masks")
    assert box.run(*run)[0] == 0
    assert box.run(*run)[0] == 0
    (path,) = (box / "dense").glob("model-00002*")
    seconds_ago(path, new_values)
    assert path.name in box.refused(*run)


def test_every_process_is_refused(done: Path, box: Box) -> None:
    """Under torchrun the first rank looks, and all stop."""
    flip(box / "out" / SHARD)
    start = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "nmsolve",
        "prune",
    ]
    argv = [*start, str(done), str(box / "out"), "--pattern", "2:4T", "--threads", "1", "--resume"]
    kept = {
        key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")
    } | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=50, env=kept, check=False)
    assert ran.returncode != 0
    assert sum(line.startswith("nmsolve: error: ") for line in ran.stderr.splitlines()) == 1
    assert str(box / "out" / SHARD) in ran.stderr


# Runs that are not finished.


PARTS: dict[str, Callable[[Path], object]] = {
    "gone": os.unlink,
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "a bit": flip,
    "every byte of the header": lambda path: path.write_bytes(bytes(300) + path.read_bytes()[300:]),
}


@pytest.mark.parametrize("kind", ["weights", "masks"])
@pytest.mark.parametrize("case", PARTS)
def test_parts_that_were_damaged_are_made_again(case: str, kind: str, tmp_path: Path) -> None:
    """A journal says what was written, not what is there."""
    src = tmp_path / "dense"
    write_folder(src, layers=1, width=16, dtype=np.dtype(np.float32), files=1)
    checkpoint.prune(src, tmp_path / "whole", "2:4T", threads=1)

    def stop(event: checkpoint.Progress) -> None:
        if event.done == event.of:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.prune(src, tmp_path / "out", "2:4T", threads=1, progress=stop)
    PARTS[case](
        tmp_path / "out" / ".nmsolve-unfinished" / kind / "model-00001-of-00001.safetensors"
    )
    checkpoint.prune(src, tmp_path / "out", "2:4T", threads=1, resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_config_that_changed_before_a_run_goes_on(tmp_path: Path) -> None:
    """Which tensor gets which pattern may depend on it."""
    write_folder(tmp_path / "dense")
    interrupted(tmp_path / "dense", tmp_path / "out")
    (tmp_path / "dense" / "config.json").write_text('{"model_type": "other"}')
    with pytest.raises(
        nmsolve.InputError, match=r"is another one \(config\.json has changed since\)"
    ):
        checkpoint.prune(tmp_path / "dense", tmp_path / "out", "2:4T", resume=True)


def test_a_plan_that_changed_before_a_run_goes_on(tmp_path: Path) -> None:
    write_folder(tmp_path / "dense")
    interrupted(tmp_path / "dense", tmp_path / "out")
    note = tmp_path / "out" / ".nmsolve-unfinished" / "run.json"
    edit_json(
        note,
        lambda run: run | {"plan": run["plan"] | {"lm_head.weight": ["1:4", 0, "error", None]}},
    )
    with pytest.raises(
        nmsolve.InputError, match=r"lm_head\.weight: \['1:4', 0, 'error', None\] then, \['2:4T', 1"
    ):
        checkpoint.prune(tmp_path / "dense", tmp_path / "out", "2:4T", resume=True)
