"""A stage, from the inside: `python -m benchmarks.gpu.process`, started by `run`, measures and
writes a line for each row.

The exit status says how it ended; everything else is in the lines.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import gc
import os
import signal
import sys
import traceback
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.gpu import lines
from benchmarks.gpu.rows import Figure, Place
from benchmarks.processes import ROOT

#: Exit statuses: a measurement failed, or the stage itself; CUDA answers this process no more;
#: there is no such device.
FAILED, POISONED, NO_DEVICE = 1, 3, 4
#: prctl's request for a signal when the parent dies.
PR_SET_PDEATHSIG = 1


def main() -> int:
    """Measure a stage."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.process")
    for name in ("--stage", "--module", "--device", "--folder"):
        parser.add_argument(name, required=True)
    parser.add_argument("--run", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--until", type=float, required=True)
    options = parser.parse_args()
    die_with(options.parent)
    faulthandler.register(signal.SIGTERM, chain=True)  # what it hung in goes to the log
    place = Place(options.device, options.until, Path(options.folder))

    def record(**line: Any) -> None:
        lines.append(
            place.folder / lines.NAME, {"run": options.run, "stage": options.stage, **line}
        )

    return measure(options.module, place, record)


def measure(module: str, place: Place, record: Any) -> int:
    """Record every row of a stage, and what fails; the exit status."""
    status = 0
    try:
        missing = no_device(place.device)
        if missing is not None:
            record(kind="error", what="the device", error=missing)
            return NO_DEVICE
        for measurement in import_module(module).measure(place):
            record(kind="measuring", what=measurement.what)
            failed = False
            try:
                for row in measurement.rows():
                    line = (
                        replace(row, target=None)
                        if isinstance(row, Figure) and not place.large
                        else row
                    )
                    record(**line.line())
            except Exception as error:  # whatever it is, the next measurement may well succeed
                failed, status = True, FAILED
                record(kind="error", what=measurement.what, **described(error))
            # Here the exception is gone, and with it the tensors in the frames of its traceback.
            if failed and (sticky := poisoned()) is not None:
                record(kind="error", what="CUDA, from here on", error=sticky)
                return POISONED
    except Exception as error:
        record(kind="error", what="the stage itself", **described(error))
        return FAILED
    return status


def described(error: Exception) -> dict[str, str]:
    """An exception's name and first line, and the end of its traceback."""
    traceback.print_exception(error)
    first = next(iter(str(error).strip().splitlines()), "")
    return {
        "error": f"{type(error).__name__}: {first}".removesuffix(": "),
        "where": "".join(traceback.format_exception(error, limit=-4)).replace(
            f"{ROOT}{os.sep}", ""
        ),
    }


def no_device(device: str) -> str | None:
    """Why there is no such device; None if there is. Torch is imported for a GPU only: a stage need
    not use it.
    """
    if device != "cuda":
        return None
    import torch

    if torch.cuda.is_available():
        return None
    return (
        f"torch {torch.__version__} sees no CUDA device here; --device cpu shows that "
        "everything runs"
    )


def poisoned() -> str | None:
    """What CUDA answers since an error that stays for the life of a process, such as an illegal
    address; None if all is well.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    try:
        torch.cuda.synchronize()
        gc.collect()
        torch.cuda.empty_cache()
    except Exception as error:
        return described(error)["error"]
    return None


def die_with(parent: int) -> None:
    """End when the parent does, however it dies: nothing is left that holds the GPU."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was dead already
            os._exit(FAILED)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not through the interpreter's end: tearing a poisoned CUDA context down may hang or crash.
    os._exit(status)
