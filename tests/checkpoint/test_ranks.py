"""torchrun … -m nmsolve prune: several processes over gloo write what one writes."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from nmsolve import checkpoint
from tests.checkpoint.checkpoint_files import contents, weights, write_folder


def torchrun(ranks: int, *arguments: object) -> list[str]:
    start = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(ranks),
        "-m",
        "nmsolve",
    ]
    return [*start, *map(str, arguments)]


def environment() -> dict[str, str]:
    return {
        key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")
    } | {"OMP_NUM_THREADS": "1"}


def run(ranks: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        torchrun(ranks, *arguments),
        capture_output=True,
        text=True,
        timeout=200,
        env=environment(),
        check=False,
    )


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("ranks")
    write_folder(folder / "dense", layers=6, width=64, files=3)
    checkpoint.prune(folder / "dense", folder / "whole", "2:4T")
    return folder / "dense", contents(folder / "whole")


@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.long), 3])
def test_ranks_write_what_one_process_writes(
    ranks: int, dense: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    src, whole = dense
    done = run(ranks, "prune", src, tmp_path / "out", "--pattern", "2:4T", "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == whole
    assert not (tmp_path / "out" / ".nmsolve-unfinished").exists()
    assert done.stdout.count("tensors pruned") == 1
    for rank in range(ranks):
        assert f"[rank {rank}] " in done.stderr


@pytest.mark.long
def test_ranks_share_one_file(tmp_path: Path) -> None:
    """Tensors, not files, are split: two ranks write into the same one."""
    save_file(
        {f"linear_{i}.weight": weights(32, 64, seed=i) for i in range(9)},
        tmp_path / "dense.safetensors",
    )
    checkpoint.prune(tmp_path / "dense.safetensors", tmp_path / "whole.safetensors", "2:4")
    done = run(
        2, "prune", tmp_path / "dense.safetensors", tmp_path / "out.safetensors", "--pattern", "2:4"
    )
    assert done.returncode == 0, done.stderr
    for suffix in (".safetensors", ".masks.safetensors", ".report.json"):
        assert (tmp_path / f"out{suffix}").read_bytes() == (
            tmp_path / f"whole{suffix}"
        ).read_bytes()
    assert "[rank 1] " in done.stderr


def test_an_error_of_one_rank_is_one_line_and_fails_all(tmp_path: Path) -> None:
    """NaN in the last tensor, which the last rank has; and what rank 0 refuses before any tensor is
    read.
    """
    tensors = {f"linear_{i}.weight": weights(32, 64, seed=i) for i in range(6)}
    tensors["linear_5.weight"][3, 5] = np.nan
    save_file(tensors, tmp_path / "dense.safetensors")
    done = run(
        2, "prune", tmp_path / "dense.safetensors", tmp_path / "out.safetensors", "--pattern", "2:4"
    )
    assert done.returncode != 0
    (line,) = [
        line
        for line in done.stderr.splitlines()
        if line.startswith("nmsolve: error: ") and "linear_5" in line
    ]
    assert "dense.safetensors: tensor 'linear_5.weight': weights[3, 5] is nan" in line
    assert 'Traceback (most recent call last):\n  File "nmsolve' not in done.stderr
    assert not (tmp_path / "out.safetensors").exists()

    done = run(
        2,
        "prune",
        tmp_path / "absent.safetensors",
        tmp_path / "out.safetensors",
        "--pattern",
        "2:4",
    )
    assert done.returncode != 0
    assert sum(line.startswith("nmsolve: error: ") for line in done.stderr.splitlines()) == 1
    assert "exitcode  : 2" in done.stderr


@pytest.mark.parametrize(
    ("ranks", "seed"),
    [*(pytest.param(ranks, ranks - 2, marks=pytest.mark.long) for ranks in (2, 3)), (3, 2)],
)
def test_a_rank_that_dies_fails_the_run_and_resume_goes_on(
    ranks: int, seed: int, tmp_path: Path
) -> None:
    """One rank is killed with SIGKILL as soon as tensors are being written; 1, 2 or 3 ranks take up
    what is left.
    """
    src, draw = tmp_path / "dense", random.Random(seed)
    write_folder(src, layers=24, width=256, dtype=np.dtype(np.float32), files=12)
    checkpoint.prune(src, tmp_path / "whole", "2:4T")
    process = subprocess.Popen(
        torchrun(ranks, "prune", src, tmp_path / "out", "--pattern", "2:4T", "--threads", "1"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    victim = draw.randrange(ranks)
    killed = _kill_rank(process.pid, victim, tmp_path / "out" / ".nmsolve-unfinished")
    _, errors = process.communicate(timeout=200)
    assert killed, errors
    assert process.returncode != 0, errors
    for name, digest in contents(tmp_path / "out").items():
        assert (
            name.startswith(".nmsolve-unfinished") or contents(tmp_path / "whole")[name] == digest
        )
    done = run((2, 3, 1)[seed], "prune", src, tmp_path / "out", "--pattern", "2:4T", "--resume")
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_rank_that_is_left_alone_says_so(tmp_path: Path) -> None:
    """Without torchrun, which ends the others itself: who waits for a rank that was killed fails
    with a line, and does not hang.
    """
    write_folder(tmp_path / "dense", layers=24, width=256, dtype=np.dtype(np.float32), files=12)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "nmsolve",
        "prune",
        str(tmp_path / "dense"),
        str(tmp_path / "out"),
        "--pattern",
        "2:4T",
    ]
    processes = [
        subprocess.Popen(
            [*command, "--threads", "1"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment()
            | {
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
        )
        for rank in (0, 1)
    ]
    assert processes[1].stderr is not None
    processes[1].stderr.readline()  # it has solved a tensor
    processes[1].kill()
    _, errors = processes[0].communicate(timeout=100)
    processes[1].communicate()
    assert processes[0].returncode == 2, errors
    (line,) = [line for line in errors.splitlines() if line.startswith("nmsolve: error: ")]
    assert "a process of this run is gone" in line
    assert "--resume" in line
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".nmsolve-unfinished"]


def _kill_rank(launcher: int, rank: int, work: Path) -> bool:
    """Kill the process of a rank once that rank has a journal; whether there was one to kill."""
    for _ in range(4000):
        if list(work.glob(f"journal-{rank}-*")):
            for pid in _children(launcher):
                if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(
                    b"\0"
                ):
                    os.kill(pid, signal.SIGKILL)
                    return True
        time.sleep(0.01)
    return False


def _children(pid: int) -> list[int]:
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


def test_a_process_group_of_the_callers(dense: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    """`prune` within a program that has a process group already uses it, and leaves it."""
    src, whole = dense
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, torch.distributed as d, nmsolve.checkpoint as c\n"
        "d.init_process_group('gloo')\n"
        "report = c.prune(sys.argv[1], sys.argv[2], '2:4T', threads=1)\n"
        "assert d.is_initialized() and c.verify(sys.argv[2]).ok\n"
        "d.barrier()\n"
        "d.destroy_process_group()\n"
    )
    start = torchrun(2)[:-2]
    done = subprocess.run(
        [*start, str(program), str(src), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=200,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == whole


def test_processes_that_cannot_be_counted(tmp_path: Path) -> None:
    save_file({"fc.weight": weights(8, 8)}, tmp_path / "dense.safetensors")
    files = (tmp_path / "dense.safetensors", tmp_path / "out.safetensors")
    done = subprocess.run(
        [sys.executable, "-m", "nmsolve", "prune", *files, "--pattern", "2:4"],
        capture_output=True,
        text=True,
        timeout=100,
        env=environment() | {"RANK": "0", "WORLD_SIZE": "many"},
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(
        "nmsolve: error: the processes of this run cannot find each other: "
    )
