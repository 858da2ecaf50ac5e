"""Matrices on a device, a piece at a time, through the engine's kernel for their pattern."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import cast

import torch
from torch import Tensor

from nmsolve import solvers
from nmsolve.pattern import Pattern
from nmsolve.solvers.enumeration import prove
from nmsolve.torch.device import ascent
from nmsolve.torch.device.problem import Engine, Problem
from nmsolve.torch.result import TensorDuals
from nmsolve.torch.tensors import FLOATS8, compute_dtype


@dataclass(slots=True)
class Found:
    """Masks of matrices (batch, rows, cols, padded to whole blocks), and what their pieces came
    to.
    """

    mask: Tensor
    pattern: Pattern
    objectives: list[float] = field(default_factory=list)
    bounds: list[float] = field(default_factory=list)
    open: float = 0
    stats: dict[str, float] = field(default_factory=dict)
    rows: list[Tensor] = field(default_factory=list)
    columns: list[Tensor] = field(default_factory=list)

    def add(
        self, objective: float, bound: float, still_open: float, stats: dict[str, float]
    ) -> None:
        """Count a piece in, of which so many blocks or groups are not proven."""
        self.objectives.append(objective)
        self.bounds.append(bound)
        self.open += still_open
        for key, value in stats.items():
            self.stats[key] = self.stats.get(key, 0) + value

    def duals(self, batch: tuple[int, ...]) -> TensorDuals:
        """The potentials of all pieces, for matrices with these leading axes."""
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
    """Parts of X (batch, rows, cols) and of its mask, of about `most` weights and whole block rows,
    in order.
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
    """Where scores are at least 0. Of float8 the code says so: all signs but −0's are above 0x80,
    and NaN ends the solve anyway.
    """
    return X.view(torch.uint8) <= 0x80 if X.dtype in FLOATS8 else X >= 0


def solve_matrices(
    engine: ModuleType,
    X: Tensor,
    pattern: Pattern,
    absolute: bool,
    tolerance: float,
    collect: bool,
    threads: int,
) -> Found | None:
    """Solve X (batch, rows, cols), with zeros up to whole blocks; None if a score is not finite.

    absolute : whether |X| is scored, or X as it is. collect : whether duals are wanted.
    """
    n, m, unit = pattern.n, pattern.m, pattern.rows
    shape = (X.shape[0], -(-X.shape[1] // unit) * unit, -(-X.shape[2] // m) * m)
    found = Found(torch.empty(shape, dtype=torch.bool, device=X.device), pattern)
    if X.numel() == 0:
        return found
    nonnegative = absolute or not X.dtype.is_signed or bool(_nonnegative(X).all())
    module = solvers.module_for("exact", pattern, nonnegative)
    if module == "enumeration" and collect:  # which makes no duals
        module = "ascent"
    dtype = compute_dtype(X.dtype, module == "ascent" and not nonnegative)
    problem = Problem(pattern, absolute, dtype, tolerance / 4)
    for piece, mask in _pieces(X, found.mask, unit, engine.PIECE):
        if piece.dtype in FLOATS8:
            piece = piece.to(dtype)
        if module == "ascent":
            if piece.dtype not in (
                torch.float16,
                torch.bfloat16,
                dtype,
            ):  # once for both calls of the engine
                piece = piece.to(dtype)
            outcome = ascent.solve_piece(
                cast(Engine, engine), piece, mask, problem, collect, threads
            )
            if outcome is None:
                return None
            found.add(
                outcome.objective, outcome.objective + outcome.gap, outcome.unproven, outcome.stats
            )
            if outcome.duals is not None:
                grid = (mask.shape[0], mask.shape[1] // m, mask.shape[2] // m, m)
                found.rows.append(outcome.duals[0].view(grid).transpose(2, 3))
                found.columns.append(outcome.duals[1])
            continue
        if module == "enumeration":
            sums = engine.enumerate_blocks(piece, mask, n, absolute, dtype, False)
        else:
            sums = engine.keep_groups(piece, mask, n, m, pattern.at_most, absolute, dtype, collect)
        objective, bound, wrong, again = sums.totals.tolist()
        if wrong:
            return None
        stats: dict[str, float] = {}
        still_open = 0.0
        if module == "enumeration":
            apart = None
            if again:
                sums = engine.enumerate_blocks(piece, mask, n, absolute, dtype, True)
                objective, bound, _, _ = sums.totals.tolist()
                apart = torch.nonzero(sums.open).squeeze(1)
            blocks = mask.numel() // 16
            bound, closed = prove(objective, bound, dtype == torch.float64, tolerance)
            still_open = 0 if closed else blocks
            stats = {"enumerated": blocks}
            if apart is not None and apart.numel():
                more, loose, unsolved = ascent.finish_on_host(
                    piece, mask, problem, apart, None, threads
                )
                objective, bound, still_open = (
                    objective + more,
                    bound + more + loose,
                    still_open + unsolved,
                )
                stats["solved_on_host"] = apart.numel()
        found.add(objective, bound, still_open, stats)
        if collect:
            u = sums.thresholds.double()
            if pattern.at_most:
                u = torch.zeros_like(u) if pattern.transposable else u.clamp_min(0)
            found.rows.append(u)
    return found
