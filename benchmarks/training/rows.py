"""A line of the table of targets, and what it is computed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles


@dataclass(frozen=True, kw_only=True)
class Row:
    """A measurement beside the most that was promised; without a target it is shown for
    comparison.
    """

    what: str
    measured: float
    unit: str
    target: float | None = None
    note: str = ""

    @property
    def passed(self) -> bool | None:
        """Whether the target is met; None without one."""
        return None if self.target is None else self.measured < self.target


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of paired differences, in percent: one value a round, of cases that took
    turns in it.
    """

    median: float
    low: float
    high: float

    @classmethod
    def added(
        cls, with_it: Sequence[float], without: Sequence[float], base: Sequence[float] | None = None
    ) -> Spread:
        """What a case adds to another, round by round, as a percentage of `base` (of the other,
        unless given).
        """
        pairs = zip(with_it, without, base or without, strict=True)
        percent = [100 * (a - b) / c for a, b, c in pairs]
        low, _, high = (
            quantiles(percent, n=4, method="inclusive") if len(percent) > 1 else percent * 3
        )
        return cls(median(percent), low, high)
