"""Matrices on a device, a piece at a time, through the engine's kernel for their pattern."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nmsolve.pattern import Pattern
from nmsolve.solvers import ASCENT, ENUMERATION, ROWWISE, Solver, TaskResult, serving
from nmsolve.solvers.enumeration import prove
from nmsolve.torch.device import ascent
from nmsolve.torch.device.problem import Engine, Problem
from nmsolve.torch.result import TensorDuals
from nmsolve.torch.tensors import FLOATS8, compute_dtype
from nmsolve.totals import Totals


@dataclass(slots=True)
class Found:
    """Masks of matrices, padded to whole blocks, and what their pieces came to.

    Attributes
    ----------
    mask : (batch, rows, cols) bool tensor
    pattern : Pattern
    solver : Solver
        The one of the core whose algorithm ran.
    totals : Totals
        One task per piece.
    rows, columns : list of tensors
        Potentials of each piece, if they were asked for.
    """

    mask: Tensor
    pattern: Pattern
    solver: Solver
    totals: Totals
    rows: list[Tensor] = field(default_factory=list)
    columns: list[Tensor] = field(default_factory=list)

    def duals(self, batch: tuple[int, ...]) -> TensorDuals:
        """Return the potentials of all pieces, for matrices with these leading axes."""
        m, (_, rows, cols) = self.pattern.m, self.mask.shape
        empty = self.mask.new_zeros(0, dtype=torch.float64)
        u = torch.cat([empty, *(part.reshape(-1) for part in self.rows)]).view(
            *batch, rows, cols // m
        )
        if not self.pattern.transposable:
            return TensorDuals(rows=u, columns=None)
        v = torch.cat([empty, *(part.reshape(-1) for part in self.columns)])
        v = v if v.numel() else self.mask.new_zeros(self.mask.numel() // m, dtype=torch.float64)
        return TensorDuals(rows=u, columns=v.view(*batch, rows // m, cols))


def _pieces(X: Tensor, mask: Tensor, unit: int, most: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield parts of X (batch, rows, cols) and of its mask, of about `most` weights and whole block
    rows, in order.
    """
    _, rows, cols = mask.shape
    if rows * cols <= most:
        step = most // (rows * cols)
        for first in range(0, mask.shape[0], step):
            yield X[first : first + step], mask[first : first + step]
        return
    step = max(1, most // (unit * cols)) * unit
    for index in range(mask.shape[0]):
        for first in range(0, rows, step):
            yield (
                X[index : index + 1, first : first + step],
                mask[index : index + 1, first : first + step],
            )


def _nonnegative(X: Tensor) -> Tensor:
    """Return where scores are at least 0. Of float8 the code says so: all signs but −0's are above
    0x80, and NaN ends the solve anyway.
    """
    return X.view(torch.uint8) <= 0x80 if X.dtype in FLOATS8 else X >= 0


@dataclass(slots=True)
class Solved:
    """A piece whose mask is written.

    Attributes
    ----------
    result : TaskResult
    rows, columns : tensor or None
        Its potentials, if they were asked for.
    """

    result: TaskResult
    rows: Tensor | None = None
    columns: Tensor | None = None


def solve_matrices(
    engine: Engine,
    X: Tensor,
    pattern: Pattern,
    absolute: bool,
    tolerance: float,
    collect: bool,
    threads: int,
) -> Found:
    """Solve matrices with zeros up to whole blocks.

    Parameters
    ----------
    engine : Engine
        `torch_engine` or `triton_engine`.
    X : (batch, rows, cols) tensor
        Scores.
    absolute : bool
        Score |X| in place of X.
    tolerance : float
        The relative gap up to which the result counts as optimal.
    collect : bool
        Return potentials too.
    threads : int
        Of the host, for blocks that it is left.

    Returns
    -------
    Found
        Its totals are `refused` if a score is not finite.
    """
    m, unit = pattern.m, pattern.rows
    shape = (X.shape[0], -(-X.shape[1] // unit) * unit, -(-X.shape[2] // m) * m)
    nonnegative = absolute or not X.dtype.is_signed or bool(_nonnegative(X).all())
    solver = next(
        solver
        for solver in serving("exact", pattern)
        if solver in _PIECE
        and (solver.signed or nonnegative)
        and not (solver is ENUMERATION and collect)  # which makes no duals
    )
    mask = torch.empty(shape, dtype=torch.bool, device=X.device)
    found = Found(mask, pattern, solver, Totals(0.0))
    dtype = compute_dtype(X.dtype, solver is ASCENT and not nonnegative)
    problem = Problem(pattern, absolute, dtype, tolerance / 4)
    for piece, part in _pieces(X, mask, unit, engine.PIECE) if X.numel() else ():
        if piece.dtype in FLOATS8:
            piece = piece.to(dtype)
        solved = _PIECE[solver](engine, piece, part, problem, collect, threads)
        found.totals.add(None if solved is None else solved.result)
        if solved is None:
            break
        if solved.rows is not None:
            found.rows.append(solved.rows)
        if solved.columns is not None:
            found.columns.append(solved.columns)
    return found


def _select(
    engine: Engine, X: Tensor, mask: Tensor, problem: Problem, collect: bool, threads: int
) -> Solved | None:
    """Solve groups, which need no proof."""
    p = problem.pattern
    sums = engine.keep_groups(
        X, mask, p.n, p.m, p.at_most, problem.absolute, problem.dtype, collect
    )
    objective, bound, wrong, _ = sums.totals.tolist()
    if wrong:
        return None
    u = None
    if sums.thresholds is not None:
        u = sums.thresholds.double()
        if p.at_most:
            u = torch.zeros_like(u) if p.transposable else u.clamp_min(0)
    return Solved(TaskResult(objective, bound, 0, {}), u)


def _enumerate(
    engine: Engine, X: Tensor, mask: Tensor, problem: Problem, collect: bool, threads: int
) -> Solved | None:
    """Solve 4 × 4 blocks: those that are apart on the host."""
    n, absolute, dtype = problem.pattern.n, problem.absolute, problem.dtype
    sums = engine.enumerate_blocks(X, mask, n, absolute, dtype, False)
    objective, bound, wrong, again = sums.totals.tolist()
    if wrong:
        return None
    if again:
        sums = engine.enumerate_blocks(X, mask, n, absolute, dtype, True)
        objective, bound, _, _ = sums.totals.tolist()
    apart = None if sums.open is None else torch.nonzero(sums.open).squeeze(1)
    blocks = mask.numel() // 16
    bound, closed = prove(objective, bound, dtype == torch.float64, 4 * problem.tolerance)
    still_open = 0 if closed else blocks
    stats: dict[str, float] = {"enumerated": blocks}
    if apart is not None and apart.numel():
        more, loose, unsolved = ascent.finish_on_host(X, mask, problem, apart, None, threads)
        objective, bound = objective + more, bound + more + loose
        still_open += int(unsolved)
        stats["solved_on_host"] = apart.numel()
    return Solved(TaskResult(objective, bound, still_open, stats))


def _ascend(
    engine: Engine, X: Tensor, mask: Tensor, problem: Problem, collect: bool, threads: int
) -> Solved | None:
    """Solve other blocks by dual ascent."""
    if X.dtype not in (torch.float16, torch.bfloat16, problem.dtype):
        X = X.to(problem.dtype)  # once for both calls of the engine
    outcome = ascent.solve_piece(engine, X, mask, problem, collect, threads)
    if outcome is None:
        return None
    objective = outcome.objective
    result = TaskResult(objective, objective + outcome.gap, int(outcome.unproven), outcome.stats)
    if outcome.duals is None:
        return Solved(result)
    m = problem.pattern.m
    grid = (mask.shape[0], mask.shape[1] // m, mask.shape[2] // m, m)
    u, v = outcome.duals
    return Solved(result, u.view(grid).transpose(2, 3), v)


_PIECE: dict[Solver, Callable[..., Solved | None]] = {
    ROWWISE: _select,
    ENUMERATION: _enumerate,
    ASCENT: _ascend,
}
