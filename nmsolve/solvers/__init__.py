"""The solvers: one algorithm a file, arrays in and arrays out. Nothing here checks user input.

Each module offers `make(pattern, kind, absolute, tolerance) -> Run`, which compiles what it needs;
a `Run` solves a range of block rows. Modules import numba (or OR-tools), so they are loaded on
first use.
"""

from __future__ import annotations

from collections.abc import Callable
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
    """What a range of block rows came to; stats are added up.

    bound : None where the method offers none. open : how many blocks or groups are not proven
    optimal, None where the method proves nothing. A solver has to say: what it leaves out would be
    called optimal.
    """

    objective: float
    bound: float | None
    open: int | None
    stats: dict[str, float]


#: (scores, mask, first block row, last) → TaskResult, or None if a score is not finite. Scores
#: (rows, cols) as the solver's kind is stored; mask (rows, cols) uint8 is written for these block
#: rows.
Run = Callable[[NDArray[Any], NDArray[Any], int, int], TaskResult | None]

OPTIMUM = "the optimum, with a certificate"
GREEDY = "at least 1/2 of the optimum's kept score, for scores >= 0"
COVER = "less than 2 x the optimum's pruned score, for scores >= 0"


def guarantees(pattern: Pattern) -> dict[str, str]:
    """The methods that serve a pattern, each with its guarantee."""
    if not pattern.transposable:
        return dict.fromkeys(("auto", "exact", "greedy", "cover"), OPTIMUM)
    flow = f"{OPTIMUM}; scores rounded to integers first (needs nmsolve[ortools])"
    return {
        "auto": OPTIMUM,
        "exact": OPTIMUM,
        "greedy": GREEDY,
        "cover": COVER,
        "min_cost_flow": flow,
    }


def module_for(method: str, pattern: Pattern, absolute: bool) -> str:
    """The module that serves a method: for groups, and blocks that keep every entry, all of them
    are one selection.
    """
    if not pattern.transposable or (pattern.n == pattern.m and method != "min_cost_flow"):
        return "rowwise"
    if method in ("auto", "exact"):
        return "enumeration" if pattern.m == 4 and not pattern.at_most and absolute else "ascent"
    return method


def make(module: str, pattern: Pattern, kind: str, absolute: bool, tolerance: float) -> Run:
    """A module's solver for scores stored as `kind` (see `READS`).

    absolute : whether signs are dropped. tolerance : the relative gap up to which the result counts
    as optimal.
    """
    run: Run = import_module(f"nmsolve.solvers.{module}").make(pattern, kind, absolute, tolerance)
    return run


#: What each module reads in place; anything else is widened first, to float32 or float64.
READS = {
    "rowwise": frozenset({"f4", "f8", "f16", "bf16"}),
    "enumeration": frozenset({"f4", "f8", "f16", "bf16"}),
    "ascent": frozenset({"f4", "f8"}),
    "greedy": frozenset({"f8"}),
    "cover": frozenset({"f8"}),
    "min_cost_flow": frozenset({"f8"}),
}


def reads_in_place(module: str, kind: str, absolute: bool) -> bool:
    """Whether a module solves scores of a kind as they are stored."""
    return kind in READS[module] and (kind == "f8" or computed_kind(module, kind, absolute) == "f4")


def computed_kind(module: str, kind: str, absolute: bool) -> str:
    """What scores of a kind are widened to when they are not read in place.

    Signed scores cancel in sums and may be penalties far larger than what matters, so blocks of
    them are solved in float64.
    """
    signed_sums = module == "ascent" and not absolute
    return "f8" if kind in ("f8", "i8") or "f4" not in READS[module] or signed_sums else "f4"
