"""What the engines are asked: a transposable pattern's blocks, the levels of their ascent, and what
is known of them on the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from nmsolve.pattern import Pattern
from nmsolve.solvers.ascent import schedule

#: Rounds of the last levels. A device is never full there, so that rounds are cheap and levels are
#: not: these are fewer and longer than the core's.
LAST = (40, 60, 80)
#: Rounding can turn the sign of S − u − v where that is within half a dtype's unit times |v|;
#: beyond twice the unit it cannot.
MARGIN = 2.0


@dataclass(frozen=True, slots=True)
class Problem:
    """What is solved.

    absolute : whether |X| is scored, or X as it is. dtype : of scores and duals. tolerance : the
    gap of a block that is proven.
    """

    pattern: Pattern
    absolute: bool
    dtype: torch.dtype
    tolerance: float

    @property
    def rounds(self) -> tuple[int, ...]:
        """Rounds of every level."""
        first, second, third, *_ = schedule(self.pattern.m)[0]
        return first, second + third, *LAST

    @property
    def sweeps(self) -> int:
        """Bellman–Ford sweeps after a level."""
        return schedule(self.pattern.m)[1]

    @property
    def omega(self) -> float:
        """Over-relaxation of the ascent."""
        return schedule(self.pattern.m)[2]


class Blocks(NamedTuple):
    """The N blocks of a piece, on the device.

    u, v : (m, N) duals of scores / scale. scale : (N,) powers of two, 1 but for extreme scores.
    Where no duals were asked for they may have one column. open : (N,) int8, not 0 where a block is
    not proven.
    """

    u: Tensor
    v: Tensor
    scale: Tensor
    open: Tensor


class Engine(Protocol):
    """What `plain` and `triton` offer for transposable blocks."""

    def ascend_first(
        self, X: Tensor, mask: Tensor, problem: Problem, collect: bool
    ) -> tuple[Blocks, Tensor]:
        """The first level on all blocks of X (batch, rows, cols), into mask (batch, rows, cols
        rounded up to m).

        X : of the problem's dtype, or a 16-bit float. It proves the blocks whose signs of S − u − v
        are feasible and beyond rounding. Ties it leaves. Returns what is known of the blocks, and
        (4,) float64 sums: objective and gap of those proven, not 0 if a score is not finite, and
        how many are proven. collect : whether duals are wanted.
        """

    def ascend_rest(
        self,
        X: Tensor,
        mask: Tensor,
        problem: Problem,
        blocks: Blocks,
        unproven: int,
        collect: bool,
    ) -> tuple[Tensor, Tensor]:
        """All levels on the `unproven` blocks that are open, from the first, with ties told apart.

        Returns their places in order, and (2 + levels,) float64 sums: objective and gap of those
        proven, how many each level did.
        """


def extreme_limit(dtype: torch.dtype) -> float:
    """Blocks whose largest score is beyond this, or below its inverse, are scaled by a power of
    two.
    """
    return 2.0**500 if dtype == torch.float64 else 2.0**60
