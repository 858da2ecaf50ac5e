"""Transposable blocks on a device: dual ascent level by level, what is proven leaves, the rest is squeezed together.

The program, the ascent and the treatment of ties are those of nmsolve.solvers.ascent, with every block of a piece side by
side in place of 16. Augmenting paths branch block by block, which suits no device: the few blocks that no level
proves are the last resort, and the only ones that visit the host, where the core solves them.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from nmsolve import api
from nmsolve.pattern import Pattern
from nmsolve.result import Status
from nmsolve.solvers.ascent import ROUNDING, schedule
from nmsolve.solvers.ties import COARSE, FINE, HINT, LATTICE, SHRINK, ZEROS, offsets
from nmsolve.torch.device.plain import Certificate

#: Rounds of the last levels. A device is never full there, so that rounds are cheap, and levels, whose steps have to be launched
#: one by one, are not: these are fewer and longer than the core's.
LAST = (40, 60, 80)


@dataclass(slots=True)
class Outcome:
    """A piece's sums; duals (N, m) float64 if they were asked for."""

    objective: float
    gap: float
    stats: dict[str, float]
    duals: tuple[Tensor, ...] | None


@dataclass(slots=True)
class _Blocks:
    """Blocks that are not proven yet, all with N in the last axis, and where in the piece they are."""

    S: Tensor
    u: Tensor
    v: Tensor
    amount: Tensor
    everywhere: Tensor
    equal: Tensor
    power: Tensor
    scale: Tensor
    place: Tensor

    def at(self, index: Tensor) -> _Blocks:
        """Only these blocks."""

        def pick(field: Tensor) -> Tensor:
            return field.index_select(-1, index)

        return _Blocks(
            S=pick(self.S), u=pick(self.u), v=pick(self.v), amount=pick(self.amount), everywhere=pick(self.everywhere),
            equal=pick(self.equal), power=pick(self.power), scale=pick(self.scale),
            place=self.place[index],
        )  # fmt: skip


class _Step(NamedTuple):
    """What a step came to: masks, which blocks are proven and where the others are, kept scores and gaps of the blocks.

    feasible : blocks whose masks are, and whose offset may have been too large. proven : how many, level by level.
    """

    kept: Tensor
    closed: Tensor
    rest: Tensor
    objective: Tensor
    gap: Tensor
    feasible: Tensor
    proven: list[int]


@dataclass(frozen=True, slots=True)
class _Ascent:
    """The levels of a pattern, by an engine."""

    engine: ModuleType
    pattern: Pattern
    dtype: torch.dtype
    tolerance: float

    @property
    def rounds(self) -> tuple[int, ...]:
        """Rounds of every level."""
        first, second, third, *_ = schedule(self.pattern.m)[0]
        return first, second + third, *LAST

    def delta(self, device: torch.device) -> Tensor:
        """The offset of every entry of a block, (m m,)."""
        return torch.as_tensor(offsets(self.pattern.m), device=device).to(self.dtype)

    def step(self, blocks: _Blocks, level: int) -> _Step:
        """One level; of few blocks all levels that are left, in one launch."""
        n, m, at_most = self.pattern.n, self.pattern.m, self.pattern.at_most
        _, sweeps, omega = schedule(m)
        S, u, v, delta = blocks.S, blocks.u, blocks.v, self.delta(blocks.S.device)
        if level and S.shape[1] <= self.engine.FEW:
            kept, level_of, objective, gap = self.engine.climb(
                S, u, v, blocks.amount, blocks.power, delta, self.rounds[level:], sweeps, omega, n, m, at_most, ROUNDING,
                self.tolerance, SHRINK,
            )  # fmt: skip
            closed = level_of > 0
            proven = torch.bincount(level_of, minlength=len(self.rounds) - level + 1)[1:].tolist()
            return _Step(kept, closed, torch.nonzero(~closed).squeeze(1), objective, gap, closed, proven)
        A = _shift(blocks, delta[:, None]) if level or bool((blocks.amount > 0).any()) else S
        kept, good = self.engine.ascend(A, u, v, self.rounds[level], level == 0, omega, n, m, at_most)
        self.engine.relax(S, kept, u, v, good & (blocks.amount > 0), blocks.power, n, m, at_most, sweeps)
        proof = self.engine.certify(S, kept, u, v, n, m, at_most, ROUNDING)
        closed, rest = _split(proof, good, S, self.tolerance)
        return _Step(kept, closed, rest, proof.objective, proof.gap, good, [S.shape[1] - rest.numel()])


