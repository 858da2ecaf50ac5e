"""Run the tasks of a solve in threads: kernels let go of the interpreter's lock."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

T = TypeVar("T")

#: Seconds of work that are worth threads: starting some takes a while, and many times that beside
#: those of another library, which wait for more to do on their processors.
_WORTH = 2e-3


def in_threads(
    work: Callable[[int, int], T], tasks: list[tuple[int, int]], workers: int, *, steady: bool
) -> list[T]:
    """Return the results in the order of tasks. A pool lives for one call, so nothing is left to
    break across a fork.

    Parameters
    ----------
    work, tasks, workers
    steady : bool
        Whether all tasks take about the same time: the first one tells if others are worth threads.
    """

    def quietly(task: tuple[int, int]) -> T:
        with np.errstate(over="ignore", invalid="ignore"):  # sums that overflow are seen later
            return work(*task)

    if workers == 1 or len(tasks) == 1:
        return [quietly(task) for task in tasks]
    done: list[T] = []
    if steady:
        began = time.perf_counter()
        done.append(quietly(tasks[0]))
        left = tasks[1:]
        if (time.perf_counter() - began) * len(left) < _WORTH:
            return done + [quietly(task) for task in left]
        tasks = left
    with ThreadPoolExecutor(min(workers, len(tasks))) as pool:
        return done + list(pool.map(quietly, tasks))
