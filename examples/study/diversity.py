"""How many masks a pattern allows, in bits per weight."""

from __future__ import annotations

from dataclasses import dataclass

import nmsolve

#: Every pattern divides it; bits per weight do not depend on it.
SHAPE = (64, 64)


@dataclass(frozen=True)
class Bits:
    """exact : log2 of the number of masks (asymptotic from m = 17 on, with an error below 0.001
    bits). paper : log2 of what the transposable-masks paper's formula gives, which for transposable
    patterns is another number.
    """

    exact: float
    paper: float


def bits(pattern: str) -> Bits:
    """Per weight, of a tensor whose shape the pattern divides."""
    found = nmsolve.diversity(pattern, SHAPE)
    assert found.paper_log2 is not None
    return Bits(found.bits_per_weight, found.paper_log2 / (SHAPE[0] * SHAPE[1]))
