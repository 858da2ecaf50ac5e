"""The tests marked gpu, by pytest in a process of its own: a row as each test ends, so that a
killed run names what it did.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from threading import Timer

from benchmarks.gpu.rows import Measurement, Outcome, Place, Row, Skipped
from benchmarks.processes import ROOT

#: Folders with tests that run on a GPU too.
FOLDERS = ("tensors", "training", "pruning", "offload", "allocation", "dispatch")
#: Test files that import what such a machine need not have.
TRAINERS = ("test_hugging_face", "test_lightning")
#: Seconds before the stage's limit at which no further test is begun, and at which pytest is
#: killed.
STOP, KILL = 14.0, 5.0
#: pytest's exit status if no test was collected.
NO_TESTS = 5
_OUTCOME = r"(?P<outcome>PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)"
#: `python -m pytest` for the process whose number comes first, which it does not outlive.
PYTEST = """import sys
from benchmarks.gpu.process import die_with
die_with(int(sys.argv.pop(1)))
import pytest
sys.exit(pytest.main(sys.argv[1:]))"""
#: What pytest -v prints of a test that ended, by itself and with xdist; and of one that began.
_ENDED = (
    re.compile(rf"(?P<name>\S+\.py::.+?) {_OUTCOME}\b"),
    re.compile(rf"\[gw\d+\] \[ *\d+%\] {_OUTCOME} (?P<name>\S+\.py::.+)"),
)
_BEGAN = re.compile(r"(?P<name>\S+\.py::.+)")
#: How many there are to run: by one process, of which others may have been deselected, and by
#: several.
_SELECTED = re.compile(
    r"(?:collecting \.\.\. )?collected (\d+) items?(?: / .*?(\d+) selected)?|\d+ workers? \[(\d+) "
    r"items?\]"
)


class NotAllPassed(Exception):
    """Not every test passed."""


def measure(place: Place) -> Iterator[Measurement]:
    """All tests; where there is no GPU none is marked."""
    files = [
        path
        for folder in FOLDERS
        for path in sorted((ROOT / "tests" / folder).glob("test_*.py"))
        if not path.name.startswith(TRAINERS)
    ]
    yield Measurement("tests marked gpu", lambda: run_tests(files, place))


def run_tests(files: Iterable[Path], place: Place) -> Iterator[Row]:
    """A row for each test that ends, a second one with the message of each that failed, and for
    those that never ended.
    """
    junit = place.folder / "tests.xml"
    junit.unlink(missing_ok=True)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    outcomes: dict[str, str] = {}
    selected = 0
    with subprocess.Popen(
        command(files, place, junit),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        killer = Timer(max(1.0, place.left() - KILL), process.kill)
        killer.daemon = True
        killer.start()
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="")  # to the log
            selected = selected_by(line) or selected
            for test in parsed(line):
                outcomes[test.name] = test.outcome
                if test.outcome != "running":
                    yield test
        code = process.wait()
        killer.cancel()
    if code == NO_TESTS and not place.large:
        yield Skipped(what="tests", why="no test is marked gpu here: there is no GPU")
        return
    yield from (
        Outcome(name=name, outcome=outcome)
        for name, outcome in outcomes.items()
        if outcome == "running"
    )
    yield from failures(junit)
    if code != 0:
        raise NotAllPassed(summary(code, outcomes, selected))


def command(files: Iterable[Path], place: Place, junit: Path) -> list[str]:
    """How pytest is called: with what is installed here."""
    # Versions here are whatever the machine has, so their own deprecations are no failures.
    options = [
        "-m",
        "gpu",
        "-v",
        "-W",
        "default",
        "-p",
        "no:cacheprovider",
        "--color=no",
        "--tb=short",
        "--show-capture=no",
    ]
    # A file that imports what is not installed here costs its own tests alone.
    options += ["--durations=10", f"--junitxml={junit}", "--continue-on-collection-errors"]
    if find_spec("xdist"):  # kernels compile on every processor at once
        options += ["-n", str(min(14, os.cpu_count() or 1))] if place.large else []
    if find_spec("pytest_timeout"):
        options.append(f"--session-timeout={max(1.0, place.left() - STOP):.0f}")
    return [sys.executable, "-c", PYTEST, str(os.getpid()), *map(str, files), *options]


def parsed(line: str) -> list[Outcome]:
    """What a line of pytest -v says about a test."""
    for pattern in _ENDED:
        if found := pattern.match(line):
            return [Outcome(name=found["name"].strip(), outcome=found["outcome"].lower())]
    found = _BEGAN.match(line)
    return [Outcome(name=found["name"].strip(), outcome="running")] if found else []


def selected_by(line: str) -> int | None:
    """How many tests there are to run, if a line of pytest's says so."""
    found = _SELECTED.match(line)
    return int(next(number for number in reversed(found.groups()) if number)) if found else None


def failures(junit: Path) -> Iterator[Outcome]:
    """Tests that did not pass, with the first line of what they say."""
    if not junit.exists():  # pytest was killed
        return
    for case in ElementTree.parse(junit).getroot().iter("testcase"):
        for kind in ("failure", "error"):
            for problem in case.findall(kind):
                file = case.get("classname", "").replace(".", "/")
                name = f"{file}.py::{case.get('name')}" if file else str(case.get("name"))
                told = (problem.get("message") or "").strip()
                if (
                    kind == "error" and told == "collection failure"
                ):  # what failed is at the end of its text
                    told = (
                        (problem.text or told).strip().splitlines()[-1].removeprefix("E ").strip()
                    )
                message = next(iter(told.splitlines()), "")
                yield Outcome(
                    name=name, outcome={"failure": "failed"}.get(kind, kind), message=message[:300]
                )


def summary(code: int, outcomes: dict[str, str], selected: int) -> str:
    """How many of the tests passed and how many did not, and what pytest made of it."""
    counts = {
        outcome: list(outcomes.values()).count(outcome)
        for outcome in sorted(set(outcomes.values()))
    }
    told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items()) or "no test ended"
    return (
        f"{told}, of {selected}; pytest "
        f"{'was killed: its time was up' if code < 0 else f'ended with status {code}'}"
    )
