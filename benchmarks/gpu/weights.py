"""Weights to solve and to multiply by, and what a mask of them has to stand."""

from __future__ import annotations

import torch
from torch import Tensor

import nmsolve
import nmsolve.torch as nmt
from benchmarks.timing import WrongResult

#: N(0, 1) in two dtypes, and rounded to bfloat16, where most blocks have equal magnitudes; in true
#: float32 hardly any have.
BF16, TRUE, ROUNDED = "bfloat16", "true float32", "bf16-valued float32"
#: float32 full of ties, as quantised and pruned weights are.
INTEGERS, ZEROS = "integers 0..7", "60 % zeros"
#: 60 % of N(0, 1) is nearer to zero.
SIXTIETH_PERCENTILE = 0.8416


def normal(rows: int, cols: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Tensor:
    """N(0, 1); of integers, rounded from 25 times that."""
    generator = torch.Generator(device).manual_seed(seed)
    drawn = torch.randn(rows, cols, generator=generator, device=device)
    return (
        drawn.to(dtype)
        if dtype.is_floating_point
        else (25 * drawn).round().clamp(-127, 127).to(dtype)
    )


def scores(kind: str, side: int, device: torch.device, seed: int = 0) -> Tensor:
    """Square scores of one of the five kinds."""
    drawn = normal(side, side, torch.float32, device, seed)
    if kind == BF16:
        return drawn.bfloat16()
    if kind == ROUNDED:
        return drawn.bfloat16().float()
    if kind == INTEGERS:
        return (drawn.abs() * 3).floor().clamp(max=7)
    return torch.where(drawn.abs() < SIXTIETH_PERCENTILE, 0.0, drawn) if kind == ZEROS else drawn


def pruned(rows: int, cols: int, device: torch.device) -> Tensor:
    """A bfloat16 2:4T weight of a layer."""
    weight = (normal(rows, cols, torch.float32, device) * cols**-0.5).bfloat16()
    return torch.where(nmt.solve(weight, "2:4T").mask, weight, 0)


def checked(weights: Tensor, pattern: str) -> nmt.MaskResult:
    """A mask that is proven optimal, verified from scratch on the host, and the same bit for bit if
    solved again.
    """
    result = nmt.solve(weights, pattern)
    result.verify(weights)
    if result.status is not nmsolve.Status.OPTIMAL:
        raise WrongResult(f"{result} is not proven optimal")
    if not torch.equal(nmt.solve(weights, pattern).mask, result.mask):
        raise WrongResult(f"{pattern}: two runs returned different masks")
    return result


def on_host(result: nmt.MaskResult) -> str:
    """How many blocks the host solved."""
    return f"{int(result.stats.get('solved_on_host', 0))} blocks on the host"
