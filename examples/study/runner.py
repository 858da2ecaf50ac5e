"""Runs in parallel processes of one thread each."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import torch

from examples.study.store import Store
from examples.study.tasks import Task


class Saved(Protocol):
    """What came of a run."""

    def as_json(self) -> dict[str, Any]:
        """For the file."""

    @property
    def summary(self) -> str:
        """For the terminal."""


class Named(Protocol):
    """What a run is made of, and the names that its results are saved under."""

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""


#: From a task, a configuration and a seed to results by name.
Do = Callable[[Task, Any, int], Mapping[str, Saved]]


@dataclass(frozen=True)
class Job:
    """A run to be done."""

    task: Task
    configuration: Named
    seed: int
    do: Do

    def run(self) -> Mapping[str, Saved]:
        """Do it here."""
        return self.do(self.task, self.configuration, self.seed)


def run_all(
    folder: Path,
    tasks: Sequence[Task],
    configurations: Sequence[Named],
    seeds: Sequence[int],
    workers: int,
    do: Do,
) -> dict[str, Store]:
    """Do every run that is not on disk yet; the stores by task."""
    stores = {task.name: Store(folder, task) for task in tasks}
    jobs = [
        Job(task, configuration, seed, do)
        # outside, so that a study that is stopped has compared everything on fewer seeds
        for seed in seeds
        for task in tasks
        for configuration in configurations
        if not all(stores[task.name].has(name, seed) for name in configuration.names)
    ]
    began = time.perf_counter()
    for done, (job, results) in enumerate(_results(jobs, workers), start=1):
        for name, result in results.items():
            stores[job.task.name].add(name, job.seed, result)
        left = (time.perf_counter() - began) / done * (len(jobs) - done)
        shown = "; ".join(f"{name}: {result.summary}" for name, result in results.items())
        print(
            f"{done}/{len(jobs)}  {job.task.name}, seed {job.seed}, {shown}; {left / 60:.0f} min "
            "left",
            file=sys.stderr,
            flush=True,
        )
    return stores


def _results(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, Mapping[str, Saved]]]:
    if workers == 1:
        _one_thread()
        for job in jobs:
            yield job, job.run()
        return
    # A new interpreter each: what a process computes does not depend on what was imported here.
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_one_thread
    ) as pool:
        futures = {pool.submit(job.run): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _one_thread() -> None:
    """Sums then come out in the same order wherever a run is done."""
    torch.set_num_threads(1)
