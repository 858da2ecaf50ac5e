"""`python -m examples.language_model`, from the repository's root: run what is not on disk yet,
then write tables and figures.

--rows      some of dense, magnitude, Wanda, SparseGPT, adaprune_-own, adaprune_, sparsegpt_ and
            sparsegpt_-disk (all)
--patterns  some of 2:4, 4:8, 6:8, 2:4T, 4:8T, 8:16T, 16:32T (all)
--seeds     how many calibrations, from 0 on (3)
--blocks    how many blocks to prune, from the first on (30, all)
--out       folder of results (examples/results/language_model)
--report    run nothing, only write the report
--tiny      a minute instead of hours: four blocks, few tokens, 2:4 and 2:4T

Results of --blocks and --tiny go into a temporary folder unless --out is given.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from examples.language_model import report
from examples.language_model.measuring import Measured, measure
from examples.language_model.prepared import prepare
from examples.language_model.rows import METHODS, PATTERNS, TINY_PATTERNS, Row, rows
from examples.language_model.settings import FULL, TINY, Settings
from examples.language_model.store import Store

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "examples" / "results" / "language_model"


def main() -> None:
    """See the module."""
    options = _options()
    settings = TINY if options.tiny else FULL
    if options.blocks:
        settings = replace(settings, blocks=options.blocks)
    folder = options.out or (
        RESULTS if settings == FULL else Path(tempfile.mkdtemp(prefix="nmsolve-language-model-"))
    )
    if not options.report:
        patterns = options.patterns or (TINY_PATTERNS if options.tiny else PATTERNS)
        seeds = options.seeds or (1 if options.tiny else 3)
        store = Store(folder, settings)
        jobs = [
            (row, seed)
            # outside, so that what is stopped has compared everything on fewer seeds
            for seed in range(seeds)
            for row in rows(options.rows, patterns)
            if seed in row.seeds(seeds) and not store.has(row, seed)
        ]
        _run_all(store, settings, jobs, here=options.tiny)
    print(report.write(folder))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.language_model",
        description="Prune a real language model in one shot.",
    )
    parser.add_argument("--rows", nargs="+", choices=METHODS, default=METHODS, help="default: all")
    parser.add_argument("--patterns", nargs="+", choices=PATTERNS, help="default: all")
    parser.add_argument("--seeds", type=int, help="calibrations, from 0 on (default: 3)")
    parser.add_argument(
        "--blocks",
        type=int,
        choices=range(1, FULL.blocks + 1),
        metavar="COUNT",
        help="prune the first blocks only",
    )
    parser.add_argument(
        "--out", type=Path, help="folder of results (default: examples/results/language_model)"
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="run nothing, write tables and figures of what is there",
    )
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="four blocks and few tokens in this process: shows that it runs",
    )
    return parser.parse_args()


def _run_all(
    store: Store, settings: Settings, jobs: Sequence[tuple[Row, int]], *, here: bool
) -> None:
    """Do them one by one, here or in a process each."""
    if not jobs:
        return
    with tempfile.TemporaryDirectory(prefix="nmsolve-smollm2-") as name:
        folder = Path(name)
        prepare(folder, settings)
        began = time.perf_counter()
        for done, (row, seed) in enumerate(jobs, start=1):
            found = measure(folder, row, seed) if here else _apart(folder, row, seed)
            store.add(row, seed, found.as_json())
            left = (time.perf_counter() - began) / done * (len(jobs) - done)
            print(
                f"{done}/{len(jobs)}  {row.name}, seed {seed}: {found.summary}; "
                f"{left / 60:.0f} min left",
                file=sys.stderr,
                flush=True,
            )


def _apart(folder: Path, row: Row, seed: int) -> Measured:
    command = [sys.executable, "-m", "examples.language_model.measuring", str(folder)]
    # as many as here: `benchmarks`, which describes the machine, asks for one
    threads = str(torch.get_num_threads())
    done = subprocess.run(
        [*command, json.dumps(asdict(row)), str(seed)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{row.name}, seed {seed}, failed: see above")
    found: dict[str, Any] = json.loads(done.stdout)
    return Measured(**found)


if __name__ == "__main__":
    main()
