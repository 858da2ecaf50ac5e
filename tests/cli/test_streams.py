"""Streams that are full, closed or no longer read, with real processes: what is done is done, and
nothing that is not seems so.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from nmsolve import checkpoint
from nmsolve.cli import main
from tests.checkpoint.checkpoint_files import contents, weights, write_folder
from tests.checkpoint.hostile import limited
from tests.checkpoint.hostile_files import described, npy_header

NMSOLVE = f"'{sys.executable}' -m nmsolve"
SCRIPT = f"'{Path(sysconfig.get_path('scripts'), 'nmsolve')}'"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense checkpoint, what it is pruned to, and an array."""
    folder = tmp_path_factory.mktemp("streams")
    write_folder(folder / "dense")
    checkpoint.prune(folder / "dense", folder / "sparse", "2:4T")
    np.save(folder / "w.npy", weights(8, 8))
    return folder


def shell(place: Path, line: str, program: str = NMSOLVE) -> subprocess.CompletedProcess[str]:
    """What bash makes of a line in which n is the command, with the exit code of whatever fails in
    a pipeline.
    """
    script = f'set -o pipefail; n() {{ {program} "$@"; }}; {line}'
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=100, check=False, cwd=place
    )


#: What the shell does with the streams, and what stderr then holds besides progress.
FULL = "nmsolve: stdout cannot be written (No space left on device), but all else is done\n"
CLOSED = "nmsolve: stdout cannot be written (Bad file descriptor), but all else is done\n"
STREAMS = {
    ">/dev/full": FULL,
    ">&-": CLOSED,
    "2>/dev/full": "",
    ">&- 2>&- <&-": "",
    ">/dev/full 2>/dev/full": "",
    "| true": "",
    "| head -n 1": "",
    "2>&1 | true": "",
    "2>&1 >/dev/null | head -n 1": "",
}


@pytest.mark.parametrize(
    ("program", "streams"),
    [(SCRIPT if streams in (">/dev/full", "| true") else NMSOLVE, streams) for streams in STREAMS],
)
def test_a_run_ends_well_whatever_its_streams_do(
    program: str, streams: str, place: Path, tmp_path: Path
) -> None:
    done = shell(
        place, f"n prune dense '{tmp_path}/out' --pattern 2:4T --threads 1 {streams}", program
    )
    assert done.returncode == 0, done.stderr
    assert (
        "".join(line for line in done.stderr.splitlines(True) if line.startswith("nmsolve"))
        == STREAMS[streams]
    )
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert contents(tmp_path / "out") == contents(place / "sparse")


@pytest.mark.parametrize("streams", ["| true", ">&- 2>&-"])
def test_what_verify_found_is_its_exit_code(streams: str, place: Path) -> None:
    assert shell(place, f"n verify sparse {streams}").returncode == 0
    assert shell(place, f"n verify dense 2:4 {streams}").returncode == 1


def test_a_result_that_is_nowhere_is_a_failure(place: Path) -> None:
    full, closed = "No space left on device", "Bad file descriptor"
    for command, why in {
        "solve w.npy 2:4T >/dev/full": full,
        "solve w.npy 2:4T >&-": closed,
        "--version >/dev/full": full,
    }.items():
        done = shell(place, f"n {command}")
        assert (done.returncode, done.stderr) == (
            2,
            f"nmsolve: error: stdout cannot be written: {why}\n",
        )
    assert shell(place, "n solve w.npy 2:4T | true").returncode == 0


def test_a_mask_that_is_written_is_a_result(place: Path) -> None:
    done = shell(place, "n solve w.npy 2:4T --out mask.npy >/dev/full")
    assert (done.returncode, done.stderr) == (0, FULL)
    assert np.load(place / "mask.npy").sum() == 32
    assert shell(place, "n report sparse -o page.html >&- 2>&-").returncode == 0
    assert (place / "page.html").read_text().endswith("</html>\n")


def test_errors_are_errors_without_a_place_to_say_so(place: Path) -> None:
    for streams in ("2>/dev/full", ">&- 2>&-"):
        done = shell(place, f"n prune absent out --pattern 2:4 {streams}")
        assert (done.returncode, done.stdout) == (2, "")


#: A command in which a library in C prints.
NOISY = """
import os, sys
import nmsolve.checkpoint as checkpoint
from nmsolve.cli import main

real = checkpoint.prune
def prune(*arguments, progress, **options):
    def noisy(event):
        os.write(1, b"noise")
        os.write(2, b"noise")
        progress(event)
    return real(*arguments, progress=noisy, **options)

checkpoint.prune = prune
sys.exit(main())
"""


def test_no_file_gets_the_number_of_a_closed_stream(place: Path, tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text(NOISY)
    command = (
        f"'{sys.executable}' '{tmp_path}/noisy.py' prune dense '{tmp_path}/out' --pattern "
        "2:4T <&- >&- 2>&-"
    )
    assert shell(place, command).returncode == 0
    assert contents(tmp_path / "out") == contents(place / "sparse")


#: A command in which something is wrong that nobody has thought of.
BROKEN = """
import sys
import nmsolve.cli.arrays
from nmsolve.cli import main

nmsolve.cli.arrays._load = lambda path: 1 // 0
sys.exit(main())
"""


def test_an_error_inside_is_no_verdict(place: Path, tmp_path: Path) -> None:
    """Python's own exit code would be that of a violation."""
    (tmp_path / "broken.py").write_text(BROKEN)
    command = f"'{sys.executable}' '{tmp_path}/broken.py' verify w.npy 2:4"
    done = shell(place, command)
    assert (done.returncode, done.stdout) == (3, "")
    assert "ZeroDivisionError" in done.stderr
    assert shell(place, f"{command} 2>&-").stdout == ""


def test_little_memory_is_no_verdict(tmp_path: Path) -> None:
    """The file consists of holes, so that it takes no room."""
    header = npy_header(described((2**12, 6000)), b"")
    (tmp_path / "large.npy").write_bytes(header)
    os.truncate(tmp_path / "large.npy", len(header) + 2**12 * 6000 * 4)
    found = limited([["verify", tmp_path / "large.npy", "2:4"]], memory=2**27)[0]
    (tmp_path / "large.npy").unlink()
    assert (found.code, found.escaped) == (2, "")
    assert found.line.startswith("nmsolve: error: out of memory")


def test_a_caller_gets_its_streams_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    assert main(["methods", "2:4"]) == 0
    assert main(["methods", "nonsense"]) == 2
    assert (sys.stdout, sys.stderr) == before
    assert "the optimum" in capsys.readouterr().out
    assert os.fstat(1)
