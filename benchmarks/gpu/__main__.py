"""`python -m benchmarks.gpu`, from the repository's root on a machine with a GPU: GPU tests, then the benchmark; under 8 minutes.

--out       the folder for <gpu>-<versions>.json and .md, and tests.txt (default: benchmarks/results)
--only      tests, or bench
--device    cuda by default; cpu measures small matrices: that the script runs, not what a GPU is worth
Needs no network and no installation: PYTHONPATH is the repository. Exit status 1 if a test fails or a measurement is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch

import nmsolve
import nmsolve.torch as nmt
from benchmarks.gpu import layers, masks, report

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"
TEST_SECONDS = 240


def main() -> int:
    """Test, measure, print, save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Test and measure nmsolve on a GPU.")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results (default: benchmarks/results)")
    parser.add_argument("--only", choices=("tests", "bench"), help="one of the two parts")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a smoke run on small matrices")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("torch sees no CUDA device here:", nmt.backends(), sep="\n", file=sys.stderr)
        return 1
    device = torch.device(options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    failed = False
    if options.only != "bench":
        failed = not run_tests(options.out)
    if options.only != "tests":
        run = run_benchmark(device)
        text = report.markdown(run)
        print(text)
        name = slug(run["machine"])
        (options.out / f"{name}.json").write_text(json.dumps(run, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (options.out / f"{name}.md").write_text(text, encoding="utf-8")
        print("saved:", options.out / f"{name}.md")
        failed |= bool(run["errors"])
    return int(failed)


def run_tests(folder: Path) -> bool:
    """The tests marked gpu, in a process of their own; their output to tests.txt too. Whether at least one ran and none failed."""
    trainers = ("test_torch_hugging_face", "test_torch_lightning")  # import what such a machine need not have
    files = sorted(str(path) for path in (ROOT / "tests").glob("test_torch_*.py") if not path.name.startswith(trainers))
    # Versions here are whatever the machine has, so their own deprecations are no failures.
    command = [sys.executable, "-m", "pytest", *files, "-m", "gpu", "-q", "-W", "default", "-p", "no:cacheprovider"]
    command += ["--maxfail=25", "--durations=8", "--tb=short", "--show-capture=no"]
    if find_spec("xdist"):  # kernels compile on every processor at once
        command += ["-n", str(min(8, os.cpu_count() or 1))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    environment.pop("TRITON_INTERPRET", None)
    log = folder / "tests.txt"
    with log.open("w", encoding="utf-8") as stream:
        try:
            code = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT, timeout=TEST_SECONDS, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            code = -1
            stream.write(f"\nstopped after {TEST_SECONDS} s\n")
    print("\n".join(log.read_text(encoding="utf-8").splitlines()[-60:]))
    if code == 5:
        print("no test ran: there is no GPU")
    return code == 0


def run_benchmark(device: torch.device) -> dict[str, Any]:
    """Everything that is measured, as it is saved. What fails is reported beside what does not."""
    began = time.perf_counter()
    large = device.type == "cuda"
    errors: list[str] = []

    def collect(what: str, produce: Callable[[], Iterable[Any]]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        try:
            for row in produce():
                print(f"{time.strftime('%H:%M:%S')}  {report.line(row)}", file=sys.stderr, flush=True)
                if isinstance(row, masks.Row):
                    row = row if large else replace(row, target=None)
                    rows.append(asdict(row) | {"passed": row.passed})
                else:
                    rows.append(asdict(row))
        except Exception:  # whatever a GPU does, what was measured before it is kept
            errors.append(f"{what}: {traceback.format_exc(limit=-4)}")
        return rows

    run = {
        "machine": describe(device),
        "side": 8192 if large else 256,
        "masks": collect("masks", lambda: masks.measure(device, 8192 if large else 256)),
        "refresh": collect("refresh", lambda: layers.refresh(device, *((4096, 16384, 16384) if large else (64, 256, 64)))),
        "layers": collect("layers", lambda: layers.measure(device, 8192, 8192)) if large else [],
        "errors": errors,
    }
    return run | {"seconds": round(time.perf_counter() - began, 1)}


def describe(device: torch.device) -> dict[str, Any]:
    """The machine and the versions, as saved with every result."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = "none"
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability(device))) if cuda else None,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "backends": {name: f"{'yes' if entry.available else 'no'}: {entry.reason}" for name, entry in nmt.backends().items()},
        "versions": {
            "nmsolve": nmsolve.__version__,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "triton": triton_version,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "numba": numba.__version__,
        },
    }


def slug(machine: dict[str, Any]) -> str:
    """The name of a result file: hardware and versions."""
    name = f"{machine['device']} torch{machine['versions']['torch']} triton{machine['versions']['triton']}"
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main())
