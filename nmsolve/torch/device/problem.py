"""The contract between the driver and the engines: questions and answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from nmsolve.pattern import Pattern
from nmsolve.solvers.ascent_schedule import schedule

#: Rounds of the last levels. A device is never full there, so that rounds are cheap and levels are
#: not: these are fewer and longer than the core's.
LAST = (40, 60, 80)
#: Rounding can turn the sign of S − u − v where that is within half a dtype's unit times |v|;
#: beyond twice the unit it cannot.
MARGIN = 2.0


@dataclass(frozen=True, slots=True)
class Problem:
    """A transposable pattern's problem.

    Attributes
    ----------
    pattern : Pattern
    absolute : bool
        |X| is scored, and not X as it is.
    dtype : torch.dtype
        Of scores and duals: float32 or float64.
    tolerance : float
        The relative gap up to which a block counts as proven.
    """

    pattern: Pattern
    absolute: bool
    dtype: torch.dtype
    tolerance: float

    @property
    def rounds(self) -> tuple[int, ...]:
        """Rounds of every level."""
        first, second, third, _ = schedule(self.pattern.m).rounds
        return first, second + third, *LAST

    @property
    def sweeps(self) -> int:
        """Bellman–Ford sweeps after a level."""
        return schedule(self.pattern.m).sweeps

    @property
    def omega(self) -> float:
        """Over-relaxation of the ascent."""
        return schedule(self.pattern.m).omega


class Sums(NamedTuple):
    """The answer of a call that writes masks without levels.

    Attributes
    ----------
    totals : (4,) float64 tensor on the device
        Objective; bound; 0 if every score is finite; 0 if no block has to be looked at again: none
        is so large that sums overflow, and none is apart (nmsolve.solvers.APART).
    thresholds : (batch, rows, groups) tensor or None
        The n-th largest score of each group.
    open : (blocks,) int8 tensor or None
        Not 0 where a block is apart; such blocks are left to the caller, and are not in the totals.
        None where blocks were not looked at again.
    """

    totals: Tensor
    thresholds: Tensor | None
    open: Tensor | None


class Blocks(NamedTuple):
    """The N blocks of a piece, on the device.

    Attributes
    ----------
    u, v : (m, N) tensors
        Duals of scores / scale; where none were asked for they may have one column.
    scale : (N,) tensor
        Powers of two, 1 but for extreme scores; of one element where no duals were asked for.
    open : (N,) int8 tensor
        Not 0 where a block is not proven.
    """

    u: Tensor
    v: Tensor
    scale: Tensor
    open: Tensor


class Engine(Protocol):
    """The functions of `torch_engine` and `triton_engine`.

    X is (batch, rows, cols), mask (batch, rows, cols) bool, rounded up to whole groups or blocks;
    scores there are 0. PIECE : weights that one call may be given.
    """

    @property
    def PIECE(self) -> int: ...

    def keep_groups(
        self,
        X: Tensor,
        mask: Tensor,
        n: int,
        m: int,
        at_most: bool,
        absolute: bool,
        dtype: torch.dtype,
        collect: bool,
    ) -> Sums:
        """Keep the n largest scores of every group, the lowest index first among equals.

        dtype : to compute in. collect : return thresholds.
        """

    def enumerate_blocks(
        self, X: Tensor, mask: Tensor, n: int, absolute: bool, dtype: torch.dtype, again: bool
    ) -> Sums:
        """Keep the best of all n:4T masks of every block, for scores ≥ 0.

        again : scale blocks of huge scores first, and find those that are apart; otherwise sums may
        overflow.
        """

    def ascend_first(
        self, X: Tensor, mask: Tensor, problem: Problem, collect: bool
    ) -> tuple[Blocks, Tensor]:
        """Run the first level on all blocks.

        X is of the problem's dtype, or a 16-bit float. The level proves the blocks whose signs of
        S − u − v are feasible and beyond rounding, and leaves ties. Returns the blocks, and (4,)
        float64 sums: objective and gap of those proven, not 0 if a score is not finite, and how
        many are proven. collect : return duals.
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
        """Run all levels on the `unproven` blocks that are open, from the first, with ties told
        apart.

        Returns their places in order, and (2 + levels,) float64 sums: objective and gap of those
        proven, and how many each level proved.
        """


def extreme_limit(dtype: torch.dtype) -> float:
    """Blocks whose largest score is beyond this, or below its inverse, are scaled by a power of
    two.
    """
    return 2.0**500 if dtype == torch.float64 else 2.0**60
