"""Run the tasks of a solve in threads: kernels let go of the interpreter's lock."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def in_threads(
    work: Callable[[int, int], T], tasks: list[tuple[int, int]], workers: int
) -> list[T]:
    """Return the results in the order of tasks. A pool lives for one call, so nothing is left to
    break across a fork.
    """

    def quietly(task: tuple[int, int]) -> T:
        with np.errstate(over="ignore", invalid="ignore"):  # sums that overflow are seen later
            return work(*task)

    if workers == 1 or len(tasks) == 1:
        return [quietly(task) for task in tasks]
    with ThreadPoolExecutor(min(workers, len(tasks))) as pool:
        return list(pool.map(quietly, tasks))
