"""Runs in parallel processes of one thread each."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from examples.study.configurations import Configuration
from examples.study.store import Store
from examples.study.tasks import TASKS, Task
from examples.study.training import Run, train


@dataclass(frozen=True)
class Job:
    """A run to be done. steps overrides the task's, for a study that only shows that it runs."""

    task: str
    configuration: Configuration
    seed: int
    steps: int | None = None

    def run(self) -> Run:
        """Train it here."""
        return train(task_named(self.task, self.steps), self.configuration, self.seed)


def task_named(name: str, steps: int | None) -> Task:
    """A task, shortened if steps are given."""
    return TASKS[name] if steps is None else TASKS[name].shortened(steps)


def run_all(
    folder: Path,
    tasks: Sequence[str],
    configurations: Sequence[Configuration],
    seeds: Sequence[int],
    workers: int,
    steps: int | None,
) -> dict[str, Store]:
    """Do every run that is not on disk yet; the stores by task."""
    stores = {name: Store(folder, task_named(name, steps)) for name in tasks}
    jobs = [
        Job(name, configuration, seed, steps)
        for name in tasks
        for seed in seeds  # outside, so that a study that is stopped has compared everything on fewer seeds
        for configuration in configurations
        if not stores[name].has(configuration.name, seed)
    ]
    began = time.perf_counter()
    for done, (job, run) in enumerate(_results(jobs, workers), start=1):
        stores[job.task].add(job.configuration.name, job.seed, run)
        left = (time.perf_counter() - began) / done * (len(jobs) - done)
        shown = f"accuracy {run.accuracy:.4f}, loss {run.loss:.4f}, {run.seconds:.1f} s; {left / 60:.0f} min left"
        print(f"{done}/{len(jobs)}  {job.task}, {job.configuration.name}, seed {job.seed}: {shown}", file=sys.stderr, flush=True)
    return stores


def _results(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, Run]]:
    if workers == 1:
        _one_thread()
        for job in jobs:
            yield job, job.run()
        return
    # A new interpreter each: what a process computes does not depend on what was imported here.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
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
