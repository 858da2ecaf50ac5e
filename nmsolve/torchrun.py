"""The variables by which torchrun tells a process that it is one of several."""

from __future__ import annotations

import os


def one_of_several() -> bool:
    """Return whether torchrun, or another launcher, has started this process beside others."""
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def rank_given() -> str:
    """Return this process's number among them, as its launcher wrote it."""
    return os.environ.get("RANK", "0")
