"""A run that is killed, at any moment, and resumed writes the bytes of an undisturbed one."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import nmsolve
from nmsolve import checkpoint, disk
from nmsolve.checkpoint import journal, publishing, resuming, writer
from tests.checkpoint.checkpoint_files import contents, weights, write_folder

#: What a process asks of the system to change what is on the disk. A kill falls between two of
#: these, or within one.
CALLS = (
    "open",
    "write",
    "pwrite",
    "fsync",
    "fdatasync",
    "posix_fallocate",
    "ftruncate",
    "replace",
    "rename",
    "unlink",
    "rmdir",
    "mkdir",
)


def command(src: Path, dst: Path, *options: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "nmsolve",
        "prune",
        str(src),
        str(dst),
        "--pattern",
        "2:4T",
        "--threads",
        "1",
        *options,
    ]


def assert_whole(dst: Path, whole: dict[str, str]) -> None:
    """Whatever has its final name has its final bytes."""
    for name, digest in contents(dst).items() if dst.exists() else ():
        if not name.startswith(".nmsolve-unfinished"):
            assert whole[name] == digest, name


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str], float]:
    """A checkpoint that takes a while, what comes of it, and for how long a process runs that
    prunes it.
    """
    folder = tmp_path_factory.mktemp("kills")
    # a file is synced when the next begins
    write_folder(folder / "dense", layers=24, width=256, dtype=np.dtype(np.float32), files=24)
    # kernels are compiled
    subprocess.run(command(folder / "dense", folder / "first"), check=True, capture_output=True)
    began = time.monotonic()
    subprocess.run(command(folder / "dense", folder / "whole"), check=True, capture_output=True)
    return folder / "dense", contents(folder / "whole"), time.monotonic() - began


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 32))]
)
def test_a_random_kill(
    large: tuple[Path, dict[str, str], float], seed: int, tmp_path: Path
) -> None:
    """Killed at random once, then resumed and killed again, then resumed to the end."""
    src, whole, seconds = large
    draw = random.Random(seed)
    before = contents(src)
    for options in ((), ("--resume",)):
        process = subprocess.Popen(
            command(src, tmp_path / "out", *options),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0.3, 1.05) * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert_whole(tmp_path / "out", whole)
    subprocess.run(command(src, tmp_path / "out", "--resume"), check=True, capture_output=True)
    assert contents(tmp_path / "out") == whole
    assert contents(src) == before


class Killed(BaseException):
    """Stands for SIGKILL within one process: nothing of the library catches it and goes on."""


@contextlib.contextmanager
def killing(after: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Let so many calls through that change the disk; the next is done by half, or not at all, and
    so is none after it.
    """
    count = [0]

    def counted(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def instead(*args: object, **kwargs: object) -> object:
            if count[0] > after:
                if name == "open":
                    return call(*args, **kwargs)
                raise Killed
            count[0] += 1
            if count[0] > after:
                if name in ("write", "pwrite"):  # cut short
                    call(args[0], bytes(args[1])[: len(args[1]) // 2], *args[2:])  # type: ignore[arg-type, call-overload, index]
                raise Killed
            return call(*args, **kwargs)

        return instead

    with monkeypatch.context() as patched:
        for name in CALLS:
            patched.setattr(os, name, counted(name, getattr(os, name)))
        yield count


@pytest.mark.parametrize("kind", ["folder", pytest.param("npz", marks=pytest.mark.long)])
def test_a_kill_at_every_call_to_the_system(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at random: a kill at every single one of the calls that change the disk."""
    monkeypatch.setattr(writer, "SYNC_BYTES", 0)  # every tensor is synced and journalled
    if kind == "folder":
        src = tmp_path / "dense"
        write_folder(src, layers=1, width=8)
        name = "out"
    else:
        src = tmp_path / "dense.npz"
        np.savez(src, a=weights(8, 8), b=weights(12, 8), c=weights(4))
        name = "out.npz"
    whole_path = tmp_path / "whole" / name
    checkpoint.prune(src, whole_path, "2:4T")
    whole = contents(whole_path)
    with killing(10**9, monkeypatch) as count:
        checkpoint.prune(src, tmp_path / "counted" / name, "2:4T")
    assert count[0] > 40
    for after in range(count[0]):
        dst = tmp_path / str(after) / name
        with killing(after, monkeypatch), pytest.raises(Killed):
            checkpoint.prune(src, dst, "2:4T")
        if kind == "folder":
            assert_whole(dst, whole)
        checkpoint.prune(src, dst, "2:4T", resume=True)
        assert contents(dst) == whole, after
        assert not any(".nmsolve-unfinished" in str(path) for path in dst.parent.rglob("*")), after


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_only_what_is_on_the_disk_is_named(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory of the system survives a kill, and not the loss of power: what a journal names, or
    gets its final name, has been synced since it was written.
    """
    monkeypatch.setattr(writer, "SYNC_BYTES", 0)
    src = tmp_path / f"dense{'' if kind == 'folder' else '.npz'}"
    if kind == "folder":
        write_folder(src, layers=1, width=8)
    else:
        np.savez(src, a=weights(8, 8), b=weights(12, 8), c=weights(4))
    dirty, synced = set[str](), set[str]()
    journalled, renamed = list[str](), list[str]()

    def written(call: Callable[..., object]) -> Callable[..., object]:
        def instead(descriptor: int, *args: object) -> object:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            if os.path.basename(path).startswith("journal-"):
                assert not dirty
                journalled.append(path)
            else:
                dirty.add(path)
            return call(descriptor, *args)

        return instead

    def brought(call: Callable[..., object]) -> Callable[..., object]:
        def instead(descriptor: int) -> object:
            found = call(descriptor)
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            dirty.discard(path)
            synced.add(path)
            return found

        return instead

    def rename(made: Path, place: Path) -> None:
        assert str(made) in synced - dirty
        renamed.append(place.name)
        os.replace(made, place)

    with monkeypatch.context() as patched:
        for name in ("write", "pwrite"):
            patched.setattr(os, name, written(getattr(os, name)))
        for name in ("fsync", "fdatasync"):
            patched.setattr(os, name, brought(getattr(os, name)))
        patched.setattr(os, "rename", rename)
        report = checkpoint.prune(src, tmp_path / f"out{src.suffix}", "2:4T")
    assert len(journalled) == len(report.tensors)
    assert len(renamed) >= 3


def test_kills_while_resuming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run, killed again and again after ever so little work."""
    monkeypatch.setattr(writer, "SYNC_BYTES", 0)
    write_folder(tmp_path / "dense", layers=1, width=8)
    checkpoint.prune(tmp_path / "dense", tmp_path / "whole", "2:4T")
    draw, kills = random.Random(0), 0
    while True:
        try:
            with killing(draw.randrange(10, 80), monkeypatch):
                checkpoint.prune(tmp_path / "dense", tmp_path / "out", "2:4T", resume=True)
        except Killed:
            kills += 1
            assert kills < 1000, "it gets nowhere"
            assert_whole(tmp_path / "out", contents(tmp_path / "whole"))
            continue
        break
    assert kills > 3
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "SYNC_BYTES", 0)
    tensors = write_folder(tmp_path / "dense")
    seen: list[str] = []

    def stop(event: checkpoint.Progress) -> None:
        if event.report is not None:
            seen.append(event.report.name)
            if len(seen) == 8:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.prune(tmp_path / "dense", tmp_path / "out", "2:4T", progress=stop)
    rest: list[checkpoint.Progress] = []
    checkpoint.prune(
        tmp_path / "dense", tmp_path / "out", "2:4T", resume=True, progress=rest.append
    )
    again = [event.report.name for event in rest if event.report is not None]
    assert sorted(seen + again) == sorted(tensors)
    assert {event.before for event in rest} == {8}
    checkpoint.prune(tmp_path / "dense", tmp_path / "whole", "2:4T")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def interrupted(src: Path, dst: Path, **options: object) -> None:
    def stop(event: checkpoint.Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.prune(src, dst, "2:4T", progress=stop, **options)  # type: ignore[arg-type]


def test_only_the_same_run_goes_on(tmp_path: Path) -> None:
    src, dst = tmp_path / "dense", tmp_path / "out"
    write_folder(src)
    interrupted(src, dst)
    with pytest.raises(
        nmsolve.InputError,
        match=r"an unfinished run is in .*out/\.nmsolve-unfinished: go on with it",
    ):
        checkpoint.prune(src, dst, "2:4T")
    with pytest.raises(
        nmsolve.InputError, match=r"is another one \(pattern: '2:4T' then, '2:4' now"
    ):
        checkpoint.prune(src, dst, "2:4", resume=True)
    with pytest.raises(nmsolve.InputError, match=r"exclude: \[\] then, \['lm_head'\] now"):
        checkpoint.prune(src, dst, "2:4T", exclude="lm_head", resume=True)
    os.utime(src / "model-00001-of-00002.safetensors", ns=(1, 1))
    with pytest.raises(
        nmsolve.InputError,
        match=r"is another one \(model-00001-of-00002\.safetensors has changed since\)",
    ):
        checkpoint.prune(src, dst, "2:4T", resume=True)


def test_resuming_what_is_finished_changes_nothing(tmp_path: Path) -> None:
    src, dst = tmp_path / "dense", tmp_path / "out"
    write_folder(src)
    first = checkpoint.prune(src, dst, "2:4T", resume=True)  # there is nothing yet: it begins
    stamps = {path: path.stat().st_mtime_ns for path in dst.rglob("*")}
    again = checkpoint.prune(src, dst, "2:4T", resume=True)
    assert {path: path.stat().st_mtime_ns for path in dst.rglob("*")} == stamps
    assert again.to_json() == first.to_json()
    assert (first.reused, again.reused) == (False, True)
    assert [t.seconds is None for t in again] == [False] * len(again)
    with pytest.raises(
        nmsolve.InputError,
        match=r"is another one \(pattern: '2:4T' then, '2:4' now\): name another DST",
    ):
        checkpoint.prune(src, dst, "2:4", resume=True)


def test_two_runs_do_not_write_one_checkpoint(tmp_path: Path) -> None:
    src, dst = tmp_path / "dense", tmp_path / "out"
    write_folder(src)
    failures: list[str] = []

    def second(event: checkpoint.Progress) -> None:
        with pytest.raises(nmsolve.InputError) as caught:
            checkpoint.prune(src, dst, "2:4T", resume=True)
        failures.append(str(caught.value))

    checkpoint.prune(src, dst, "2:4T", progress=second)
    assert failures
    assert all("another run is writing" in failure for failure in failures)


def test_a_source_that_changes_meanwhile(tmp_path: Path) -> None:
    src, dst = tmp_path / "dense", tmp_path / "out"
    write_folder(src)

    def change(event: checkpoint.Progress) -> None:
        os.utime(src / "model-00001-of-00002.safetensors", ns=(1, 1))

    with pytest.raises(nmsolve.InputError, match="changed while it was read"):
        checkpoint.prune(src, dst, "2:4T", progress=change)
    assert [path.name for path in dst.iterdir()] == [".nmsolve-unfinished"]


def test_the_modules_whose_calls_are_counted_use_them_as_attributes() -> None:
    """A `from os import …` would slip past `killing`, and past this file."""
    for module in (disk, journal, publishing, resuming, writer):
        assert not {name for name in CALLS if getattr(module, name, None) is getattr(os, name)}
