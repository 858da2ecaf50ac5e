"""Pipes and devices, places that are taken, links and rights: nothing waits, and nothing is
overwritten.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import nmsolve
from nmsolve import checkpoint
from nmsolve.checkpoint import Progress
from tests.checkpoint import hostile
from tests.checkpoint.checkpoint_files import weights
from tests.checkpoint.hostile import (
    PATTERN,
    Box,
    ended_after,
    error_line,
    limited,
    snapshot,
    warm_up,
    without_rights,
)
from tests.checkpoint.hostile_files import WHOLE, write_npz, write_shards, write_weights

ended = hostile.ended

# What is no file.

PIPES: dict[str, tuple[str, tuple[str, ...]]] = {
    "weights": ("one.safetensors", ("prune", "one.safetensors", "out.safetensors", *PATTERN)),
    "weights to verify": ("one.safetensors", ("verify", "one.safetensors", "--pattern", "2:4T")),
    "array": ("one.npy", ("prune", "one.npy", "out.npy", *PATTERN)),
    "array to solve": ("one.npy", ("solve", "one.npy", "2:4T")),
    "array to verify": ("one.npy", ("verify", "one.npy", "2:4T")),
    "archive": ("one.npz", ("prune", "one.npz", "out.npz", *PATTERN)),
    "pickle": ("one.bin", ("prune", "one.bin", "out.bin", *PATTERN)),
    "other": ("one", ("prune", "one", "out", *PATTERN)),
    "destination": ("out.safetensors", ("prune", "dense.safetensors", "out.safetensors", *PATTERN)),
    "destination folder": ("out", ("prune", "dense", "out", *PATTERN)),
    "masks": ("sparse/masks/more.safetensors", ("verify", "sparse")),
    "masks alone": ("one.masks.safetensors", ("verify", "one.masks.safetensors")),
    "report": ("sparse/report.json", ("report", "sparse", "--out", "page.html")),
    "times": ("sparse/times.json", ("report", "sparse", "--out", "page.html")),
    "page": ("page.html", ("report", "sparse", "--out", "page.html")),
    "shard": ("dense/model-2.safetensors", ("prune", "dense", "out", *PATTERN)),
    "linked shard": ("dense/@model-2.safetensors", ("prune", "dense", "out", *PATTERN)),
    "linked index": ("dense/@model.safetensors.index.json", ("prune", "dense", "out", *PATTERN)),
}


@pytest.mark.parametrize("case", PIPES)
def test_nothing_waits_for_a_pipe(case: str, box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    write_weights(box / "dense.safetensors")
    checkpoint.prune(write_shards(box / "dense"), box / "sparse", "2:4T", threads=1)
    name, argv = PIPES[case]
    path = box / name.replace("@", "")
    path.unlink(missing_ok=True)
    os.mkfifo(box / "pipe" if "@" in name else path)
    if "@" in name:
        path.symlink_to(box / "pipe")
    monkeypatch.chdir(box.path)
    with ended_after(5):
        assert path.name in box.refused(*argv)


@pytest.mark.parametrize("case", ["pipe", "link", "socket"])
def test_no_companion_is_waited_for(case: str, box: Box) -> None:
    """It is no part of the checkpoint, and may be left out; or be refused."""
    src = write_shards(box / "dense")
    os.mknod(
        box / "pipe" if case == "link" else src / "pipe",
        0o600 | (stat.S_IFSOCK if case == "socket" else stat.S_IFIFO),
    )
    if case == "link":
        (src / "pipe").symlink_to("../pipe")
    with ended_after(5):
        if box.survives("prune", src, box / "out", *PATTERN, begun=True):
            assert not (box / "out" / "pipe").exists()


def test_no_device_is_read_to_its_end(box: Box) -> None:
    commands: list[list[object]] = []
    for suffix in (".safetensors", ".npy", ".npz", ".bin", ""):
        (box / f"zero{suffix}").symlink_to("/dev/zero")
        commands.append(["prune", box / f"zero{suffix}", box / f"out{suffix}", *PATTERN])
    for number, name in enumerate(
        (
            "model-2.safetensors",
            "model.safetensors.index.json",
            "config.json",
            "model-3.safetensors",
        )
    ):
        src = write_shards(box / f"dense{number}")
        (src / name).unlink(missing_ok=True)
        (src / name).symlink_to("/dev/zero")
        commands.append(["prune", src, box / f"out{number}", *PATTERN])
    checkpoint.prune(write_shards(box / "dense"), box / "sparse", "2:4T", threads=1)
    for name in ("report.json", "times.json", "masks/model-2.safetensors"):
        copied = shutil.copytree(box / "sparse", box / name.replace("/", "-"))
        (copied / name).unlink()
        (copied / name).symlink_to("/dev/zero")
        commands.append(["report", copied, "--out", box / "page.html"])
    wrong = {}
    for argv, found in zip(commands, limited(commands, memory=2**28, file_size=2**24), strict=True):
        if found.escaped or "File too large" in found.err or found.code not in (0, 2):
            wrong[str(argv[1])] = found.escaped[-300:] or found.err
    assert not wrong, "\n\n".join(f"{name}: {what}" for name, what in wrong.items())
    assert not [path for path in box.path.glob("out*/*") if path.stat().st_size > 2**20]


def test_a_pipe_is_no_place_for_a_page(box: Box) -> None:
    """A page is renamed into its place, be it /dev/null: nothing but a page may be lost by that."""
    write_weights(box / "dense.safetensors")
    os.mkfifo(box / "pipe.html")
    box.survives("report", box / "dense.safetensors", "--out", box / "pipe.html")
    assert stat.S_ISFIFO((box / "pipe.html").stat().st_mode)


# Places.


LINKS: dict[str, Callable[[Path, Path], None]] = {
    "hard": lambda path, src: path.hardlink_to(src),
    "symbolic": lambda path, src: path.symlink_to(src),
    "relative": lambda path, src: path.symlink_to(f"../{src.parent.name}/{src.name}"),
}


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("suffix", [".safetensors", ".npy", ".npz"])
def test_a_file_is_not_pruned_into_itself(
    link: str, suffix: str, box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    src, other = box / f"dense{suffix}", box / f"other{suffix}"
    if suffix == ".safetensors":
        write_weights(src)
    else:
        src.write_bytes(WHOLE) if suffix == ".npy" else write_npz(src, [("w.npy", WHOLE)])
    (box / "folder").mkdir()
    (box / "link").symlink_to(box.path)
    LINKS[link](other, src)
    monkeypatch.chdir(box / "folder")
    for dst in (
        src,
        other,
        box.path,
        box / "link",
        f"../{src.name}",
        f"../folder/../{src.name}",
        box / "link" / src.name,
        "..",
    ):
        assert "SRC" in box.refused("prune", src, dst, *PATTERN)
        assert "SRC" in box.refused("prune", src, dst, *PATTERN, "--resume")
    assert src.name in box.refused("prune", other, src, *PATTERN)
    if suffix != ".npy":
        assert src.name in box.refused("solve", src, *PATTERN, "--out", src)


def test_the_mask_of_an_array_does_not_replace_it(box: Box) -> None:
    np.save(box / "dense.npy", weights(8, 8))
    (box / "link.npy").symlink_to("dense.npy")
    for out in ("dense.npy", "link.npy"):
        assert out in box.refused("solve", box / "dense.npy", "2:4T", "--out", box / out)


def test_folders_do_not_lie_in_one_another(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    (box / "outer").mkdir()
    src = write_shards(box / "outer" / "dense")
    (box / "link").symlink_to(src)
    (box / "around").symlink_to(box / "outer")
    monkeypatch.chdir(src / "more")
    inside = (src / "out", src / "more", box / "link" / "a" / "b", ".", "x")
    for dst in (src, box / "link", "..", *inside, box / "outer", box / "around", "../.."):
        for source in (src, box / "link", "..", box / "around" / "dense"):
            line = box.refused("prune", source, dst, *PATTERN)
            assert "SRC" in line
            assert str(dst) in line
    assert "SRC" in box.refused("solve", src, *PATTERN, "--out", src / "masks")
    assert box.run("prune", src, box / "outer" / "dense-out", *PATTERN)[0] == 0


def test_nothing_that_exists_is_overwritten(box: Box) -> None:
    src = write_weights(box / "dense.safetensors")
    folder = write_shards(box / "folder")
    (box / "full").mkdir()
    (box / "full" / "model.safetensors").write_text("mine")
    (box / "hidden").mkdir()
    (box / "hidden" / ".gitignore").write_text("mine")
    (box / "target").write_text("mine")
    for name in (
        "file",
        "file.safetensors",
        "m.masks.safetensors",
        "r.report.json",
        "t.times.json",
    ):
        (box / name).write_text("mine")
    for name in (
        "dangling",
        "dangling.safetensors",
        "d.masks.safetensors",
        "e.report.json",
        "f.times.json",
    ):
        (box / name).symlink_to("nothing")
    (box / "linked.safetensors").symlink_to("target")
    (box / "linked").symlink_to("full")
    for options in ((), ("--resume",)):
        for name in ("file", "dangling", "linked", *"mrtdef"):
            line = box.refused("prune", src, box / f"{name}.safetensors", *PATTERN, *options)
            assert f"{name}." in line
        for name in ("file", "full", "hidden", "dangling", "linked"):
            assert name in box.refused("prune", folder, box / name, *PATTERN, *options)
    assert "m.masks.safetensors" in box.refused(
        "solve", src, *PATTERN, "--out", box / "m.masks.safetensors"
    )
    assert "full" in box.refused("solve", folder, *PATTERN, "--out", box / "full")


@pytest.mark.parametrize("name", ["loop", "loop.safetensors"])
def test_a_destination_that_is_a_link_to_itself(name: str, box: Box) -> None:
    src = (
        write_shards(box / "dense") if name == "loop" else write_weights(box / "dense.safetensors")
    )
    (box / name).symlink_to(name)
    assert name in box.refused("prune", src, box / name, *PATTERN)
    assert name in box.refused("prune", box / name, box / "out.safetensors", *PATTERN)


def test_destinations_of_another_kind(box: Box) -> None:
    write_weights(box / "dense.safetensors")
    np.save(box / "dense.npy", weights(8, 8))
    write_shards(box / "dense")
    for src, dst in (
        ("dense.safetensors", "out.npy"),
        ("dense.npy", "out.safetensors"),
        ("dense.safetensors", "out"),
        ("dense.npy", "out/"),
    ):
        assert "out" in box.refused("prune", box / src, box / dst, *PATTERN)
    for dst in ("dense.npy", "dense.npy/x", "dense.npy/x/y", "x" * 300):
        assert dst in box.refused("prune", box / "dense", box / dst, *PATTERN)
    for dst in ("dense.npy/x.safetensors", "x" * 250 + ".safetensors"):
        assert Path(dst).name in box.refused(
            "prune", box / "dense.safetensors", box / dst, *PATTERN
        )


@pytest.mark.parametrize("src", ["dense.safetensors", "folder"])
def test_what_appears_at_the_destination_meanwhile_stays(src: str, box: Box) -> None:
    write_weights(box / "dense.safetensors")
    write_shards(box / "folder")
    dst = box / ("out.safetensors" if src == "dense.safetensors" else "out")
    theirs = dst if src == "dense.safetensors" else dst / "model-1.safetensors"

    def appear(event: Progress) -> None:
        theirs.write_text("theirs")

    with pytest.raises((nmsolve.InputError, OSError), match=theirs.name):
        checkpoint.prune(box / src, dst, "2:4T", threads=1, progress=appear)
    assert theirs.read_text() == "theirs"
    assert theirs.name in box.refused("prune", box / src, dst, *PATTERN, "--resume", begun=True)


PARTS = [
    "sparse.safetensors",
    "sparse.masks.safetensors",
    "sparse.report.json",
    "sparse.times.json",
    "dense.safetensors",
]


@pytest.mark.parametrize("name", PARTS)
def test_a_page_replaces_no_part_of_a_checkpoint(name: str, box: Box) -> None:
    checkpoint.prune(
        write_weights(box / "dense.safetensors"), box / "sparse.safetensors", "2:4T", threads=1
    )
    argv = ("report", box / "sparse.safetensors", "--against", box / "dense.safetensors", "--out")
    assert name in box.refused(*argv, box / name)
    (box / "link.html").symlink_to(name)
    assert box.survives(*argv, box / "link.html") in (True, False)
    assert (box / name).stat().st_size > 0


@pytest.mark.parametrize("out", [".", "..", "folder", "file/page.html", ""])
def test_a_page_that_has_no_place(out: str, box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    write_weights(box / "dense.safetensors")
    (box / "folder").mkdir()
    (box / "file").write_text("mine")
    monkeypatch.chdir(box / "folder")
    box.refused(
        "report", box / "dense.safetensors", "--out", out if set(out) <= {".", "/"} else box / out
    )


# Rights.


@pytest.fixture
def open_box(capsys: pytest.CaptureFixture[str]) -> Iterator[Box]:
    """A box that those reach who own nothing."""
    warm_up()
    capsys.readouterr()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        umask = os.umask(0o022)
        yield Box(Path(folder), capsys)
        for parent, folders, _ in os.walk(folder):
            for name in folders:
                os.chmod(os.path.join(parent, name), 0o700)
        os.umask(umask)


def test_no_permission_to_write(open_box: Box) -> None:
    src, folder = write_weights(open_box / "dense.safetensors"), write_shards(open_box / "dense")
    (open_box / "closed").mkdir(0o555)
    os.chmod(open_box.path, 0o555)
    for argv in (
        ("prune", src, open_box / "closed" / "out.safetensors", *PATTERN),
        ("prune", src, open_box / "closed", *PATTERN),
        ("prune", folder, open_box / "closed", *PATTERN),
        ("prune", folder, open_box / "closed" / "out", *PATTERN),
        ("prune", folder, open_box / "new" / "out", *PATTERN),
        ("solve", src, *PATTERN),
        ("solve", folder, *PATTERN, "--out", open_box / "closed"),
        ("report", src, "--out", open_box / "closed" / "page.html"),
    ):
        before = snapshot(open_box.path)
        with without_rights():
            code, out, err = open_box.run(*argv)
        line = error_line(code, out, err)
        assert "Permission denied" in line
        assert argv[0] == "report" or any(
            name in line for name in ("closed", "new", ".dense.masks")
        )
        assert snapshot(open_box.path) == before
    os.chmod(open_box.path, 0o755)


@pytest.mark.parametrize(
    "closed",
    [
        "dense.npy",
        "dense/model-2.safetensors",
        "dense/model.safetensors.index.json",
        "dense",
        "dense/more",
    ],
)
def test_no_permission_to_read(closed: str, open_box: Box) -> None:
    np.save(open_box / "dense.npy", weights(8, 8))
    write_shards(open_box / "dense")
    (open_box / "there").mkdir()
    os.chmod(open_box / "there", 0o777)
    os.chmod(open_box / closed, 0)
    src = open_box / closed.partition("/")[0]
    before = snapshot(open_box.path)
    with without_rights():
        code, out, err = open_box.run(
            "prune", src, open_box / "there" / f"out{src.suffix}", *PATTERN
        )
    line = error_line(code, out, err)
    assert "Permission denied" in line
    assert Path(closed).name in line
    assert snapshot(open_box.path) == before


@pytest.mark.parametrize("closed", ["config.json", "more/vocab.txt"])
def test_a_companion_that_may_not_be_read_is_seen_at_the_beginning(
    closed: str, open_box: Box
) -> None:
    """Rather than when hours of solving are over."""
    src = write_shards(open_box / "dense")
    (open_box / "there").mkdir()
    os.chmod(open_box / "there", 0o777)
    os.chmod(src / closed, 0)
    with without_rights():
        code, out, err = open_box.run("prune", src, open_box / "there" / "out", *PATTERN)
    line = error_line(code, out, err, begun=True)
    assert "Permission denied" in line
    assert closed in line
    assert not list((open_box / "there").glob("out/[!.]*"))
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "closed", ["masks/model-2.safetensors", "report.json", "times.json", "masks"]
)
def test_no_permission_to_read_what_was_pruned(closed: str, open_box: Box) -> None:
    checkpoint.prune(write_shards(open_box / "dense"), open_box / "sparse", "2:4T", threads=1)
    os.chmod(open_box / "sparse" / closed, 0)
    (open_box / "there").mkdir()
    os.chmod(open_box / "there", 0o777)
    with without_rights():
        code, out, err = open_box.run(
            "report", open_box / "sparse", "--out", open_box / "there" / "page.html"
        )
    line = error_line(code, out, err)
    assert "Permission denied" in line
    assert Path(closed).name in line
