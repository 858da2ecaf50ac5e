"""The schedule of the dual ascent: rounds at every level, sweeps, over-relaxation."""

from __future__ import annotations

from typing import NamedTuple

LEVELS = 4


class Schedule(NamedTuple):
    """The lengths of an ascent.

    Attributes
    ----------
    rounds : tuple of int
        Rounds at every level.
    sweeps : int
        Bellman–Ford sweeps after a level (`ties`).
    omega : float
        Over-relaxation.
    """

    rounds: tuple[int, int, int, int]
    sweeps: int
    omega: float


def schedule(m: int) -> Schedule:
    """Return the schedule for m × m blocks: measured on N(0, 1), integers and pruned matrices."""
    if m <= 8:
        return Schedule(rounds=(8, 6, 10, 12), sweeps=6, omega=1.25)
    if m <= 16:
        return Schedule(rounds=(9, 8, 12, 12), sweeps=8, omega=1.4)
    if m <= 32:
        return Schedule(rounds=(14, 10, 14, 20), sweeps=10, omega=1.45)
    return Schedule(rounds=(20, 14, 20, 30), sweeps=14, omega=1.5)
