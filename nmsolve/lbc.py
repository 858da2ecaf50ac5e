"""Learning Best Combinations (Zhang et al., NeurIPS 2022): candidates of a group, their removal,
and the mask of the survivors.

A group of m weights has C(m, n) candidate sets Θ of n weights, each with a learned score. Over
training the candidates with the lowest scores are removed for good, until one is left (Alg. 1); a
weight is kept while any surviving candidate contains it (Eq. 8).

The released code lets removed candidates come back: it marks them by a zero score, which momentum
changes again. Here a mask of its own says which are alive, and removal is permanent.

References
----------
Zhang, Lin, Wu, Lin, Yang, Ji, "Learning Best Combination for Efficient N:M Sparsity", NeurIPS 2022.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsolve.elements import as_stored, is_float, kind_of, widen
from nmsolve.errors import InputError, PatternError
from nmsolve.pattern import Pattern
from nmsolve.validate import to_array

#: Epochs and powers up to this have differences that float64 holds.
LARGEST = 1e300
#: Bytes that a table of candidates may take.
TABLE_LIMIT = 2**30


def combinations(pattern: Pattern | str) -> NDArray[np.bool_]:
    """Return the C(m, n) candidates that LBC enumerates for a group (Eq. 2).

    Parameters
    ----------
    pattern : Pattern or str
        Row-wise and exactly n, such as "2:4".

    Returns
    -------
    (C(m, n), m) bool array
        One candidate per row, True = in the set, in lexicographic order of the kept indices.

    Raises
    ------
    PatternError
        If the pattern is transposable or at most, or the table would not fit in 1 GiB; the message
        gives the figure.

    Examples
    --------
    >>> combinations("2:4").astype(int)
    array([[1, 1, 0, 0],
           [1, 0, 1, 0],
           [1, 0, 0, 1],
           [0, 1, 1, 0],
           [0, 1, 0, 1],
           [0, 0, 1, 1]])
    """
    pattern = Pattern.of(pattern)
    if pattern.transposable or pattern.at_most:
        raise PatternError(
            "LBC's candidates keep exactly n of a row's m weights, so a pattern such as '2:4' is "
            f"needed, not {pattern}"
        )
    count = math.comb(pattern.m, pattern.n)
    if count * pattern.m > TABLE_LIMIT:
        raise PatternError(
            f"pattern {pattern} has {count:,} candidates, a table of "
            f"{count * pattern.m / 2**30:,.1f} GiB (scores for training take "
            f"{12 * count / pattern.m:,.0f} bytes a weight); LBC is meant for small m, such as 2:4 "
            "or 4:8"
        )
    from nmsolve.solvers.lbc_kernels import enumerate_candidates

    table = np.zeros((count, pattern.m), np.uint8)
    enumerate_candidates(pattern.n, pattern.m, table)
    return table.view(np.bool_)


def removed_by(candidates: int, t: float, *, start: float, end: float, power: float = 3.0) -> int:
    """Return how many of a group's candidates are gone by epoch t (Eq. 6, summed up).

        ⌈(C − 1) (1 − (1 − (t − start) / (end − start))^power)⌉,   0 before start, C − 1 from end on

    Parameters
    ----------
    candidates : int
        C(m, n).
    t, start, end : float
        In epochs (or steps); start < end. The paper starts at 0 and ends at half of training.
    power : float
        3 in the paper; the released code uses 4 for DeiT.

    Returns
    -------
    int
        The total removed, not the number to remove now: Eq. 6 subtracts what went before. The
        paper's bracket is read as rounding up.

    Raises
    ------
    InputError
        If the schedule is empty, or a number is beyond ±1e300.

    Examples
    --------
    >>> [removed_by(6, t, start=0, end=4) for t in range(6)]
    [0, 3, 5, 5, 5, 5]
    """
    values = {"t": t, "start": start, "end": end, "power": power}
    numbers = all(isinstance(x, (int, float, np.integer, np.floating)) for x in values.values())
    counted = isinstance(candidates, (int, np.integer)) and not isinstance(candidates, bool)
    if not counted or not numbers or candidates < 1 or not start < end or not power > 0 or t != t:
        raise InputError(
            "a removal schedule needs candidates >= 1, start < end and power > 0, got "
            f"candidates={candidates}, t={t}, start={start}, end={end}, power={power}"
        )
    for name, value in values.items():
        if (
            name != "t"
            and abs(value if isinstance(value, (int, np.integer)) else float(value)) > LARGEST
        ):
            shown = (
                str(value)
                if isinstance(value, (float, np.floating))
                else f"a number of {len(str(abs(int(value))))} digits"
            )
            raise InputError(
                f"a removal schedule needs numbers of magnitude 1e300 or less, got {shown} for "
                f"{name}; count in larger steps"
            )
    if t >= end:
        return int(candidates) - 1
    progress = (float(max(t, start)) - float(start)) / (float(end) - float(start))
    # Powers of decimal fractions miss integers by an ulp; that must not round up to the next
    # candidate.
    share = 1.0 - math.pow(1.0 - progress, float(power))
    return math.ceil((int(candidates) - 1) * Fraction(share) - Fraction(1e-9))


def remove_lowest(
    scores: NDArray[Any], alive: NDArray[np.bool_], removed: int
) -> NDArray[np.bool_]:
    """Remove the lowest-scored candidates of each group until `removed` of them are gone (Alg. 1,
    lines 7 and 8).

    Parameters
    ----------
    scores : (groups, C) float array
        The learned scores, of any float type that `solve` takes; only those of candidates alive
        matter.
    alive : (groups, C) bool array
        Changed in place. What is False stays False, whatever its score.
    removed : int
        The total to be gone in every group, as from `removed_by`; at least one candidate stays.

    Returns
    -------
    (groups, C) bool array
        `alive` itself.

    Raises
    ------
    InputError
        For arrays that do not fit, a NaN score of a living candidate, or a total that leaves no
        candidate.

    Notes
    -----
    Of equal scores the candidate later in lexicographic order goes first. Beyond the arguments,
    memory for one group is needed.

    Examples
    --------
    >>> alive = np.ones((1, 6), bool)
    >>> remove_lowest(np.array([[0.3, 0.1, 0.2, 0.9, 0.1, 0.5]]), alive, 3)
    array([[ True, False, False,  True, False,  True]])
    """
    scores = to_array(scores, "scores", "removing candidates")
    kind = kind_of(scores.dtype)
    if (
        kind is None
        or not is_float(kind)
        or scores.ndim != 2
        or not isinstance(alive, np.ndarray)
        or alive.dtype != np.bool_
    ):
        raise InputError(
            f"scores are a float (groups, C) array and alive a bool one, got {scores.dtype} "
            f"{scores.shape}"
        )
    if alive.shape != scores.shape or not alive.flags.writeable:
        raise InputError(
            f"alive is a writeable array of the scores' shape {scores.shape}, got {alive.shape}"
        )
    if (
        not isinstance(removed, (int, np.integer))
        or isinstance(removed, bool)
        or not 0 <= removed < scores.shape[1]
    ):
        raise InputError(
            f"of {scores.shape[1]} candidates 0 to {scores.shape[1] - 1} can be removed, got "
            f"{removed}"
        )
    scores = widen(as_stored(scores, kind), kind)
    lost = np.isnan(scores) & alive
    if lost.any():
        g, c = (int(i) for i in np.unravel_index(int(np.argmax(lost)), lost.shape))
        raise InputError(
            f"scores[{g}, {c}] is nan (shape {scores.shape}): the order of candidates is not "
            "defined"
        )
    from nmsolve.solvers.lbc_kernels import drop_lowest

    wide = scores if scores.dtype == np.float64 else scores.astype(np.float32, copy=False)
    drop_lowest(np.ascontiguousarray(wide), alive.view(np.uint8), scores.shape[1] - removed)
    return alive


def survivor_mask(alive: NDArray[np.bool_], candidates: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which weights any surviving candidate contains (Eq. 8, with `alive` in place of scores
    that are not zero).

    Parameters
    ----------
    alive : (groups, C) bool array
        As `remove_lowest` leaves it.
    candidates : (C, m) bool array
        As from `combinations`.

    Returns
    -------
    (groups, m) bool array
        True = keep. While several candidates live, a group may keep more than n.

    Raises
    ------
    InputError
        If the arrays do not fit.

    Examples
    --------
    >>> survivor_mask(np.array([[True, False, False, True, False, False]]), combinations("2:4"))
    array([[ True,  True,  True, False]])
    """
    alive = to_array(alive, "alive", "a survivor mask")
    candidates = to_array(candidates, "candidates", "a survivor mask")
    if (
        alive.dtype != np.bool_
        or candidates.dtype != np.bool_
        or alive.ndim != 2
        or candidates.ndim != 2
    ):
        raise InputError(
            f"alive (groups, C) and candidates (C, m) are bool, got {alive.dtype} {alive.shape}"
        )
    if alive.shape[1] != candidates.shape[0]:
        raise InputError(
            f"alive has shape {alive.shape}, for {alive.shape[1]} candidates; the table has "
            f"{candidates.shape[0]}"
        )
    from nmsolve.solvers.lbc_kernels import mark_survivors

    out = np.empty((alive.shape[0], candidates.shape[1]), np.uint8)
    mark_survivors(
        np.ascontiguousarray(alive).view(np.uint8),
        np.ascontiguousarray(candidates).view(np.uint8),
        out,
    )
    return out.view(np.bool_)
