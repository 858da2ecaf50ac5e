"""Time the solving, without the compiling of kernels."""

from __future__ import annotations

import time


class Stopwatch:
    """Seconds since it was made, without those that were spent on kernels: a first solve compiles
    them, or loads them from the disk, and what it says of its speed should hold for the second.
    """

    __slots__ = ("_stopped", "_zero")

    def __init__(self) -> None:
        self._zero = self._stopped = time.perf_counter()

    def stop(self) -> None:
        """Stand still until `go`."""
        self._stopped = time.perf_counter()

    def go(self) -> None:
        """Run on from where it was stopped."""
        self._zero += time.perf_counter() - self._stopped

    @property
    def seconds(self) -> float:
        """Seconds that it shows now."""
        return time.perf_counter() - self._zero
