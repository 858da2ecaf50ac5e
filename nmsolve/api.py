"""`solve`: validate → blocks → solver → certificate → result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nmsolve import solvers
from nmsolve.blocks import BlockMatrix, block_matrices
from nmsolve.certificates import objective as kept_score
from nmsolve.certificates import prove, remainder_score
from nmsolve.errors import InputError, PatternError
from nmsolve.pattern import Pattern
from nmsolve.result import MaskResult, Status, relative_gap
from nmsolve.solvers import Run, TaskResult
from nmsolve.validate import (
    Scores,
    check_divisible,
    check_flag,
    first_non_finite,
    non_finite_error,
    read_scores,
    thread_count,
)

METHODS = ("auto", "exact", "greedy", "cover", "min_cost_flow")


def methods(pattern: Pattern | str) -> dict[str, str]:
    """The methods that can serve a pattern, each with its guarantee.

    Examples
    --------
    >>> methods("4:8T")["greedy"]
    "at least 1/2 of the optimum's kept score, for scores >= 0"
    """
    return solvers.guarantees(Pattern.of(pattern))


def solve(
    weights: ArrayLike,
    pattern: Pattern | str,
    scores: ArrayLike | None = None,
    method: str = "auto",
    at_most: bool | None = None,
    threads: int | None = None,
    padding: str = "error",
    *,
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
        Also return the potentials that prove the bound (8 bytes a row and block, and a column and
        block).

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
    started = time.perf_counter()
    pattern = Pattern.of(pattern, at_most)
    check_method(method, pattern)
    read = read_scores(weights, scores, pattern)
    check_divisible(read.array.shape, pattern, padding)
    workers = thread_count(threads)
    check_flag(duals, "duals")

    module = solvers.module_for(method, pattern, read.absolute)
    mask = (
        np.ones(read.array.shape, np.bool_)
        if padding == "dense"
        else np.empty(read.array.shape, np.bool_)
    )
    task_results: list[TaskResult] = []
    for matrix in block_matrices(read, mask, pattern, padding):
        task_results += _solve_matrix(matrix, read, module, workers)
    with np.errstate(over="ignore", invalid="ignore"):
        kept = remainder_score(read, pattern, padding)
    objective = total([kept, *(task_result.objective for task_result in task_results)])
    if not math.isfinite(objective):
        if first_non_finite(read) is not None:  # in the remainder, which no kernel reads
            raise non_finite_error(read, pattern)
        raise InputError(
            f"the {read.name} of shape {read.array.shape} are too large for a float64 sum; scale "
            "them down"
        )
    bounds = [task_result.bound for task_result in task_results]
    bound = None if None in bounds else total([kept, *(b for b in bounds if b is not None)])
    counts = [task_result.open for task_result in task_results]
    still_open = None if None in counts else sum(count for count in counts if count is not None)
    stats: dict[str, float] = {}
    for task_result in task_results:
        for key, value in task_result.stats.items():
            stats[key] = stats.get(key, 0) + value

    potentials = None
    if duals or method == "min_cost_flow":
        proof = prove(read, mask, pattern, padding, collect=duals)
        bound, potentials = proof.bound, proof.duals
        if still_open is not None or method == "min_cost_flow":
            still_open = max(still_open or 0, proof.open)
    status = _status(objective, bound, still_open, read, mask, pattern, padding)
    if still_open is not None:
        stats["unproven"] = still_open
    if bound is not None:
        bound = max(bound, objective)
    seconds = time.perf_counter() - started
    stats |= {
        "threads": workers,
        "seconds": seconds,
        "weights_per_second": read.array.size / seconds,
    }
    return MaskResult(
        mask=mask,
        status=status,
        objective=objective,
        bound=bound,
        gap=None if bound is None else relative_gap(objective, bound),
        method="exact" if method == "auto" else method,
        stats=stats,
        pattern=pattern,
        padding=padding,
        scored=read.name,
        duals=potentials,
    )


def total(parts: list[float]) -> float:
    """The exact sum, rounded once; not finite if it, or a part, is too large for a float."""
    try:
        return math.fsum(parts)
    except (OverflowError, ValueError):  # ValueError: −inf + inf
        return math.inf


def check_method(method: str, pattern: Pattern) -> None:
    """Raise InputError for a method that does not exist, PatternError for one that cannot serve the
    pattern.
    """
    if not isinstance(method, str) or method not in METHODS:
        raise InputError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}")
    serving = solvers.guarantees(pattern)
    if method not in serving:
        raise PatternError(
            f"method {method!r} cannot serve pattern {pattern}, only transposable ones such as "
            f"'2:4T'; for {pattern} use one of {', '.join(map(repr, serving))}"
        )


def _status(
    objective: float, bound: float | None, still_open: int | None, read: Scores,
    mask: NDArray[np.bool_], pattern: Pattern,
    padding: str,
) -> Status:  # fmt: skip
    """OPTIMAL where the solver says of every block that it is proven, and the sums do not
    contradict it.
    """
    if bound is None or still_open is None or still_open > 0:
        return Status.FEASIBLE
    gap = bound - objective
    if gap <= read.tolerance * abs(objective) or gap <= read.tolerance * kept_score(
        replace(read, absolute=True), mask
    ):
        return (
            Status.OPTIMAL
        )  # scores of both signs may cancel in the sum: what counts is the magnitude kept
    return Status.FEASIBLE if prove(read, mask, pattern, padding).open else Status.OPTIMAL


def _solve_matrix(matrix: BlockMatrix, read: Scores, module: str, workers: int) -> list[TaskResult]:
    """Every task of a matrix, in order; raises InputError if a score is not finite."""
    wide = solvers.computed_kind(module, read.kind, read.absolute)
    in_place = matrix.direct and solvers.reads_in_place(module, read.kind, read.absolute)
    kind = read.kind if in_place else wide
    run = solvers.make(module, matrix.pattern, kind, read.absolute, read.tolerance)
    source = (
        matrix.source.view(np.uint16) if in_place and kind in ("f16", "bf16") else matrix.source
    )

    def work(task: tuple[int, int]) -> TaskResult | None:
        first, last = task
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # sums that overflow are reported as what they are
            if in_place:
                return run(source, matrix.mask, first, last)
            return _solve_staged(
                matrix, run, first, last, np.float64 if wide == "f8" else np.float32
            )

    tasks = list(matrix.tasks())
    results = _in_threads(work, tasks, workers)
    task_results = [task_result for task_result in results if task_result is not None]
    if len(task_results) < len(results):
        raise non_finite_error(read, matrix.pattern)
    return task_results


def _solve_staged(
    matrix: BlockMatrix, run: Run, first: int, last: int, dtype: type[np.floating[Any]]
) -> TaskResult | None:
    """One task on a widened copy of its scores; the mask is written in place unless the matrix's
    edge cuts blocks.
    """
    buffer = matrix.stage(first, last, dtype)
    unit = matrix.pattern.rows
    target = matrix.mask[first * unit : last * unit]
    if matrix.even:
        return run(buffer, target, 0, last - first)
    padded = np.empty(buffer.shape, np.uint8)
    task_result = run(buffer, padded, 0, last - first)
    target[...] = padded[: target.shape[0], : target.shape[1]]
    return task_result


def _in_threads(
    work: Callable[[tuple[int, int]], Any], tasks: list[tuple[int, int]], workers: int
) -> list[Any]:
    """Results in the order of tasks. A pool lives for one call, so nothing is left to break across
    a fork.
    """
    if workers == 1 or len(tasks) == 1:
        return [work(task) for task in tasks]
    with ThreadPoolExecutor(min(workers, len(tasks))) as pool:
        return list(pool.map(work, tasks))
