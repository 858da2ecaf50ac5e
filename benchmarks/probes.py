"""Measurements that need a process of their own: `python -m benchmarks.probes NAME …` prints one
number.

    import                 seconds that `import nmsolve` takes, NumPy included
    first PATTERN          seconds of the first exact solve after the import: loads numba, and loads
                           or compiles kernels
    memory PATTERN SIDE    MB that solving a float32 matrix takes beyond matrix and mask, on all
                           processors

Nothing is imported before it is measured.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path


def import_seconds() -> float:
    """From a fresh interpreter to nmsolve's public names."""
    start = time.perf_counter()
    import nmsolve  # noqa: F401

    return time.perf_counter() - start


def first_solve_seconds(pattern: str) -> float:
    """The first exact solve of a process, on a matrix so small that compiling or loading is nearly
    all of it.
    """
    import numpy as np

    import nmsolve

    weights = np.random.default_rng(0).standard_normal((512, 512), dtype=np.float32)
    start = time.perf_counter()
    result = nmsolve.solve(weights, pattern, threads=1)
    seconds = time.perf_counter() - start
    result.verify(weights)
    return seconds


def extra_megabytes(pattern: str, side: int) -> float:
    """The peak of resident memory during a solve, less what was resident before it, less the mask.

    The kernels are loaded by a small solve first. The peak is the process's own high-water mark,
    reset before the solve: `ru_maxrss` would be no less than that of the process that started this
    one.
    """
    import numpy as np

    import nmsolve

    rng = np.random.default_rng(0)
    nmsolve.solve(rng.standard_normal((256, 256), dtype=np.float32), pattern)
    weights = rng.standard_normal((side, side), dtype=np.float32)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    result = nmsolve.solve(weights, pattern)
    extra = _status_bytes("VmHWM") - before - result.mask.nbytes
    result.verify(weights)
    return extra / 1e6


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"/proc/self/status has no {field}")


def main(name: str, *arguments: str) -> float:
    """The measurement of that name."""
    if name == "import":
        return import_seconds()
    if name == "first":
        return first_solve_seconds(*arguments)
    if name == "memory":
        pattern, side = arguments
        return extra_megabytes(pattern, int(side))
    raise ValueError(f"no probe {name!r}")


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
