"""The worth of masks, and patterns read off zeros: what a page shows where no report tells it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsolve.api import solve
from nmsolve.certificates import objective
from nmsolve.checkpoint.solving import total
from nmsolve.checkpoint.summary import TensorReport
from nmsolve.feasibility import verify
from nmsolve.geometry import as_matrices
from nmsolve.pattern import Pattern
from nmsolve.proofs import prove
from nmsolve.result import Status, relative_gap
from nmsolve.validate import read_scores

#: Lengths of groups that are looked for in weights that come without masks.
LENGTHS = (2, 4, 8, 16, 32)
#: Density up to which zeros count as a pattern: some group of 32 has a zero in almost every weight
#: that was pruned in any way.
SPARSE = 0.75


def pattern_of(kept: NDArray[np.bool_]) -> Pattern | None:
    """Return the sparsest pattern, with the shortest groups, that nonzeros hold; None if there is
    none.

    Parameters
    ----------
    kept : (…, rows, columns) bool
        Groups lie along columns.

    Examples
    --------
    >>> str(pattern_of(np.eye(8, dtype=bool))), pattern_of(np.ones((8, 8), bool))
    ('1:8T', None)
    """
    rows, columns = kept.shape[-2:]
    found: list[Pattern] = []
    for m in LENGTHS:
        if columns % m:
            continue
        n = max(1, int(kept.reshape(*kept.shape[:-1], columns // m, m).sum(axis=-1).max()))
        if n <= SPARSE * m:
            across = (
                rows % m == 0
                and int(kept.reshape(*kept.shape[:-2], rows // m, m, columns).sum(axis=-2).max())
                <= n
            )
            found.append(Pattern(n, m, transposable=across))
    return min(found, key=lambda pattern: pattern.density, default=None)


def measured(
    entry: TensorReport,
    original: NDArray[Any],
    kept: NDArray[np.bool_],
    pattern: Pattern,
    axis: int,
) -> TensorReport:
    """Return an entry with what its mask keeps of the dense weights, and how far that is from their
    certified optimum.

    Parameters
    ----------
    entry : TensorReport
    original, kept : arrays of the tensor's shape
        The dense weights, and the mask.
    pattern, axis
        The entry's, which has them.
    """
    padding = entry.padding or "error"
    matrices, mask = as_matrices(original, axis), as_matrices(kept, axis)
    best = solve(matrices, pattern, padding=padding)
    scores = read_scores(matrices, None, pattern)
    worth = objective(scores, mask)
    bound = max(worth, best.objective if best.bound is None else best.bound)
    # A mask that violates its pattern may be worth more than any that does not; one read off zeros
    # may lack kept ones that are 0.
    holds = (
        verify(mask, pattern, at_most=True, padding=padding).ok
        and bound - worth <= scores.tolerance * bound
        and worth <= best.objective * (1 + scores.tolerance)
    )
    proven = (
        holds and best.status is Status.OPTIMAL and not prove(scores, mask, pattern, padding).open
    )
    return replace(
        entry,
        status=(Status.OPTIMAL if proven else Status.FEASIBLE).value,
        objective=worth,
        bound=bound,
        gap=relative_gap(worth, bound),
        total=total(original),
    )
