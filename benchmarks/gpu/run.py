"""The stages, from the outside: each in a process with a time limit, and a report after every one
of them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu import lines
from benchmarks.gpu.process import NO_DEVICE
from benchmarks.gpu.report import markdown
from benchmarks.gpu.stages import Stage, limit
from benchmarks.gpu.status import parts
from benchmarks.processes import ROOT

#: Seconds from SIGTERM to SIGKILL, and from there until a process is given up that not even that
#: can end.
GRACE, BURY = 2.0, 3.0
#: Seconds of the budget that no stage gets: for ending the last one and for the report.
RESERVE = GRACE + BURY + 2.0
#: A stage is not started with less: importing torch takes about as long.
LEAST = 3.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a stage ended: ok, failed, timed out, crashed, or not run; and its process's exit status,
    if it had one.
    """

    outcome: str
    detail: str = ""
    code: int | None = None


def run(stages: Sequence[Stage], folder: Path, device: str, seconds: float) -> bool:
    """Run stages within a number of seconds, one after the other; whether all passed.

    Lines are appended to the folder's results.jsonl under the number of this run, what processes
    print to log.txt; report.md is written anew after every stage.
    """
    deadline = time.monotonic() + seconds
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / lines.NAME
    with lines.locked(folder):  # two runs into one folder have two numbers
        number = 1 + max((int(line.get("run", 0)) for line in lines.read(results)), default=0)
        began = {
            "run": number, "kind": "run", "stages": [stage.name for stage in stages],
            "device": device, "seconds": seconds,
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        }  # fmt: skip
        lines.append(results, began)
    passed, refusal = True, ""
    try:
        for k, stage in enumerate(stages):
            began = time.monotonic()
            allowed = limit(stages[k:], deadline - RESERVE - began)
            if refusal:
                ended = Ended("not run", refusal)
            elif allowed < LEAST:
                ended = Ended("not run", "no time was left")
            else:
                lines.append(
                    results,
                    {
                        "run": number,
                        "stage": stage.name,
                        "kind": "begin",
                        "limit_s": round(allowed, 1),
                    },
                )
                ended = _execute(stage, folder, device, number, allowed)
                if ended.code == NO_DEVICE:
                    refusal = f"there is no {device} device"
            took = round(time.monotonic() - began, 1)
            end: dict[str, Any] = {
                "kind": "end",
                "outcome": ended.outcome,
                "detail": ended.detail,
                "seconds": took,
            }
            lines.append(results, {"run": number, "stage": stage.name, **end})
            passed &= ended.outcome == "ok"
            _tell(folder, stage.name)
            write_report(folder)
    finally:  # Ctrl-C too
        write_report(folder)
    return passed


def write_report(folder: Path) -> Path:
    """report.md of a folder's lines, in one piece; its path."""
    path, news = folder / "report.md", folder / "report.md.new"
    with lines.locked(folder):
        news.write_text(markdown(lines.read(folder / lines.NAME)), encoding="utf-8")
        os.replace(news, path)
    return path


def _tell(folder: Path, name: str) -> None:
    part = next(part for part in parts(lines.read(folder / lines.NAME)) if part.name == name)
    print(
        f"{time.strftime('%H:%M:%S')}  {name}: {part.outcome}, {part.seconds:.0f} s  "
        f"{part.why}".rstrip(),
        flush=True,
    )


def _execute(stage: Stage, folder: Path, device: str, number: int, seconds: float) -> Ended:
    """Run a stage's process to its end, or put an end to it."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
    }  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu.process",
        "--stage",
        stage.name,
        "--module",
        stage.module,
    ]
    command += [
        "--device",
        device,
        "--folder",
        str(folder.resolve()),
        "--run",
        str(number),
        "--parent",
        str(os.getpid()),
    ]
    command += ["--until", str(time.monotonic() + seconds)]
    with (folder / "log.txt").open("ab") as log:
        log.write(f"\n== {stage.name}, run {number}, {time.strftime('%H:%M:%S')}\n".encode())
        log.flush()
        # A group of its own, so that whatever it started ends with it; no session: one would
        # outlive whoever ends ours.
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return Ended("timed out", _end(process, f"after {seconds:.0f} s"))
        except BaseException:
            _end(process, "")
            raise
    _signal(process, signal.SIGKILL)  # whatever it left behind
    if code == 0:
        return Ended("ok", code=code)
    if code > 0:
        return Ended("failed", f"exit status {code}", code)
    return Ended("crashed", f"by signal {-code} ({signal.Signals(-code).name})", code)


def _end(process: subprocess.Popen[bytes], why: str) -> str:
    """SIGTERM for a process and its group, then SIGKILL; why, and what was needed."""
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, BURY)):
        _signal(process, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            _signal(process, signal.SIGKILL)
            return f"{why}, ended by {number.name}"
    return f"{why}, and not even SIGKILL ended it"


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
