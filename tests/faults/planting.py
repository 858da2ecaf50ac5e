"""Plant a fault in a copy of the repository and run the tests nearest to it."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Folders and files that tests need.
PARTS = ("nmsolve", "tests", "reference", "benchmarks", "examples", "docs")
FILES = ("pyproject.toml", "README.md", "CONTRIBUTING.md", "Makefile", "constraints.txt")
#: Kernels as numba keeps them, beside their sources.
KERNELS = ("*.nbi", "*.nbc")
#: Seconds after which tests have hung.
LIMIT = 600


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A mistake that somebody might make.

    Attributes
    ----------
    name : str
        What would be wrong, in a few words.
    file : str
        Where, from the repository's root.
    old, new : str
        The text that is there, exactly once, and what replaces it.
    tests : tuple of str
        What pytest is given: the nearest tests of `make test`, at least one of which has to fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def recompiles(self) -> bool:
        """True if kernels are compiled again for it: they are known by all of their sources."""
        return self.file.startswith("nmsolve/solvers/")

    def applied(self, text: str) -> str:
        """Return a file's text with the fault in it; ValueError if it does not fit any more."""
        if text.count(self.old) != 1:
            raise ValueError(
                f"{self.name}: {self.file} has this {text.count(self.old)} times, not once:\n"
                f"{self.old}"
            )
        return text.replace(self.old, self.new)


def copy_to(folder: Path, *, kernels: bool = True) -> None:
    """Copy the working tree, with its compiled kernels, which know their sources by their times."""
    skipped = shutil.ignore_patterns(
        "results", ".hypothesis", ".mypy_cache", "*.tmp", *(() if kernels else KERNELS)
    )
    for part in PARTS:
        shutil.copytree(ROOT / part, folder / part, ignore=skipped, copy_function=shutil.copy2)
    for name in FILES:
        shutil.copy2(ROOT / name, folder / name)


def run(folder: Path, tests: tuple[str, ...], limit: float | None = LIMIT) -> tuple[str, str]:
    """Run tests in a copy, for at most `limit` seconds.

    Returns
    -------
    outcome : {"passed", "failed", "broken"}
        "broken" if pytest could not run them, or nothing was there to run, or they hung.
    output : str
        What pytest printed at the end.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            [*command, *tests],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(folder), "CI": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        return "broken", f"not done in {limit} seconds"
    output = done.stdout[-3000:] + done.stderr[-1000:]
    # A test that fails, or a fixture of one; not a file that cannot be imported.
    failed = (
        done.returncode == 1
        and re.search(r"\b\d+ (failed|errors?)\b", done.stdout)
        and not re.search(r"^_+ ERROR collecting ", done.stdout, re.MULTILINE)
    )
    outcome = "passed" if done.returncode == 0 else "failed" if failed else "broken"
    return outcome, output


def plant(folder: Path, fault: Fault) -> tuple[str, str]:
    """Run a fault's tests in a copy with the fault in it; the copy is then as it was."""
    path = folder / fault.file
    state = path.stat()
    text = path.read_text(encoding="utf-8")
    path.write_text(fault.applied(text), encoding="utf-8")
    try:
        return run(folder, fault.tests)
    finally:
        path.write_text(text, encoding="utf-8")
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
