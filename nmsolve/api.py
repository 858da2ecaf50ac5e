"""`solve`: validate → blocks → solver → certificate → result."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nmsolve.blocks import block_matrices, check_divisible, remainder_score
from nmsolve.certificates import Proof
from nmsolve.certificates import objective as kept_score
from nmsolve.conclusion import conclude
from nmsolve.errors import InputError, PatternError
from nmsolve.pattern import Pattern
from nmsolve.proofs import prove
from nmsolve.result import MaskResult
from nmsolve.solvers import METHODS, Run, guarantees, serving, solver_for
from nmsolve.stopwatch import Stopwatch
from nmsolve.threads import in_threads
from nmsolve.totals import Totals
from nmsolve.validate import (
    check_flag,
    non_finite_error,
    read_scores,
    thread_count,
)


def methods(pattern: Pattern | str) -> dict[str, str]:
    """Return the methods that can serve a pattern, each with its guarantee.

    Parameters
    ----------
    pattern : Pattern or str
        Such as "4:8T".

    Returns
    -------
    dict of str to str
        What `solve` takes as `method`, and what is known of its masks.

    Raises
    ------
    PatternError
        If the pattern does not exist.

    Examples
    --------
    >>> methods("4:8T")["greedy"]
    "at least 1/2 of the optimum's kept score, for scores >= 0"
    """
    return guarantees(Pattern.of(pattern))


def solve(
    weights: ArrayLike,
    pattern: Pattern | str,
    scores: ArrayLike | None = None,
    *,
    method: str = "auto",
    at_most: bool | None = None,
    threads: int | None = None,
    padding: str = "error",
    duals: bool = False,
) -> MaskResult:
    r"""Find the best n:M mask of a matrix, and prove that it is the best.

    .. math:: \max_X \sum_{ij} S_{ij} X_{ij}, \quad X \in \{0, 1\}^{rows \times cols}

    where every m consecutive entries of a row, and for a transposable pattern every row and column
    of every m × m block, keep exactly n (with `at_most`: n or fewer), and S = |weights| unless
    `scores` are given.

    Parameters
    ----------
    weights : (..., rows, cols) array-like
        float16, bfloat16 (ml_dtypes', or bits viewed as `nmsolve.bfloat16`), float32, float64 or
        integers, and ml_dtypes' floats and integers of a byte or less (float8_e4m3fn, int4, …), any
        strides. Groups run along the last axis; leading axes are a batch of matrices.
    pattern : Pattern or str
        "2:4", "2:4T", "<=4:8T", ….
    scores : (..., rows, cols) array-like, optional
        What is maximised instead of |weights|, signs kept. Same shape.
    method : {"auto", "exact", "greedy", "cover", "min_cost_flow"}
        See `methods`. "auto" is "exact".
    at_most : bool, optional
        Overrides the pattern's own.
    threads : int, optional
        All processors by default. The result is the same bit for bit for every number.
    padding : {"error", "pad", "dense"}
        What to do if blocks do not tile the matrix: refuse; solve as if zeros followed and crop the
        mask; keep the remainder.
    duals : bool
        Also return the potentials that prove the bound: 8 bytes per row and per column of each
        block.

    Returns
    -------
    MaskResult

    Raises
    ------
    PatternError
        If the pattern does not exist or the method cannot serve it.
    InputError
        For weights, scores or options that cannot be worked with, NaN and infinity among them.
    MissingDependencyError
        If method="min_cost_flow" and OR-tools is not installed.

    Notes
    -----
    Exact for every pattern up to m = 64. OPTIMAL means that dual bound and objective were evaluated
    in float64 and agree to 1e-6 (float32 and narrower) or 1e-12 (float64 and integers), relative to
    the magnitude kept, block by block. Ties: row-wise the lowest index first; transposable
    deterministic, and dependent on the block alone. Time is linear in the number of blocks.

    References
    ----------
    Hubara et al., "Accelerated Sparse Neural Training: A Provable and Efficient Method to Find N:M
    Transposable Masks", NeurIPS 2021, section 4 (the min-cost flow formulation and the
    2-approximation).

    Examples
    --------
    >>> import numpy as np
    >>> W = np.random.default_rng(0).standard_normal((64, 64), dtype=np.float32)
    >>> result = solve(W, "4:8T")
    >>> result.status.value, float(result.mask.mean())
    ('optimal', 0.5)
    >>> result.verify(W).ok
    True
    """
    stopwatch = Stopwatch()
    pattern = Pattern.of(pattern, at_most)
    check_method(method, pattern)
    read = read_scores(weights, scores, pattern)
    solver = solver_for(method, pattern, absolute=read.absolute)
    in_place = solver.reads_in_place(read.kind, read.absolute)
    wide = solver.computes_in(read.kind, read.absolute)

    kernels: dict[str, Run] = {}

    def kernel(kind: str) -> Run:
        if kind not in kernels:
            stopwatch.stop()
            kernels[kind] = solver.make(pattern, kind, read.absolute, read.tolerance)
            stopwatch.go()
        return kernels[kind]

    check_divisible(read.array.shape, pattern, padding)
    workers = thread_count(threads)
    check_flag(duals, "duals")
    new = np.ones if padding == "dense" else np.empty
    mask: NDArray[np.bool_] = new(read.array.shape, np.bool_)
    with np.errstate(over="ignore", invalid="ignore"):
        totals = Totals(remainder_score(read, pattern, padding))
    for matrix in block_matrices(read, mask, pattern, padding):
        solve_task = matrix.reader(kernel, in_place=in_place, wide=wide)
        tasks = list(matrix.tasks())
        for result in in_threads(solve_task, tasks, workers, steady=solver.steady):
            totals.add(result)
        if totals.refused:
            break
    if totals.refused or not math.isfinite(totals.objective):
        raise non_finite_error(read, pattern, too_large=not totals.refused)

    def duals_prove(*, collect: bool = False) -> Proof:
        return prove(read, mask, pattern, padding, collect=collect, stopwatch=stopwatch)

    proof = duals_prove(collect=duals) if duals or (solver.exact and not solver.proves) else None
    return conclude(
        totals,
        proof,
        solver,
        mask=mask,
        duals=None if proof is None else proof.duals,
        tolerance=read.tolerance,
        magnitude=lambda: kept_score(replace(read, absolute=True), mask),
        recheck=duals_prove,
        method=method,
        pattern=pattern,
        padding=padding,
        scored=read.name,
        size=read.array.size,
        threads=workers,
        stopwatch=stopwatch,
    )


def check_method(method: str, pattern: Pattern) -> None:
    """Raise InputError for a method that does not exist, PatternError for one that cannot serve the
    pattern.
    """
    if not isinstance(method, str) or method not in METHODS:
        raise InputError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}")
    if not serving(method, pattern):
        raise PatternError(
            f"method {method!r} cannot serve pattern {pattern}, only transposable ones such as "
            f"'2:4T'; for {pattern} use one of {', '.join(map(repr, guarantees(pattern)))}"
        )
