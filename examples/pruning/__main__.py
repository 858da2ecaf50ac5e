"""`python -m examples.pruning`, from the repository's root: run what is not on disk yet, then write
tables and figures.

--parts    some of conversion, allocation (both)
--workers  processes, of one thread each (2)
--seeds    how many, from 0 on (5)
--tasks    some of cnn, resnet, vit, gpt (all; allocation has no cnn)
--out      folder of results (examples/results/pruning)
--report   run nothing, only write the report
--tiny     seconds instead of hours; into a temporary folder unless --out is given
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from examples.pruning import report
from examples.pruning.conversion import CONVERSIONS, Conversion, convert
from examples.pruning.schemes import SCHEMES, Scheme, allocate
from examples.pruning.tasks import ALLOCATED, TASKS
from examples.study.outcome import Outcome
from examples.study.runner import run_all
from examples.study.store import Store

RESULTS = Path(__file__).resolve().parents[1] / "results" / "pruning"
PARTS = {"conversion": (CONVERSIONS, convert), "allocation": (SCHEMES, allocate)}
TINY = {
    "conversion": ((Conversion("2:4T"), Conversion(None)), convert),
    "allocation": (
        tuple(Scheme(way, "params", 4) for way in ("uniform", "exact, score", "exact, loss")),
        allocate,
    ),
}
TINY_STEPS, TINY_SEEDS, TINY_TASKS = 4, 1, ("resnet",)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.pruning", description="Prune small trained models."
    )
    parser.add_argument(
        "--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="default: both"
    )
    parser.add_argument("--workers", type=int, help="processes of one thread each (default: 2)")
    parser.add_argument("--seeds", type=int, help="how many seeds, from 0 on (default: 5)")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), help="default: all")
    parser.add_argument(
        "--out", type=Path, help="folder of results (default: examples/results/pruning)"
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="run nothing, write tables and figures of what is there",
    )
    parser.add_argument(
        "--tiny", action="store_true", help="a few steps in this process: shows that it runs"
    )
    options = parser.parse_args()
    seeds = options.seeds or (TINY_SEEDS if options.tiny else 5)
    folder = options.out or (
        Path(tempfile.mkdtemp(prefix="nmsolve-pruning-")) if options.tiny else RESULTS
    )
    outcomes: dict[str, list[Outcome]] = {}
    for part in PARTS:
        configurations, do = (TINY if options.tiny else PARTS)[part]
        names = options.tasks or (TINY_TASKS if options.tiny else TASKS)
        tasks = [TASKS[name] for name in names if part == "conversion" or name in ALLOCATED]
        tasks = [task.shortened(TINY_STEPS) for task in tasks] if options.tiny else tasks
        if options.report or part not in options.parts:
            stores = {task.name: Store(folder / part, task) for task in tasks}
        else:
            stores = run_all(
                folder / part,
                tasks,
                configurations,
                range(seeds),
                options.workers or (1 if options.tiny else 2),
                do,
            )
        found = [(task, stores[task.name]) for task in tasks]
        outcomes[part] = [
            Outcome(task, store.runs, store.content["machine"])
            for task, store in found
            if store.runs
        ]
    if not any(outcomes.values()):
        raise SystemExit(f"there are no runs in {folder}")
    print(report.write(folder, outcomes["conversion"], outcomes["allocation"]))


if __name__ == "__main__":
    main()
