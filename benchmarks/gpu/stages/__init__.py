"""The stages, in the order in which they run: what is wrong is known before anything is timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stage:
    """A module with `measure(place) -> Iterator[Measurement]`, and its share of the time."""

    name: str
    share: float
    module: str


def _own(name: str, share: float) -> Stage:
    return Stage(name, share, f"{__name__}.{name}")


#: Shares of the time, guessed before any run on a GPU: compiling is most of `smoke`, and tests have
#: what the others leave.
STAGES = (
    _own("environment", 4),
    _own("smoke", 30),
    _own("profile", 12),
    _own("products", 12),
    _own("masks", 14),
    _own("rivals", 8),
    _own("layers", 18),
    _own("tests", 16),
)


def limit(left: Sequence[Stage], seconds: float) -> float:
    """How long the first of the stages that are left may take: its share, so that what it does not
    need is the others'.
    """
    return seconds * left[0].share / sum(stage.share for stage in left)
