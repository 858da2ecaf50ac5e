"""`python -m examples.study`, from the repository's root: train what is not on disk yet, then write
tables and figures.

--workers  processes, of one thread each (2)
--seeds    how many, from 0 on (5)
--tasks    some of cnn, vit, gpt (all)
--out      folder of results (examples/results)
--report   train nothing, only write the report
--tiny     seconds instead of an hour; into a temporary folder unless --out is given
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from examples.study import report
from examples.study.configurations import FULL, TINY
from examples.study.outcome import Outcome
from examples.study.runner import run_all
from examples.study.store import Store
from examples.study.tasks import TASKS
from examples.study.training import run

RESULTS = Path(__file__).resolve().parents[1] / "results"
TINY_STEPS, TINY_SEEDS = 4, 2


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.study", description="Compare training methods on small models."
    )
    parser.add_argument("--workers", type=int, help="processes of one thread each (default: 2)")
    parser.add_argument("--seeds", type=int, help="how many seeds, from 0 on (default: 5)")
    parser.add_argument(
        "--tasks", nargs="+", choices=list(TASKS), default=list(TASKS), help="default: all"
    )
    parser.add_argument("--out", type=Path, help="folder of results (default: examples/results)")
    parser.add_argument(
        "--report",
        action="store_true",
        help="train nothing, write tables and figures of the runs that are there",
    )
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="a few steps of everything in this process: shows that it runs",
    )
    options = parser.parse_args()
    comparisons, steps = (TINY, TINY_STEPS) if options.tiny else (FULL, None)
    seeds = options.seeds or (TINY_SEEDS if options.tiny else 5)
    folder = options.out or (
        Path(tempfile.mkdtemp(prefix="nmsolve-study-")) if options.tiny else RESULTS
    )
    tasks = [
        TASKS[name] if steps is None else TASKS[name].shortened(steps) for name in options.tasks
    ]
    if options.report:
        stores = {task.name: Store(folder, task) for task in tasks}
    else:
        workers = options.workers or (1 if options.tiny else 2)
        stores = run_all(folder, tasks, comparisons.configurations(), range(seeds), workers, run)
    found = [(task, stores[task.name]) for task in tasks]
    outcomes = [
        Outcome(task, store.runs, store.content["machine"]) for task, store in found if store.runs
    ]
    if not outcomes:
        raise SystemExit(f"there are no runs in {folder}")
    most = max(len(of_one) for outcome in outcomes for of_one in outcome.runs.values())
    command = (
        "python -m examples.study --tiny"
        if options.tiny
        else f"python -m examples.study --seeds {most}"
    )
    print(report.write(folder, outcomes, comparisons, command))


if __name__ == "__main__":
    main()
