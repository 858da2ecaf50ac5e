"""The solvers: one algorithm a file, arrays in and arrays out. Nothing here checks user input.

Each module offers `make(pattern, kind, absolute, tolerance) -> Run`, which compiles what it needs;
a `Run` solves a range of block rows. All else that the package knows of a solver is its entry in
`SOLVERS`. Modules import numba (or OR-tools), so they are loaded on first use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple

from numpy.typing import NDArray

from nmsolve.pattern import Pattern

#: A block is apart if what its mask keeps in some row comes to less than this share of the block's
#: largest score (of the power of two of that) but not to nothing: relative to all that is kept that
#: row could be anything, and float32 does not see it.
APART = 2.0**-16
#: Such a block counts as proven up to this share of the magnitude that it keeps, whatever its
#: scores are stored in.
FINE = 1e-12


class TaskResult(NamedTuple):
    """The outcome of a range of block rows; stats are added up.

    Attributes
    ----------
    objective : float
        Sum of the kept scores.
    bound : float or None
        No mask of these blocks scores more. None where the solver offers no bound.
    open : int
        How many blocks (row-wise: groups) are not proven optimal; all of them where the solver
        proves nothing. It has to be said: a block that is left out would be called optimal.
    stats : dict
        Counts by name.
    """

    objective: float
    bound: float | None
    open: int
    stats: dict[str, float]


#: (scores, mask, first block row, last) → TaskResult, or None if a score is not finite. Scores
#: (rows, cols) as the solver's kind is stored; mask (rows, cols) uint8 is written for these block
#: rows.
Run = Callable[[NDArray[Any], NDArray[Any], int, int], TaskResult | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Solver:
    """The description of a solver, without defaults: a forgotten field is an error at import.

    Attributes
    ----------
    module : str
        Its file in this folder.
    methods : tuple of str
        The methods of `nmsolve.solve` that it serves.
    serves : callable
        Whether it can solve a pattern.
    signed : bool
        Whether it can solve scores of both signs.
    guarantee : str
        What is known of its masks, in words.
    exact : bool
        Whether its masks are the best ones.
    proves : bool
        Whether its runs count the blocks that they leave unproven. What is exact but does not prove
        is proven afterwards by duals; what is neither is FEASIBLE.
    reads : frozenset of str
        Kinds of scores that it reads as they are stored ("f4", "f8", "f16", "bf16"); others are
        widened by copy.
    absolute_in, signed_in : str
        What it computes in, "f4" or "f8", where float32 holds the scores and signs are dropped, or
        kept. Wider scores are computed in "f8" by every solver.
    steady : bool
        Whether its time depends on the shape of the scores alone.
    needs : str or None
        The extra of the package that has to be installed.
    """

    module: str
    methods: tuple[str, ...]
    serves: Callable[[Pattern], bool]
    signed: bool
    guarantee: str
    exact: bool
    proves: bool
    reads: frozenset[str]
    absolute_in: str
    signed_in: str
    steady: bool
    needs: str | None

    def make(self, pattern: Pattern, kind: str, absolute: bool, tolerance: float) -> Run:
        """Load and compile it for scores stored as `kind`, one of `reads`.

        absolute : whether signs are dropped. tolerance : the relative gap up to which the result
        counts as optimal.
        """
        module = import_module(f"{__name__}.{self.module}")
        run: Run = module.make(pattern, kind, absolute, tolerance)
        return run

    def computes_in(self, kind: str, absolute: bool) -> str:
        """Return what scores of a kind are widened to where they are not read in place."""
        if kind in ("f8", "i8"):
            return "f8"
        return self.absolute_in if absolute else self.signed_in

    def reads_in_place(self, kind: str, absolute: bool) -> bool:
        """Return whether scores of a kind are solved as they are stored."""
        return kind in self.reads and (kind == "f8" or self.computes_in(kind, absolute) == "f4")


def _transposable(pattern: Pattern) -> bool:
    """Where n = m every entry is kept: a selection in each group, whose solver is `ROWWISE`."""
    return pattern.transposable and pattern.n < pattern.m


_OPTIMUM = "the optimum, with a certificate"
_STORED = frozenset({"f4", "f8", "f16", "bf16"})

ROWWISE = Solver(
    module="rowwise",
    methods=("auto", "exact", "greedy", "cover"),  # groups are independent: all are one selection
    serves=lambda pattern: not _transposable(pattern),
    signed=True,
    guarantee=_OPTIMUM,
    exact=True,
    proves=True,
    reads=_STORED,
    absolute_in="f4",
    signed_in="f4",
    steady=True,
    needs=None,
)
ENUMERATION = Solver(
    module="enumeration",
    methods=("auto", "exact"),
    serves=lambda pattern: _transposable(pattern) and pattern.m == 4 and not pattern.at_most,
    signed=False,
    guarantee=_OPTIMUM,
    exact=True,
    proves=True,
    reads=_STORED,
    absolute_in="f4",
    signed_in="f8",
    steady=True,
    needs=None,
)
ASCENT = Solver(
    module="ascent",
    methods=("auto", "exact"),
    serves=_transposable,
    signed=True,
    guarantee=_OPTIMUM,
    exact=True,
    proves=True,
    reads=frozenset({"f4", "f8"}),
    absolute_in="f4",
    signed_in="f8",  # they cancel in sums, and may be penalties far larger than what matters
    steady=False,
    needs=None,
)
GREEDY = Solver(
    module="greedy",
    methods=("greedy",),
    serves=_transposable,
    signed=True,
    guarantee="at least 1/2 of the optimum's kept score, for scores >= 0",
    exact=False,
    proves=False,
    reads=frozenset({"f8"}),
    absolute_in="f8",
    signed_in="f8",
    steady=False,
    needs=None,
)
COVER = Solver(
    module="cover",
    methods=("cover",),
    serves=_transposable,
    signed=True,
    guarantee="less than 2 x the optimum's pruned score, for scores >= 0",
    exact=False,
    proves=False,
    reads=frozenset({"f8"}),
    absolute_in="f8",
    signed_in="f8",
    steady=False,
    needs=None,
)
MIN_COST_FLOW = Solver(
    module="min_cost_flow",
    methods=("min_cost_flow",),
    serves=lambda pattern: pattern.transposable,
    signed=True,
    guarantee=f"{_OPTIMUM}; scores rounded to integers first",
    exact=True,
    proves=False,
    reads=frozenset({"f8"}),
    absolute_in="f8",
    signed_in="f8",
    steady=False,
    needs="ortools",
)

#: Of several that serve a method and a pattern, the first one does it.
SOLVERS = (ROWWISE, ENUMERATION, ASCENT, GREEDY, COVER, MIN_COST_FLOW)
METHODS = tuple(dict.fromkeys(method for solver in SOLVERS for method in solver.methods))


@lru_cache(maxsize=1024)
def serving(method: str, pattern: Pattern) -> tuple[Solver, ...]:
    """Return the solvers that serve a method and a pattern, the preferred one first."""
    return tuple(s for s in SOLVERS if method in s.methods and s.serves(pattern))


@lru_cache(maxsize=1024)
def solver_for(method: str, pattern: Pattern, *, absolute: bool) -> Solver:
    """Return the solver that serves a method for scores without signs (`absolute`), or with."""
    return next(s for s in serving(method, pattern) if absolute or s.signed)


def guarantees(pattern: Pattern) -> dict[str, str]:
    """Return the methods that serve a pattern, each with the guarantee of its solver."""
    first = {method: solver for method in METHODS for solver in serving(method, pattern)[:1]}
    return {
        method: solver.guarantee + (f" (needs nmsolve[{solver.needs}])" if solver.needs else "")
        for method, solver in first.items()
    }
