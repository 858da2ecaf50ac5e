"""Files that a command is to write: looked at before any work, whole or not there, and nothing of
the user's is replaced.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import nmsolve
from nmsolve import checkpoint
from nmsolve.output import Output
from tests.checkpoint import hostile
from tests.checkpoint.checkpoint_files import weights
from tests.checkpoint.hostile import Box, ended_after, error_line, limited, without_rights
from tests.checkpoint.hostile_files import write_shards, write_weights

ended = hostile.ended

TAKEN = {
    "config.json": b"{}",
    "notes": b"mine",
    "empty": b"",
    "weights of mine.npy": None,
    "model.safetensors": b"mine",
}


@pytest.fixture
def array(box: Box) -> Path:
    """An array that no solver takes: whatever else is wrong has been found before it was read."""
    wrong = weights(8, 8)
    wrong[3, 3] = np.nan
    np.save(box / "w.npy", wrong)
    np.save(box / "s.npy", weights(8, 8))
    assert "[3, 3]" in box.refused("solve", box / "w.npy", "2:4", "--out", box / "mask.npy")
    return box / "w.npy"


@pytest.mark.parametrize("name", TAKEN)
def test_a_mask_replaces_nothing(name: str, array: Path, box: Box) -> None:
    content = TAKEN[name]
    if content is None:
        np.save(box / name, weights(8, 8))
    else:
        (box / name).write_bytes(content)
    if name != "model.safetensors":
        assert "replace it by --force" in box.refused("solve", array, "2:4", "--out", box / name)
    else:
        assert name in box.refused("solve", array, "2:4", "--out", box / name)
        assert "--force is for a mask that is written as .npy" in box.refused(
            "solve", array, "2:4", "--out", box / name, "--force"
        )
    (box / "link").symlink_to(name)
    assert "link" in box.refused("solve", array, "2:4", "--out", box / "link")


def test_a_mask_replaces_what_is_forced(box: Box) -> None:
    np.save(box / "w.npy", weights(8, 8))
    (box / "mask").write_bytes(b"mine")
    (box / "mask").chmod(0o640)
    (box / "link").symlink_to("mask")
    assert box.run("solve", box / "w.npy", "2:4", "--out", box / "link", "--force")[0] == 0
    assert (box / "link").is_symlink()
    assert (np.load(box / "mask") == nmsolve.solve(weights(8, 8), "2:4").mask).all()
    assert stat.S_IMODE((box / "mask").stat().st_mode) == 0o640
    assert sorted(path.name for path in box.path.iterdir()) == ["link", "mask", "w.npy"]


@pytest.mark.parametrize("force", [(), ("--force",)])
@pytest.mark.parametrize("name", ["w.npy", "s.npy", "hard", "soft", "round/../w.npy"])
def test_an_input_is_never_replaced(
    name: str, force: tuple[str, ...], array: Path, box: Box
) -> None:
    (box / "round").mkdir()
    (box / "hard").hardlink_to(box / "s.npy")
    (box / "soft").symlink_to("w.npy")
    line = box.refused(
        "solve", array, "2:4", "--scores", box / "s.npy", "--out", box / name, *force
    )
    assert "reads, and never writes to" in line
    assert Path(name).name in line


def test_places_that_cannot_be_written_are_seen_at_the_beginning(array: Path, box: Box) -> None:
    (box / "folder").mkdir()
    (box / "file").write_text("mine")
    (box / "dangling").symlink_to("nothing")
    (box / "loop").symlink_to("loop")
    os.mkfifo(box / "pipe")
    for name, message in {
        "absent/mask.npy": "No such file",
        "folder": "is a folder",
        "file/mask.npy": "Not a directory",
        "dangling": "nothing, which is not there",
        "loop": "symbolic links",
        "pipe": "nothing reads",
        "x" * 300: "too long",
    }.items():
        with ended_after(5):
            line = box.refused("solve", array, "2:4", "--out", box / name)
        assert message in line
        assert name in line
    for name in (
        "mask.npz",
        "mask.json",
        "mask.pt",
        "mask.HTML",
    ):  # which would hold what their names do not say
        assert name in box.refused("solve", array, "2:4", "--out", box / name)


def test_no_permission_is_seen_at_the_beginning(array: Path, box: Box) -> None:
    for folder in [box.path, *box.path.parents]:
        if folder == Path(tempfile.gettempdir()):
            break
        folder.chmod(0o755)
    (box / "closed").mkdir(0o555)
    with without_rights():
        code, out, err = box.run("solve", array, "2:4", "--out", box / "closed" / "mask.npy")
    assert "Permission denied" in error_line(code, out, err)


def test_a_disk_that_is_full_for_the_mask(box: Box) -> None:
    np.save(box / "w.npy", weights(128, 128))
    (box / "forced").write_bytes(b"mine")
    before = hostile.snapshot(box.path)
    argv = ["solve", box / "w.npy", "2:4T", "--threads", "1", "--out"]
    ran = limited([[*argv, box / "mask.npy"], [*argv, box / "forced", "--force"]], file_size=5000)
    for found, name in zip(ran, ("mask.npy", "forced"), strict=True):
        assert found.code == 2
        assert name in found.err.splitlines()[-1]
        assert "File too large" in found.err
        assert "Traceback" not in found.err + found.escaped
    assert hostile.snapshot(box.path) == before


def test_what_appears_or_changes_meanwhile_stays(box: Box) -> None:
    place = box / "page"
    with Output(place) as output:
        place.write_text("theirs")
        with pytest.raises(nmsolve.InputError, match="appeared meanwhile") as appeared:
            output.write(b"ours")
    assert place.read_text() == "theirs"
    assert Path(str(appeared.value).rpartition(" is in ")[2]).read_bytes() == b"ours"
    with Output(place, ours=lambda beginning: True) as output:
        place.write_text("theirs, longer")
        with pytest.raises(nmsolve.InputError, match="has changed meanwhile"):
            output.write(b"ours")
    assert place.read_text() == "theirs, longer"
    with Output(place, ours=lambda beginning: beginning == b"theirs, longer") as output:
        output.write(b"our", b"s")
    assert place.read_text() == "ours"
    place.chmod(0o444)
    if os.geteuid() != 0:
        with pytest.raises(nmsolve.InputError, match="write-protected"):
            Output(place, ours=lambda beginning: True)


def test_what_is_no_file_is_written_to_as_it_is(box: Box) -> None:
    np.save(box / "w.npy", weights(8, 8))
    expected = nmsolve.solve(weights(8, 8), "2:4").mask
    save_file({"fc.weight": weights(8, 8)}, box / "w.safetensors")
    shell = "set -o pipefail; cd '{0}'; n() {{ '{1}' -m nmsolve \"$@\"; }}; {2}"

    def run(line: str) -> subprocess.CompletedProcess[str]:
        command = shell.format(box.path, sys.executable, line)
        return subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True, timeout=100, check=False
        )

    many = run(
        "n solve w.npy 2:4 --out /dev/null && n solve w.npy 2:4 --out /dev/stdout | cat > piped && "
        "n solve w.npy 2:4 --out /dev/stdout > redirected && mkfifo named && (cat named > through "
        "&) && n solve w.npy 2:4 --out named && n report w.safetensors -o /dev/stdout > page"
    )
    assert many.returncode == 0, many.stderr
    assert many.stdout.count("mask       ") == 2
    assert many.stderr.count("mask       /dev/stdout") == 2
    for name in ("piped", "redirected", "through"):
        assert (np.load(box / name) == expected).all()
    assert (box / "page").read_text().startswith("<!doctype html>")
    assert (box / "page").read_text().endswith("</html>\n")
    full = run("n solve w.npy 2:4 --out /dev/full")
    assert full.returncode == 2
    assert (
        full.stderr
        == "nmsolve: error: [Errno 28] No space left on device, while writing /dev/full\n"
    )
    gone = run("n solve w.npy 2:4 --out >(exec 0<&-)")
    assert gone.returncode == 2
    assert "/dev/fd/" in gone.stderr


def test_a_page_replaces_only_a_page(box: Box, sparse: Path) -> None:
    for name, text in {
        "mine.html": "<!doctype html>\n<html>mine",
        "quoted.html": "<!doctype html>\n<title>x</title>",
    }.items():
        (box / name).write_text(text)
        assert name in box.refused("report", sparse, "-o", box / name)
    (box / "empty.html").touch()
    assert "empty.html" in box.refused("report", sparse, "-o", box / "empty.html")
    assert box.run("report", sparse, "-o", box / "page.html")[0] == 0
    first = (box / "page.html").read_text()
    sparse.with_name("sparse.times.json").write_text("{}")
    assert box.run("report", sparse, "-o", box / "page.html")[0] == 0
    assert (box / "page.html").read_text() != first
    (box / "quoting.html").write_text("<!doctype html>\n<title>a copy</title>" + first)
    assert "quoting.html" in box.refused("report", sparse, "-o", box / "quoting.html")
    assert box.run("report", sparse, "-o", box / "mine.html", "--force")[0] == 0
    assert (box / "mine.html").read_text() == (box / "page.html").read_text()
    with pytest.raises(nmsolve.InputError, match="force=True"):
        checkpoint.report(sparse, box / "quoted.html")
    checkpoint.report(sparse, box / "quoted.html", force=True)
    assert (box / "quoted.html").read_text() == (box / "page.html").read_text()


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_a_page_replaces_no_part_of_a_checkpoint_under_any_name(
    force: tuple[str, ...], box: Box, sparse: Path
) -> None:
    folder = write_shards(box / "shards")
    checkpoint.prune(folder, box / "pruned", "2:4T", threads=1)
    parts = [
        box / name
        for name in (
            "sparse.safetensors",
            "sparse.masks.safetensors",
            "sparse.report.json",
            "dense.safetensors",
        )
    ]
    for part in parts:
        (box / "soft.html").unlink(missing_ok=True)
        (box / "soft.html").symlink_to(part.name)
        against = ("--against", box / "dense.safetensors")
        line = box.refused("report", sparse, *against, "-o", box / "soft.html", *force)
        assert (part.name if force else "soft.html") in line
    for part in (
        "config.json",
        "masks/model-1.safetensors",
        "model-2.safetensors",
        "more/vocab.txt",
    ):
        (box / "hard.html").unlink(missing_ok=True)
        (box / "hard.html").hardlink_to(box / "pruned" / part)
        assert part in box.refused("report", box / "pruned", "-o", box / "hard.html", *force)


def test_a_page_that_no_folder_will_hold_is_seen_at_the_beginning(box: Box) -> None:
    """Before weights are read, of which one is damaged."""
    src = write_weights(box / "w.safetensors")
    for folder in [box.path, *box.path.parents]:
        if folder == Path(tempfile.gettempdir()):
            break
        folder.chmod(0o755)
    (box / "closed").mkdir(0o555)
    src.write_bytes(src.read_bytes()[:-8])
    with without_rights():
        code, out, err = box.run("report", src, "-o", box / "closed" / "deep" / "page.html")
    assert "page.html" in error_line(code, out, err)
    assert list((box / "closed").iterdir()) == []


@pytest.mark.parametrize("name", ["masks.safetensors", "demo.png"])
def test_the_demo_replaces_only_its_own(
    name: str, box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen before it solves anything."""
    from nmsolve import demo

    monkeypatch.setattr(demo, "solve_rows", lambda network: pytest.fail("it began to solve"))
    (box / "demo").mkdir()
    if name == "demo.png":
        shutil.copy(Path(__file__).parents[2] / "docs" / "speed.png", box / "demo" / name)
    else:
        save_file({"2:4T/exact/layer1": np.ones((4, 4), bool)}, box / "demo" / name)
    assert name in box.refused("demo", "--out", box / "demo")


