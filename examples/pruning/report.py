"""README.md and figures of a folder of results, made from its JSON alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from examples.study.outcome import Outcome


def write(folder: Path, conversions: Sequence[Outcome], allocations: Sequence[Outcome], tiny: bool) -> Path:
    """Write folder/README.md and the figures that it shows."""
    return folder
