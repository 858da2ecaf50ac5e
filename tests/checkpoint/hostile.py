"""What holds whatever a command is given, and the means to give it little: small disks, little
memory, no rights.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import nmsolve
from nmsolve import checkpoint
from nmsolve.cli import main
from tests.checkpoint.checkpoint_files import contents, weights
from tests.checkpoint.hostile_files import write_shards, write_weights

UNFINISHED = ".nmsolve-unfinished"
PATTERN = ("--pattern", "2:4T", "--threads", "1")
#: Whoever owns nothing.
NOBODY = 65534
#: How a mount of one's own is made, by rights; empty where the system allows none.
_MOUNTING = [["unshare", "-m"], ["unshare", "-rm"]]


def snapshot(folder: Path, unfinished: bool = True) -> dict[str, tuple[object, ...]]:
    """Everything below a folder: kind, rights and bytes by name; without unfinished runs, then
    without folders as such.
    """
    found: dict[str, tuple[object, ...]] = {}
    for parent, folders, files in os.walk(folder):
        if not unfinished:
            folders[:] = [name for name in folders if not name.endswith(UNFINISHED)]
        for name in folders + files:
            path = Path(parent, name)
            status = path.lstat()
            if path.is_symlink():
                found[str(path)] = ("link", os.readlink(path))
            elif path.is_file():
                found[str(path)] = (
                    status.st_mode,
                    status.st_mtime_ns,
                    status.st_ino,
                    path.read_bytes(),
                )
            elif unfinished or not path.is_dir():
                found[str(path)] = (status.st_mode,)
    return found


@dataclass
class Box:
    """A folder, and commands that are run on what is in it."""

    path: Path
    capsys: pytest.CaptureFixture[str]

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def run(self, *argv: object) -> tuple[int, str, str]:
        """A command's exit code, stdout and stderr, which hold nothing that a terminal would
        obey.
        """
        code = main([str(argument) for argument in argv])
        out, err = self.capsys.readouterr()
        assert not [c for c in out + err if not (c.isprintable() or c == "\n")]
        return code, out, err

    def refused(self, *argv: object, begun: bool = False) -> str:
        """The one line that says why a command did nothing; with `begun`, nothing but an unfinished
        run.
        """
        before = snapshot(self.path, not begun)
        code, out, err = self.run(*argv)
        line = error_line(code, out, err, begun)
        assert snapshot(self.path, not begun) == before
        return line

    def prune_refused(self, src: Path, *options: str, begun: bool = False) -> str:
        """As `refused`, for pruning to a place beside the source."""
        dst = (
            self.path / f"out{src.suffix if src.suffix in ('.safetensors', '.npy', '.npz') else ''}"
        )
        line = self.refused("prune", src, dst, *PATTERN, *options, begun=begun)
        assert begun or not dst.exists()
        return line

    def all_refused(self, src: Path, begun: bool = False) -> list[str]:
        """As `refused`, for every command that reads a checkpoint."""
        return [
            self.prune_refused(src, begun=begun),
            self.refused("solve", src, *PATTERN, "--out", self.path / "m.safetensors", begun=begun),
            self.refused("verify", src, "--pattern", "2:4T"),
            self.refused("report", src, "--out", self.path / "page.html"),
        ]

    def survives(self, *argv: object, begun: bool = False) -> bool:
        """Whether a command works; if not, it is refused as it should be."""
        before = snapshot(self.path, not begun)
        code, out, err = self.run(*argv)
        if code == 2:
            error_line(code, out, err, begun)
            assert snapshot(self.path, not begun) == before
        return code != 2


def error_line(code: int, out: str, err: str, begun: bool = False) -> str:
    """The line in which a command says why it was of no use, after the lines of its progress."""
    assert (code, out) == (2, ""), (code, out, err)
    *progress, line = err.splitlines()
    assert line.startswith("nmsolve: error: "), err
    assert "Errno None" not in line
    assert begun or not progress, err
    assert not any(
        "Traceback" in text or "Warning" in text or text.startswith("nmsolve:") for text in progress
    ), err
    return line


@contextlib.contextmanager
def ended_after(seconds: float) -> Iterator[None]:
    """Fail, instead of waiting for ever; no speed is tested."""

    def fail(signum: int, frame: FrameType | None) -> None:
        pytest.fail(f"hangs: after {seconds} s it was still waiting")

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def without_rights() -> Iterator[None]:
    """Be nobody, if this is root, to whom no file is closed."""
    if os.geteuid() != 0:
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


# Fixtures: of the folders that name them in their conftest.py; of a test file whose tests may hang,
# `ended`.


@pytest.fixture
def box(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Box:
    return Box(tmp_path, capsys)


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    with ended_after(60):
        yield


@pytest.fixture
def sparse(box: Box) -> Path:
    """A pruned file, with an odd number of entries in a mask, and what is beside it."""
    write_weights(box / "dense.safetensors", **{"fc3.weight": weights(3, 3)})
    checkpoint.prune(
        box / "dense.safetensors",
        box / "sparse.safetensors",
        {"fc3": "1:3", "*": "2:4T"},
        threads=1,
    )
    return box / "sparse.safetensors"


# Processes with little.


@dataclass
class Outcome:
    """What came of a command in a process of its own. escaped : the traceback of what was raised
    through `main`.
    """

    code: int | None
    out: str
    err: str
    escaped: str = ""
    files: list[str] = field(default_factory=list)

    @property
    def line(self) -> str:
        assert not self.escaped, self.escaped
        return error_line(-1 if self.code is None else self.code, self.out, self.err, begun=True)


def _run(argv: Sequence[str]) -> Outcome:
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        code, escaped = None, ""
        try:
            code = main(argv)
        except BaseException:
            escaped = traceback.format_exc()
    return Outcome(code, out.getvalue(), err.getvalue(), escaped)


def warm_up() -> None:
    """Prune something, so that all that is imported and compiled is there."""
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder, "dense"))
        checkpoint.prune(f"{folder}/dense", f"{folder}/sparse", "2:4T", threads=1)
        checkpoint.verify(f"{folder}/sparse")
        checkpoint.report(f"{folder}/sparse", f"{folder}/page.html")


def limited(
    commands: Sequence[Sequence[object]], *, memory: int = 2**28, file_size: int = 2**30
) -> list[Outcome]:
    """Commands in a process of their own that gets so much more memory than it began with, and no
    file larger than that.
    """
    texts = [[str(argument) for argument in argv] for argv in commands]
    return [Outcome(**found) for found in _child("_with_limits", [], texts, memory, file_size)]


def _with_limits(
    commands: Sequence[Sequence[str]], memory: int, file_size: int
) -> list[dict[str, Any]]:
    warm_up()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    return [asdict(_run(argv)) for argv in commands]


def _child(function: str, prefix: Sequence[str], *arguments: object) -> list[dict[str, Any]]:
    code = (
        "import json, sys; from tests.checkpoint import hostile; "
        f"print(json.dumps(hostile.{function}(*json.load(sys.stdin))))"
    )
    child = subprocess.run(
        [*prefix, sys.executable, "-c", code],
        input=json.dumps(arguments),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-2000:]
    found: list[dict[str, Any]] = json.loads(child.stdout)
    return found


@dataclass
class Filled:
    """A run on a disk of so many bytes that was too small, and its --resume when it had grown. made
    : what was there then.
    """

    size: int
    first: Outcome
    second: Outcome
    made: dict[str, str]


def mounting() -> list[str] | None:
    """The command with which a process may mount a disk of its own; None where the system allows
    none.
    """
    for prefix in _MOUNTING:
        with contextlib.suppress(OSError):
            probe = [
                *prefix,
                "mount",
                "-t",
                "tmpfs",
                "-o",
                "size=64k",
                "none",
                tempfile.gettempdir(),
            ]
            if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
                return prefix
    return None


def on_small_disks(
    src: Path, folder: Path, name: str, step: int, mount: Sequence[str] | None
) -> list[Filled]:
    """Prune to a folder on disks of all sizes that are too small; without `mount`, no file may be
    larger than the disk would be.
    """
    found = _child(
        "_on_small_disks", mount or [], str(src), str(folder), name, step, mount is not None
    )
    return [
        Filled(e["size"], Outcome(**e["first"]), Outcome(**e["second"]), e["made"]) for e in found
    ]


def _on_small_disks(
    src: str, folder: str, name: str, step: int, mounted: bool
) -> list[dict[str, Any]]:
    warm_up()
    no_limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    argv, found = ["prune", src, f"{folder}/{name}", *PATTERN], []
    for size in range(step, 400 * step, step):
        if mounted:
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True
            )
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, no_limit))
        first = _run(argv)
        first.files = list(snapshot(Path(folder), unfinished=False))
        if mounted:
            subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (no_limit, no_limit))
        if first.code != 0:
            second = _run([*argv, "--resume"])
            found.append(
                {
                    "size": size,
                    "first": asdict(first),
                    "second": asdict(second),
                    "made": contents(Path(folder, name)),
                }
            )
        if mounted:
            subprocess.run(["umount", folder], check=True)
        else:
            shutil.rmtree(folder)
            Path(folder).mkdir()
        if first.code == 0:
            return found
    raise AssertionError("no disk is large enough")


def caught(step: Callable[[], object]) -> str | None:
    """The message of the error that something raises, of the kinds that are allowed; None if it
    does not.
    """
    try:
        step()
    except (nmsolve.NMSolveError, OSError) as error:
        return str(error)
    return None


def raised(src: Path, dst: Path, **options: Any) -> str:
    """The message of the error that `prune` ends in; nothing but an unfinished run is left of
    it.
    """
    before = set(snapshot(dst.parent, unfinished=False))
    message = caught(lambda: checkpoint.prune(src, dst, "2:4T", threads=1, **options))
    assert message is not None, "it was pruned"
    assert set(snapshot(dst.parent, unfinished=False)) <= before
    return message
