"""How large and how long a run is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Sides of the square matrices for ratios, families and memory; and how often a group of cases
    takes turns.

    A group is repeated `rounds` times, and further until it took `seconds` or was repeated
    `most_rounds` times.
    """

    quick: bool
    side: int
    family_side: int
    memory_side: int
    rounds: int
    seconds: float
    most_rounds: int = 31


#: What is published: the sizes that the targets name.
FULL = Settings(quick=False, side=4096, family_side=2048, memory_side=8192, rounds=5, seconds=4.0)
#: Shows in about a minute that everything runs. Matrices this small measure calls and caches as
#: much as solvers.
QUICK = Settings(quick=True, side=1024, family_side=512, memory_side=2048, rounds=3, seconds=0.3)
