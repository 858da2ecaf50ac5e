"""Figures that a process has only once: each is taken by `benchmarks.probes` in a new one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
#: Processes of which the median is taken.
PROCESSES = 5
REPEATED = f"median of {PROCESSES} processes"


def import_seconds() -> float:
    """What `import nmsolve` takes."""
    return median(_probe("import") for _ in range(PROCESSES))


def first_solve_seconds(pattern: str) -> tuple[float, float]:
    """What the first exact solve takes: with an empty kernel cache, and with the cache that this
    left.
    """
    with tempfile.TemporaryDirectory() as folder:
        compiling = _probe("first", pattern, cache=folder)
        return compiling, median(_probe("first", pattern, cache=folder) for _ in range(PROCESSES))


def extra_megabytes(pattern: str, side: int) -> float:
    """Memory that an exact solve takes beyond input and mask."""
    return _probe("memory", pattern, str(side))


def _probe(*arguments: str, cache: str | None = None) -> float:
    environment = os.environ | ({"NUMBA_CACHE_DIR": cache} if cache else {})
    command = [sys.executable, "-m", "benchmarks.probes", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return float(done.stdout)