def test_options_without_a_meaning_are_refused(box: Box, sparse: Path) -> None:
    """Rather than left out of account: a check of less, or more, than was asked for."""
    np.save(box / "mask.npy", nmsolve.solve(weights(8, 8), "2:4").mask)
    masks = sparse.with_name("sparse.masks.safetensors")
    for path in (sparse, masks):
        for options in (
            ("--exclude", "a"),
            ("--include", "b"),
            ("--padding", "pad"),
            ("--at-most",),
        ):
            assert options[0].lstrip("-") in box.refused("verify", path, *options)
    for options in (("--exclude", "arr_0"), ("--include", "x"), ("--padding", "skip")):
        assert options[0] in box.refused("verify", box / "mask.npy", "2:4", *options)
    for options in (("--exclude", "a"), ("--include", "b")):
        assert "include and exclude" in box.refused("verify", masks, "2:4T", *options)
    with pytest.raises(nmsolve.InputError, match="include and exclude"):
        checkpoint.verify(sparse, exclude="a")
    np.save(box / "w.npy", weights(8, 8))
    for options in (("--force",), ("--scores", box / "w.npy")):
        line = box.refused(
            "solve", box / "w.npy", "2:4", "--out", box / "new.safetensors", *options
        )
        assert f"{options[0]} " in line
        assert "for a mask that is written as .npy" in line
