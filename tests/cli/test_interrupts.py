"""Ctrl-C at any moment, once or again and again, with real processes: exit code 130, no traceback,
nothing half written.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from nmsolve import checkpoint
from tests.checkpoint.checkpoint_files import contents, weights, write_folder

SCRIPT = Path(sysconfig.get_path("scripts"), "nmsolve")


def started(
    arguments: Sequence[object],
    stderr: int,
    program: Sequence[object] = ("-m", "nmsolve"),
    **options: object,
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *map(str, [*program, *arguments])],
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # which jobs in the background ignore
        **options,  # type: ignore[call-overload]
    )


def read_until(descriptor: int, mark: bytes) -> bytes:
    """What a process says until it has said that, or ends."""
    said = b""
    while mark not in said:
        try:
            part = os.read(descriptor, 512)
        except OSError:  # a terminal whose other end is closed
            return said
        if not part:
            return said
        said += part
    return said


def interrupted(
    process: subprocess.Popen[bytes], descriptor: int, mark: bytes, times: int = 1
) -> str:
    """What it says before and after Ctrl-C; its exit code is 130."""
    said = read_until(descriptor, mark)
    assert mark in said, said[-2000:]
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.003)
    while part := read_until(descriptor, b"\n"):
        said += part
    assert process.wait(timeout=100) == 130, said[-2000:]
    text = said.decode(errors="replace")
    assert "Traceback" not in text, text[-3000:]
    assert "Exception ignored" not in text
    return text


#: Modules that take long to import, each imported by some command at some time: the mark is that
#: one inside it has been.
IMPORTS = {
    "numpy": (b" numpy.dtypes\n", ["solve", "w.npy", "2:4T"]),
    "click": (b" click.globals\n", ["solve", "w.npy", "2:4T"]),
    "numba": (b" numba.core.config\n", ["solve", "w.npy", "2:4T"]),
    "checkpoint": (b" nmsolve.checkpoint.stored\n", ["prune", "dense", "out", "2:4T"]),
    "safetensors": (b" safetensors\n", ["prune", "dense", "out", "2:4T"]),
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    np.save(tmp_path / "w.npy", weights(8, 8))
    write_folder(tmp_path / "dense")
    return tmp_path


@pytest.mark.parametrize(
    ("module", "times"),
    [("numpy", 3), ("click", 1), ("numba", 1), ("numba", 3), ("checkpoint", 3), ("safetensors", 1)],
)
def test_while_importing(module: str, times: int, place: Path) -> None:
    mark, arguments = IMPORTS[module]
    reading, writing = os.pipe()
    process = started(arguments, writing, ["-X", "importtime", "-m", "nmsolve"], cwd=place)
    os.close(writing)
    said = interrupted(process, reading, mark, times)
    os.close(reading)
    assert "nmsolve: stopped" in said
    assert not list(place.glob("out/*.safetensors"))


def test_the_installed_command_while_importing(place: Path) -> None:
    reading, writing = os.pipe()
    process = started(["solve", "w.npy", "2:4T"], writing, ["-X", "importtime", SCRIPT], cwd=place)
    os.close(writing)
    assert interrupted(process, reading, b" numpy.dtypes\n").endswith("nmsolve: stopped\n")
    os.close(reading)


def test_torch_while_importing(place: Path) -> None:
    reading, writing = os.pipe()
    environment = os.environ | {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
    }
    process = started(
        ["prune", "dense", "out", "2:4T"],
        writing,
        ["-X", "importtime", "-m", "nmsolve"],
        cwd=place,
        env=environment,
    )
    os.close(writing)
    interrupted(process, reading, b" torch.types\n", times=2)
    os.close(reading)


def on_a_terminal(arguments: Sequence[object], place: Path, mark: bytes, times: int) -> str:
    here, there = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    process = started(
        arguments,
        there,
        ["-X", "importtime", "-m", "nmsolve"],
        cwd=place,
        env=environment,
        stdin=there,
    )
    os.close(there)
    try:
        return interrupted(process, here, mark, times)
    finally:
        os.close(here)


@pytest.mark.parametrize(
    ("mark", "times"),
    [(b" rich.console\r\n", 4), (b"\x1b[?25l", 1), (b"\x1b[?25l", 4)],
    ids=["rich", "the bar", "the bar, again"],
)
def test_a_terminal_is_left_as_it_was(mark: bytes, times: int, place: Path) -> None:
    said = on_a_terminal(["prune", "dense", "out", "2:4T"], place, mark, times)
    assert "nmsolve: stopped" in said
    assert said.rfind("\x1b[?25h") >= said.rfind(
        "\x1b[?25l"
    )  # the cursor is shown, if it had been hidden


def test_again_and_again_while_nobody_reads(tmp_path: Path) -> None:
    """A terminal that takes no text (Ctrl-S, a pager) keeps the process neither alive nor from
    being resumed.
    """
    write_folder(tmp_path / "dense", layers=24, width=64, files=4)
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    process = started(["prune", tmp_path / "dense", tmp_path / "out", "--pattern", "2:4T"], writing)
    os.close(writing)
    said = read_until(reading, b"\n")
    for _ in range(400):
        process.send_signal(signal.SIGINT)
        if process.poll() is not None:
            break
        time.sleep(0.05)
    while select.select([reading], [], [], 0)[0] and (part := os.read(reading, 4096)):
        said += part
    os.close(reading)
    assert process.wait(timeout=100) == 130
    assert b"Traceback" not in said
    assert not list((tmp_path / "out").glob("*.safetensors"))
    checkpoint.prune(tmp_path / "dense", tmp_path / "out", "2:4T", resume=True)
    checkpoint.prune(tmp_path / "dense", tmp_path / "whole", "2:4T")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_what_ignores_ctrl_c_goes_on(place: Path) -> None:
    """As jobs in the background of a script do."""
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "nmsolve", "prune", "dense", "out", "--pattern", "2:4T"],
        cwd=place,
        stdout=subprocess.DEVNULL,
        stderr=writing,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    os.close(writing)
    read_until(reading, b"\n")
    process.send_signal(signal.SIGINT)
    while read_until(reading, b"\n"):
        pass
    os.close(reading)
    assert process.wait(timeout=100) == 0


def test_a_program_that_imports_the_library_keeps_its_own_ctrl_c() -> None:
    """And its exceptions, whatever it is called with."""
    code = (
        "import signal\n"
        # jobs in the background ignore it
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import nmsolve, nmsolve.cli, nmsolve.cli.stopping\n"
        "assert nmsolve.cli.main(['methods', '2:4']) == 0\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "-m", "nmsolve"],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search("the optimum", done.stdout)