def solve_piece(
    engine: ModuleType, X: Tensor, mask: Tensor, pattern: Pattern, absolute: bool, dtype: torch.dtype, tolerance: float,
    collect: bool, threads: int | None,
) -> Outcome | None:  # fmt: skip
    """Solve the blocks of X (batch, rows, cols) into mask (batch, rows, cols rounded up to m); None if not finite."""
    m = pattern.m
    ascent = _Ascent(engine, pattern, dtype, tolerance)
    blocks = _begin(engine, engine.stage(X, mask, m, absolute, dtype), pattern, absolute, dtype)
    if blocks is None:
        return None
    count = blocks.S.shape[1]
    kept: Tensor | None = None
    duals = tuple(torch.empty((count, m), dtype=torch.float64, device=X.device) for _ in range(2)) if collect else None
    objective, gap, level = 0.0, 0.0, 0
    stats: dict[str, float] = {}
    while True:
        step = ascent.step(blocks, level)
        if kept is None:
            kept = step.kept
        else:
            kept[..., blocks.place] = step.kept
        if duals is not None:
            for array, dual in zip(duals, (blocks.u, blocks.v), strict=True):
                array[blocks.place] = (dual.double() * blocks.scale).T
        sums = [torch.where(step.closed, part * blocks.scale, 0.0).sum() for part in (step.objective, step.gap)]
        one, other = torch.stack(sums).tolist()
        objective, gap = objective + one, gap + other
        stats |= {f"proven_at_level_{level + k}": number for k, number in enumerate(step.proven)}
        level += len(step.proven)
        if step.rest.numel() == 0:
            break
        share = torch.where(step.feasible, blocks.amount / SHRINK, blocks.amount)
        hint = blocks.power * torch.where(blocks.equal > 0, HINT, FINE).to(dtype)
        blocks.amount = torch.where(share == 0, hint, share)
        blocks = blocks.at(step.rest)
        blocks.everywhere = torch.ones_like(blocks.everywhere)
        if level == len(ascent.rounds):
            one, other, unproven = _finish_on_host(blocks, kept, duals, pattern, absolute, threads)
            objective, gap = objective + one, gap + other
            stats |= {"solved_on_host": blocks.S.shape[1], "unproven": unproven}
            break
    engine.write_masks(kept, mask, m)
    return Outcome(objective, gap, stats, duals)


def _begin(engine: ModuleType, S: Tensor, pattern: Pattern, absolute: bool, dtype: torch.dtype) -> _Blocks | None:
    """Scales, first duals and first offsets of every block (as nmsolve.solvers.ties.flag_ties); None if not finite."""
    top = (S if absolute else S.abs()).amax(0).to(dtype)
    limit = 2.0**500 if dtype == torch.float64 else 2.0**60
    power = _power_of_two(top)
    extreme = (power > limit) | (power < 1 / limit)
    infinite, scaled = torch.stack([~torch.isfinite(top).all(), extreme.any()]).tolist()
    if infinite:
        return None
    scale = torch.where(extreme, power, 1.0)
    if scaled:  # a subnormal maximum is scaled too little to reach 1
        S = S.to(dtype) * (1 / scale)
        power = torch.where(extreme, _power_of_two(S.abs().amax(0)), power)
    m = pattern.m
    v, equal, zero = engine.start(S, pattern.n, m, pattern.at_most, dtype)
    steps = S[:m].to(dtype) * (COARSE / power)
    coarse = (steps.round() == steps).all(0)
    everywhere = (equal >= max(3, m // 2)) | ((equal > 0) & coarse)
    amount = torch.where(everywhere, power * LATTICE, torch.where(zero > 0, power * ZEROS, 0.0))
    place = torch.arange(S.shape[1], device=S.device)
    return _Blocks(S, torch.zeros_like(v), v, amount, everywhere, equal, power, scale.double(), place)


def _power_of_two(top: Tensor) -> Tensor:
    """The largest power of two that is no larger, of subnormal numbers the least normal one, of 0 it is 1."""
    wide = top.dtype == torch.float64
    bits, exponent, least = (torch.int64, 0x7FF0 << 48, 2.0**-1022) if wide else (torch.int32, 0x7F800000, 2.0**-126)
    power = (top.view(bits) & exponent).view(top.dtype).clamp_min(least)
    return torch.where(top == 0, 1.0, power)


def _shift(blocks: _Blocks, delta: Tensor) -> Tensor:
    """Scores with the offsets that separate ties."""
    S = blocks.S.to(blocks.u.dtype)
    return S + torch.where(blocks.everywhere | (S == 0), delta * blocks.amount, 0.0)


def _split(proof: Certificate, good: Tensor, S: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Which blocks are proven, and where the others are.

    A gap must be within tolerance of the magnitude kept, or of the least score that is not zero if that is more.
    """
    loose = proof.gap + proof.slack
    closed = good & (loose <= tolerance * proof.size)
    rest = torch.nonzero(~closed).squeeze(1)
    if rest.numel():
        magnitude = S.index_select(1, rest).double().abs()
        least = torch.where(magnitude > 0, magnitude, torch.inf).amin(0)
        late = good[rest] & (loose[rest] <= tolerance * least)
        closed[rest] = late
        rest = rest[~late]
    return closed, rest


def _finish_on_host(
    blocks: _Blocks, kept: Tensor, duals: tuple[Tensor, ...] | None, pattern: Pattern, absolute: bool, threads: int | None
) -> tuple[float, float, float]:  # fmt: skip
    """Hand the last blocks to the core; returns objective, gap and the number of blocks that stay unproven."""
    m = pattern.m
    S = blocks.S.to(blocks.u.dtype) * blocks.scale.to(blocks.u.dtype)
    host: NDArray[Any] = S.T.reshape(-1, m).cpu().numpy()
    result = api.solve(host, pattern, scores=None if absolute else host, threads=threads, duals=duals is not None)
    device, place = kept.device, blocks.place
    found = torch.from_numpy(result.mask).to(device).view(-1, m, m).permute(1, 2, 0)
    if kept.ndim == 2:  # words, one a row
        weight = 1 << torch.arange(m, dtype=kept.dtype, device=device)
        kept[:, place] = (found * weight[None, :, None]).sum(1, dtype=kept.dtype)
    else:
        kept[..., place] = found
    if duals is not None and result.duals is not None and result.duals.columns is not None:
        duals[0][place] = torch.from_numpy(result.duals.rows).to(device).view(-1, m)
        duals[1][place] = torch.from_numpy(result.duals.columns).to(device).view(-1, m)
    assert result.bound is not None
    unproven = 0 if result.status is Status.OPTIMAL else max(1.0, result.stats.get("unproven", 1.0))
    return result.objective, result.bound - result.objective, unproven
