"""The rows of the table: a method at a pattern."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Method = Literal[
    "dense",
    "magnitude",
    "Wanda",
    "SparseGPT",
    "adaprune_-own",
    "adaprune_",
    "sparsegpt_",
    "sparsegpt_-disk",
]

METHODS: tuple[Method, ...] = get_args(Method)
PATTERNS = ("2:4", "4:8", "6:8", "2:4T", "4:8T", "8:16T", "16:32T")
TINY_PATTERNS = ("2:4", "2:4T")
#: Those that a pattern in both directions can be given to.
_TRANSPOSABLE = ("magnitude", "adaprune_", "sparsegpt_")
#: Shown at one pattern.
_VARIANTS = ("adaprune_-own", "sparsegpt_-disk")


@dataclass(frozen=True)
class Row:
    """pattern is None for the dense model alone."""

    method: Method
    pattern: str | None

    @property
    def name(self) -> str:
        """For the terminal."""
        return " ".join(part for part in (self.method, self.pattern) if part)

    @property
    def path(self) -> Path:
        """Of its file, in a folder of results."""
        if self.pattern is None:
            return Path(f"{self.method}.json")
        return Path(self.method, f"{self.pattern.replace(':', '-')}.json")

    @property
    def calibrated(self) -> bool:
        """Whether calibration, and so the seed, has a say."""
        return self.method not in ("dense", "magnitude")

    def seeds(self, count: int) -> range:
        """Those to run."""
        return range(count if self.calibrated else 1)

    @property
    def rival(self) -> Row:
        """SparseGPT's row that it is held against: the same pattern or, since that has no
        transposable ones, 2:4.
        """
        transposable = self.pattern is None or self.pattern.endswith("T")
        return Row("SparseGPT", "2:4" if transposable else self.pattern)


DENSE = Row("dense", None)


def rows(methods: Collection[str] = METHODS, patterns: Collection[str] = PATTERNS) -> Iterator[Row]:
    """All that there are, pattern by pattern, the dense model first."""
    if DENSE.method in methods:
        yield DENSE
    for pattern in PATTERNS:
        for method in METHODS[1:]:
            served = not pattern.endswith("T") or method in _TRANSPOSABLE
            served &= method not in _VARIANTS or pattern == PATTERNS[0]
            if served and pattern in patterns and method in methods:
                yield Row(method, pattern)
