"""Transposable blocks on a device: a first level of the dual ascent for all, all levels for what it
does not prove.

The program, the ascent and the treatment of ties are those of nmsolve.solvers.ascent, with every
block of a piece side by side in place of 16. Augmenting paths branch block by block, which suits no
device: the few blocks that no level proves are the last resort, and the only ones that visit the
host, where the core solves them.

The host waits for the device once per call of the engine, for its sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from nmsolve import api
from nmsolve.result import Status
from nmsolve.torch.device.blocks import keep_at, scores_at
from nmsolve.torch.device.problem import Engine, Problem


@dataclass(slots=True)
class Outcome:
    """A piece whose masks are written.

    Attributes
    ----------
    objective, gap : float
        The kept score, and how far the dual bound is from it.
    unproven : float
        Blocks that neither device nor host proved.
    stats : dict
        Blocks by the level that proved them.
    duals : pair of (N, m) float64 tensors, or None
        If they were asked for.
    """

    objective: float
    gap: float
    unproven: float
    stats: dict[str, float]
    duals: tuple[Tensor, Tensor] | None


def solve_piece(
    engine: Engine, X: Tensor, mask: Tensor, problem: Problem, collect: bool, threads: int | None
) -> Outcome | None:
    """Solve the blocks of X (batch, rows, cols) into mask (batch, rows, cols rounded up to m); None
    if not finite.
    """
    blocks, sums = engine.ascend_first(X, mask, problem, collect)
    objective, gap, wrong, proven = sums.tolist()
    if wrong:
        return None
    unproven: float = blocks.open.numel() - int(proven)
    stats = {"proven_at_level_0": proven}
    place = None
    if unproven:
        place, sums = engine.ascend_rest(X, mask, problem, blocks, int(unproven), collect)
        more, loose, *levels = sums.tolist()
        objective, gap = objective + more, gap + loose
        stats = {
            f"proven_at_level_{level}": number
            for level, number in enumerate([proven + levels[0], *levels[1:]])
        }
        unproven -= int(sum(levels))
    duals = None
    if collect:
        scale = blocks.scale.double()
        duals = (blocks.u.double() * scale).T, (blocks.v.double() * scale).T
    if unproven:
        assert place is not None
        last = place[blocks.open[place] != 0]
        more, loose, unsolved = finish_on_host(X, mask, problem, last, duals, threads)
        objective, gap = objective + more, gap + loose
        stats["solved_on_host"] = last.numel()
        unproven = unsolved
    return Outcome(objective, gap, unproven, stats, duals)


def finish_on_host(
    X: Tensor,
    mask: Tensor,
    problem: Problem,
    place: Tensor,
    duals: tuple[Tensor, Tensor] | None,
    threads: int | None,
) -> tuple[float, float, float]:
    """Hand the blocks at `place` to the core; returns objective, gap and the number of blocks that
    stay unproven.
    """
    m = problem.pattern.m
    S = scores_at(X, mask, place, problem)
    host: NDArray[Any] = S.reshape(-1, m).cpu().numpy()
    scores = None if problem.absolute else host
    result = api.solve(
        host, problem.pattern, scores=scores, threads=threads, duals=duals is not None
    )
    keep_at(mask, place, torch.from_numpy(result.mask).to(mask.device).view(-1, m, m))
    if duals is not None and result.duals is not None and result.duals.columns is not None:
        for ours, theirs in zip(duals, (result.duals.rows, result.duals.columns), strict=True):
            ours[place] = torch.from_numpy(theirs).to(ours.device).view(-1, m)
    assert result.bound is not None
    unproven = 0 if result.status is Status.OPTIMAL else max(1.0, result.stats.get("unproven", 1.0))
    return result.objective, result.bound - result.objective, unproven
