"""`python -m benchmarks`, from the repository's root: measure everything, print the tables, save
them.

--quick   about a minute on smaller matrices: shows that everything runs, not what it is worth.
          Saved only with --out.
--out     the folder for <hardware>-<versions>.json and .md; benchmarks/results by default.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from benchmarks import machine, report
from benchmarks.comparison import compare, family_rates
from benchmarks.performance import measure
from benchmarks.settings import FULL, QUICK, Settings

T = TypeVar("T")


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure nmsolve and its rivals."
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="about a minute on smaller matrices; saved only with --out",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for the results (default: benchmarks/results, unless --quick)",
    )
    options = parser.parse_args()
    run = run_all(QUICK if options.quick else FULL)
    print(report.markdown(run))
    folder = options.out or (None if options.quick else report.RESULTS)
    if folder:
        print("saved:", *report.save(run, folder))


def run_all(settings: Settings) -> dict[str, Any]:
    """Everything that is measured, as it is saved."""
    began = time.perf_counter()
    here = machine.describe()
    rows = list(_announced(measure(settings), lambda row: row.what))
    families = dict(_announced(family_rates(settings), lambda item: f"families, {item[0]}"))
    compared = list(_announced(compare(settings), lambda one: f"{one.pattern}, {one.method}"))
    return {
        "machine": here,
        "settings": asdict(settings),
        "seconds": round(time.perf_counter() - began, 1),
        "performance": [asdict(row) | {"passed": row.passed} for row in rows],
        "families": families,
        "methods": [asdict(one) for one in compared],
    }


def _announced(items: Iterable[T], label: Callable[[T], str]) -> Iterator[T]:
    """The items, each mentioned on stderr as it comes."""
    for item in items:
        print(f"{time.strftime('%H:%M:%S')}  {label(item)}", file=sys.stderr, flush=True)
        yield item


if __name__ == "__main__":
    main()
