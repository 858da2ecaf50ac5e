"""Sources that change while they are read, and unfinished runs that are damaged."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nmsolve import checkpoint
from nmsolve.checkpoint import Progress
from tests.checkpoint import hostile
from tests.checkpoint.checkpoint_files import weights
from tests.checkpoint.hostile import PATTERN, UNFINISHED, Box, raised, snapshot
from tests.checkpoint.hostile_files import DEEP, write_shards, write_weights

ended = hostile.ended

# A source that changes.


def _shrink(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 40)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def _touch_bytes(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def _replace(path: Path) -> None:
    new = path.with_name("new")
    new.write_bytes(path.read_bytes()[::-1])
    os.replace(new, path)


def _to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


CHANGES = {
    change.__name__.strip("_"): change
    for change in (_shrink, _empty, _grow, _touch_bytes, _replace, Path.unlink, _to_folder)
}


def once(change: Callable[[], object]) -> Callable[[Progress], None]:
    """Do something as the first tensor is begun."""
    pending = [change]

    def progress(event: Progress) -> None:
        if pending:
            pending.pop()()

    return progress


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "name",
    ["dense.safetensors", "dense.npy", "dense.npz", "packed.npz", "dense/model-2.safetensors"],
)
def test_weights_that_change_while_they_are_read(name: str, change: str, box: Box) -> None:
    write_weights(box / "dense.safetensors")
    np.save(box / "dense.npy", weights(8, 8))
    np.savez(box / "dense.npz", a=weights(8, 8), b=weights(8, 8))
    np.savez_compressed(box / "packed.npz", a=weights(8, 8), b=weights(8, 8))
    write_shards(box / "dense")
    path = box / name
    os.utime(path, (1e9, 1e9))
    src = path.parent if path.parent.name == "dense" else path
    message = raised(src, box / f"out{src.suffix}", progress=once(lambda: CHANGES[change](path)))
    assert src.name in message
    assert path.parent == box.path or path.name in message or "changed" in message


@pytest.mark.parametrize("change", ["unlink", "to_folder", "replace"])
@pytest.mark.parametrize("name", ["config.json", "more/vocab.txt", "model.safetensors.index.json"])
def test_companions_that_change_while_weights_are_read(name: str, change: str, box: Box) -> None:
    src = write_shards(box / "dense")
    if change == "replace" and name == "more/vocab.txt":  # no weight depends on it
        checkpoint.prune(
            src, box / "out", "2:4T", threads=1, progress=once(lambda: _replace(src / name))
        )
        assert (box / "out" / name).read_bytes() == (src / name).read_bytes()
        return
    message = raised(src, box / "out", progress=once(lambda: CHANGES[change](src / name)))
    assert Path(name).name in message or f"{src} changed" in message


class Stopped(BaseException):
    """A run that ends as Ctrl-C ends it."""


def stop(event: Progress) -> None:
    if event.done:
        raise Stopped


def begin_run(src: Path, dst: Path) -> Path:
    """The folder of a run that was stopped after its first tensor."""
    with pytest.raises(Stopped):
        checkpoint.prune(src, dst, "2:4T", threads=1, progress=stop)
    return dst / UNFINISHED if src.is_dir() else dst.with_name(f".{dst.name}{UNFINISHED}")


def test_a_run_does_not_go_on_with_another_source(box: Box) -> None:
    src = write_weights(box / "dense.safetensors")
    os.utime(src, (1e9, 1e9))
    begin_run(src, box / "out.safetensors")
    _touch_bytes(src)
    line = box.refused("prune", src, box / "out.safetensors", *PATTERN, "--resume")
    assert "dense.safetensors" in line
    assert UNFINISHED in line


# Unfinished runs that are damaged.


NOTES = [b"", b"{", b"[]", b"{}", b"null", b"\xff", b'"a"', b"[" * DEEP, b'{"nmsolve": 1e999}']


@pytest.mark.parametrize("content", NOTES, ids=lambda content: repr(content[:20]))
@pytest.mark.parametrize("name", ["run.json", "publish.json"])
def test_damaged_notes_of_an_unfinished_run(name: str, content: bytes, box: Box) -> None:
    src = write_weights(box / "dense.safetensors")
    work = begin_run(src, box / "out.safetensors")
    (work / name).write_bytes(content)
    assert (
        name in box.refused("prune", src, box / "out.safetensors", *PATTERN, "--resume", begun=True)
        or name == "run.json"
    )


@pytest.mark.parametrize(
    "line",
    [
        b'{"tensor": "fc1.weight"}',
        b'{"tensor": "fc1.weight", "color": "red"}',
        b'{"tensor": "fc1.weight", "status": 1, "objective": "much", "bound": [], "gap": null, '
        b'"total": 1, "kept": 1, '
        b'"digest": "", "mask_digest": "", "seconds": 1}',
        b'{"tensor": "fc1.weight", "name": "fc2.weight"}',
        b'{"tensor": "nothing", "kept": 3}',
        b'{"tensor": ["a"]}',
        b"[1, 2]",
        b"\xff\xfe",
        b"[" * DEEP,
    ],
    ids=lambda line: repr(line[:40]),
)
def test_damaged_journals(line: bytes, box: Box) -> None:
    """What they say that cannot be is not believed."""
    src = write_weights(box / "dense.safetensors")
    checkpoint.prune(src, box / "whole.safetensors", "2:4T", threads=1)
    work = begin_run(src, box / "out.safetensors")
    for journal in work.glob("journal-*"):
        journal.write_bytes(line + b"\n")
    if box.survives("prune", src, box / "out.safetensors", *PATTERN, "--resume", begun=True):
        assert (box / "out.safetensors").read_bytes() == (box / "whole.safetensors").read_bytes()
        assert (box / "out.report.json").read_bytes() == (box / "whole.report.json").read_bytes()


@pytest.mark.parametrize(
    "moves",
    [
        [["../dense.safetensors", "out.safetensors"]],
        [["weights/dense.safetensors", "../elsewhere/victim"]],
        [["weights/dense.safetensors", "victim"]],
        [["a"]],
        [1],
        {"a": "b"},
    ],
    ids=str,
)
def test_a_publication_moves_nothing_else(moves: object, box: Box) -> None:
    src = write_weights(box / "dense.safetensors")
    (box / "victim").write_text("mine")
    work = begin_run(src, box / "out.safetensors")
    (work / "publish.json").write_text(json.dumps(moves))
    assert "publish.json" in box.refused(
        "prune", src, box / "out.safetensors", *PATTERN, "--resume", begun=True
    )


def test_an_unfinished_run_that_is_a_link_is_not_followed(box: Box) -> None:
    """Its folder is emptied in the end."""
    src = write_shards(box / "dense")
    (box / "precious").mkdir()
    (box / "precious" / "photo").write_text("mine")
    (box / "out").mkdir()
    (box / "out" / UNFINISHED).symlink_to("../precious")
    before = snapshot(box / "precious")
    box.run("prune", src, box / "out", *PATTERN, "--resume")
    assert snapshot(box / "precious") == before


def test_two_runs_do_not_write_the_same(box: Box) -> None:
    src = write_weights(box / "dense.safetensors")
    lines: list[str] = []

    def again(event: Progress) -> None:
        if not lines:
            lines.append(box.refused("prune", src, box / "out.safetensors", *PATTERN, begun=True))
            lines.append(
                box.refused("prune", src, box / "out.safetensors", *PATTERN, "--resume", begun=True)
            )

    checkpoint.prune(src, box / "out.safetensors", "2:4T", threads=1, progress=again)
    assert all("out.safetensors" in line for line in lines)
    assert checkpoint.verify(box / "out.safetensors").ok


def test_a_finished_run_whose_report_is_damaged(box: Box) -> None:
    src = write_weights(box / "dense.safetensors")
    checkpoint.prune(src, box / "out.safetensors", "2:4T", threads=1)
    assert box.run("prune", src, box / "out.safetensors", *PATTERN, "--resume")[0] == 0
    for content in (b"", b"\xff", b"{}", b"[" * DEEP):
        for name in ("out.times.json", "out.report.json"):
            whole = (box / name).read_bytes()
            (box / name).write_bytes(content)
            if not (name == "out.times.json" and content == b"{}"):
                assert name in box.refused(
                    "prune", src, box / "out.safetensors", *PATTERN, "--resume"
                )
            (box / name).write_bytes(whole)
