"""`python -m benchmarks.training`, from the repository's root: what training with masks costs,
against what was promised.

--quick     under a minute, with a small model: shows that everything runs. Saved only with --out
--out       the folder for <hardware>-<versions>-training.json and .md (benchmarks/results)
--only      refresh, hooks or memory; saved only with --out
--device    cuda where there is one, cpu otherwise
--threads   of torch, on a CPU: all that this process may run on, unless given
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.processes import ROOT
from benchmarks.training import hooks, memory, refresh, report
from benchmarks.training.rows import Row
from benchmarks.training.settings import FULL, GPU, QUICK, Settings

PARTS = ("refresh", "hooks", "memory")
T = TypeVar("T")


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training", description="Measure what training with masks costs."
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="under a minute with a small model; saved only with --out",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for the results (default: benchmarks/results, unless --quick or --only)",
    )
    parser.add_argument("--only", choices=PARTS, help="one of the three parts")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), help="cuda where there is one, cpu otherwise"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="of torch, on a CPU (default: all)",
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    settings = QUICK if options.quick else GPU if device.type == "cuda" else FULL
    if device.type == "cuda":
        settings = replace(settings, dtype=torch.bfloat16)
    run = run_all(settings, device, (options.only,) if options.only else PARTS)
    text = report.markdown(run)
    print(text)
    folder = options.out or (
        None if options.quick or options.only else ROOT / "benchmarks" / "results"
    )
    if folder:
        print("saved:", *save(run, text, folder))


def run_all(settings: Settings, device: torch.device, parts: Iterable[str]) -> dict[str, Any]:
    """Everything that is measured, as it is saved."""
    began = time.perf_counter()
    here = describe(device)
    refreshed: list[refresh.Refresh] = []
    long: list[Row] = []
    hooked: list[hooks.Hooks] = []
    held: list[memory.Memory] = []
    refused = ""
    if "refresh" in parts:
        refreshed = list(_announced(refresh.measure(settings, device)))
        long = list(_announced(refresh.measure_long(settings, device)))
    if "hooks" in parts:
        hooked = list(_announced(hooks.measure(settings, device)))
    if "memory" in parts:
        held = list(_announced(memory.measure(settings.side)))
        refused = memory.refusal()
    targets = [row for one in refreshed for row in one.rows] + long
    targets += [row for one in hooked for row in one.rows] + [
        row for one in held for row in one.rows
    ]
    return {
        "machine": here,
        "threads": torch.get_num_threads(),
        "settings": asdict(settings)
        | {"dtype": str(settings.dtype).removeprefix("torch."), "tokens": settings.tokens},
        "targets": [asdict(row) | {"passed": row.passed} for row in targets],
        "refresh": [asdict(one) for one in refreshed],
        "quoted": {"source": "transposable-masks paper, ResNet-50, refresh every 40 steps, percent"}
        | refresh.QUOTED,
        "hooks": [asdict(one) for one in hooked],
        "memory": [asdict(one) for one in held],
        "refused": refused,
        "seconds": round(time.perf_counter() - began, 1),
    }


def describe(device: torch.device) -> dict[str, Any]:
    """The machine and the versions, as saved with every result; what only a CPU's description needs
    is imported for it alone.
    """
    if device.type == "cuda":
        from benchmarks.gpu.machine import describe as describe_gpu

        return describe_gpu(device)
    from benchmarks.machine import describe as describe_cpu

    return describe_cpu()


def name_of(machine: dict[str, Any]) -> str:
    """The name of the result files: hardware and versions."""
    if "cpu" not in machine:
        from benchmarks.gpu.machine import slug as slug_gpu

        return f"{slug_gpu(machine)}-training"
    from benchmarks.machine import slug as slug_cpu

    return f"{slug_cpu(machine)}-torch{machine['versions']['torch'].partition('+')[0]}-training"


def save(run: dict[str, Any], text: str, folder: Path) -> list[Path]:
    """The run as JSON and as Markdown, in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {".json": json.dumps(run, indent=1, ensure_ascii=False) + "\n", ".md": text}
    paths = [folder / f"{name_of(run['machine'])}{suffix}" for suffix in texts]
    for path, content in zip(paths, texts.values(), strict=True):
        path.write_text(content, encoding="utf-8")
    return paths


def _announced(items: Iterable[T]) -> Iterator[T]:
    """The items, each told on stderr as it comes."""
    for item in items:
        for row in [item] if isinstance(item, Row) else getattr(item, "rows", ()):
            told = f"{row.what}: {row.measured:.3g} {row.unit}"
            print(f"{time.strftime('%H:%M:%S')}  {told}", file=sys.stderr, flush=True)
        yield item


if __name__ == "__main__":
    main()
