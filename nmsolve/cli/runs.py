"""A run over a checkpoint: its progress on stderr, its outcome on stdout."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from nmsolve.cli.printing import printable, show, stands
from nmsolve.cli.progress import shown_progress
from nmsolve.selection import Patterns
from nmsolve.starting import INTERRUPTED
from nmsolve.torchrun import one_of_several, rank_given


def run_and_show(
    command: Literal["prune", "solve"],
    src: Path,
    dst: Path,
    pattern: Patterns,
    *,
    options: Mapping[str, Any],
    as_json: bool = False,
) -> int:
    """`prune` or `solve` a checkpoint, showing progress and the report. Return the exit code.

    options : of `nmsolve.checkpoint.prune`.
    """
    from nmsolve import checkpoint

    began = time.perf_counter()
    with shown_progress() as progress:
        try:
            found = getattr(checkpoint, command)(src, dst, pattern, progress=progress, **options)
        except KeyboardInterrupt:
            progress.stop()
            print(
                printable(f"nmsolve: stopped, with {progress.state}. Go on with: {_resuming()}"),
                file=sys.stderr,
            )
            return INTERRUPTED
    stands()
    if speaks():
        if as_json:
            sys.stdout.write(found.to_json())
        else:
            show(found)
            seconds = f"{time.perf_counter() - began:.1f} s"
            if found.reused:
                show(f"{dst} was finished before, and is as it was written: checked in {seconds}")
            else:
                show(f"written to {dst} in {seconds}")
    return 0


def speaks() -> bool:
    """Return whether this process speaks for the run: it is alone, or the first."""
    return not one_of_several() or rank_given() == "0"


def _resuming() -> str:
    arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
    return shlex.join(["nmsolve", *arguments, "--resume"])
