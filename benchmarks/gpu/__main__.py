"""`python -m benchmarks.gpu`, from the repository's root: what this machine's GPU does, in stages,
within nine minutes.

--stages    some of the stages, by name and comma; all by default
--minutes   for all of them together, the report included (9)
--out       the folder for results.jsonl, report.md, log.txt and tests.xml. By default
            benchmarks/results/<gpu>-<versions>, and for --device cpu a new temporary one. Runs are
            appended to what is there; the report shows the last of each stage
--device    cuda by default; cpu measures small matrices: that everything runs, not what a GPU is
            worth
--report    only write and print the report of a folder, also of a run that was killed

Each stage is a process with a time limit: one that crashes, hangs or leaves CUDA unusable costs
itself alone. Everything measured is on the disk at once. Needs no network, and nmsolve need not be
installed: PYTHONPATH is the repository. Exit status 1 if a stage did not pass; a target that was
missed is no failure.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.gpu import lines
from benchmarks.gpu.machine import gpu_slug, nvidia_smi
from benchmarks.gpu.run import run, write_report
from benchmarks.gpu.stages import STAGES, Stage
from benchmarks.processes import ROOT


def main() -> int:
    """Measure and report, or only report."""
    names = ", ".join(stage.name for stage in STAGES)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description="Measure and test nmsolve on a GPU, in stages."
    )
    parser.add_argument(
        "--stages",
        type=chosen,
        default=STAGES,
        help=f"some of {names}, separated by commas (default: all)",
    )
    parser.add_argument(
        "--minutes", type=minutes, default=9.0, help="for everything together (default: 9)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for the results (default: benchmarks/results/<gpu>-<versions>)",
    )
    parser.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda",
        help="cpu: a smoke run on small matrices",
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FOLDER",
        help="only write the report of a folder with results",
    )
    options = parser.parse_args()
    if options.report is not None:
        if not (options.report / lines.NAME).is_file():
            parser.error(f"{options.report} is no folder with a file {lines.NAME}")
        print(write_report(options.report).read_text(encoding="utf-8"))
        return 0
    folder = options.out or default_folder(options.device)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(
            f"results cannot go to {folder}: {error.strerror}; name another folder by --out"
        )
    try:
        passed = run(options.stages, folder, options.device, 60 * options.minutes)
    except KeyboardInterrupt:
        print(
            f"interrupted; what was measured is in {folder}, its report in {folder / 'report.md'}",
            file=sys.stderr,
        )
        return 130
    report = folder / "report.md"
    print(report.read_text(encoding="utf-8"))
    print("saved:", report)
    return 0 if passed else 1


def default_folder(device: str) -> Path:
    """Where results go: those of a smoke run, or of a machine that has no GPU, are not kept beside
    those that count.
    """
    if device == "cpu" or not nvidia_smi("name"):
        return Path(tempfile.mkdtemp(prefix="nmsolve-gpu-smoke-"))
    return ROOT / "benchmarks" / "results" / gpu_slug()


def chosen(text: str) -> list[Stage]:
    """Stages by name, in their own order."""
    known = {stage.name: stage for stage in STAGES}
    wanted = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        what = (
            f"no stage is called {', '.join(map(repr, unknown))}"
            if unknown
            else "no stage is named"
        )
        raise argparse.ArgumentTypeError(f"{what}; they are {', '.join(known)}")
    return [stage for stage in STAGES if stage.name in wanted]


def minutes(text: str) -> float:
    """A positive number."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"minutes are a positive number, not {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
