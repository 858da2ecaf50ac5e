"""Masks on a GPU: exact solvers against the copy bandwidth and against rivals, in one run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor

import nmsolve
import nmsolve.torch as nmt
from benchmarks.gpu import rivals
from benchmarks.timing import WrongResult
from nmsolve.torch.dispatch.timing import medians_us
from nmsolve.torch.masks import engine_name


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement. `target` is a least rate or a most time, in `unit`; None where nothing was promised."""

    what: str
    us: float
    value: float
    unit: str
    target: float | None = None
    at_least: bool = True
    loss: float | None = None
    note: str = ""

    @property
    def passed(self) -> bool | None:
        """Whether the target was reached; None without one."""
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target


def normal(side: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Tensor:
    """A square N(0, 1) matrix."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(side, side, generator=generator, device=device).to(dtype)


def copy_bandwidth(device: torch.device, size: int) -> float:
    """Bytes a second of a copy on the device, read and written counted."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    (us,) = medians_us([lambda _: target.copy_(source)], device)
    return 2 * size / us * 1e6


def check_solved(result: nmt.MaskResult, weights: Tensor) -> None:
    """Verify from scratch, on the host, that a result is optimal."""
    result.verify(weights)
    if result.status is not nmsolve.Status.OPTIMAL:
        raise WrongResult(f"{result} is not proven optimal")


def measure(device: torch.device, side: int) -> Iterator[Row]:
    """Every row, side × side; weights rotate through three matrices, of which two are larger than any cache."""
    bandwidth = copy_bandwidth(device, min(2**30, side * side * 16))
    yield Row(what="device copy", us=0.0, value=bandwidth / 1e9, unit="GB/s", note="bytes read and written")
    bf16 = [normal(side, torch.bfloat16, device, seed) for seed in range(3)]
    f32 = [weights.float() for weights in bf16]
    size = side * side
    traffic = 3 * size  # bfloat16 read, a byte of mask written

    for text, share in (("2:4T", 0.4), ("2:4", 0.6)):
        us = _kernel_us(bf16, text)
        rate = traffic / us * 1e6
        yield Row(
            what=f"{text} bf16, kernel", us=us, value=rate / bandwidth, unit="× copy", target=share,
            note="kernel and its sums, without what Python adds",
        )  # fmt: skip
        us, result = _solve_us(bf16, text)
        yield Row(what=f"{text} bf16, nmt.solve", us=us, value=traffic / us * 1e6 / bandwidth, unit="× copy", note=_host(result))
    for text, target in (("4:8T", 40.0), ("8:16T", None), ("16:32T", None), ("<=4:8T", None)):
        for name, matrices in (("f32", f32), ("bf16", bf16)):
            us, result = _solve_us(matrices, text)
            yield Row(
                what=f"{text} {name}, nmt.solve", us=us, value=size / us / 1e3, unit="Gw/s",
                target=target if name == "f32" else None, note=_host(result),
            )  # fmt: skip
            limit = {"8:16T": 8.0, "16:32T": 30.0}.get(text)
            if limit and name == "f32":
                yield Row(what=f"{text} {name}, time", us=us, value=us / 1e3, unit="ms", target=limit, at_least=False)
    for family in ("integers 0..7", "60 % zeros"):
        matrices = [_hard(family, weights) for weights in f32]
        us, result = _solve_us(matrices, "8:16T")
        yield Row(what=f"8:16T {family}", us=us, value=size / us / 1e3, unit="Gw/s", note=_host(result))
    yield from _rivals(bf16)


def _hard(family: str, weights: Tensor) -> Tensor:
    """Ties, as quantised and as already pruned weights have them."""
    if family.startswith("integers"):
        return (weights.abs() * 3).floor().clamp(max=7)
    return torch.where(weights.abs() < 0.8416, 0.0, weights)


def _host(result: nmt.MaskResult) -> str:
    """How many blocks the host solved."""
    return f"{int(result.stats.get('solved_on_host', 0))} blocks on the host"


def _solve_us(matrices: list[Tensor], text: str) -> tuple[float, nmt.MaskResult]:
    result = nmt.solve(matrices[0], text)
    check_solved(result, matrices[0])
    first = result.mask
    if not torch.equal(nmt.solve(matrices[0], text).mask, first):
        raise WrongResult(f"{text}: two runs returned different masks")
    (us,) = medians_us([lambda i: nmt.solve(matrices[i], text)], first.device, len(matrices))
    return us, result


def _kernel_us(matrices: list[Tensor], text: str) -> float:
    """The engine's call for row-wise masks and 4 × 4 blocks, which neither waits nor allocates the mask."""
    pattern = nmsolve.Pattern.parse(text)
    engine = import_module(f"nmsolve.torch.device.{engine_name(matrices[0], pattern)}")
    views = [weights[None] for weights in matrices]
    mask = torch.empty(views[0].shape, dtype=torch.bool, device=views[0].device)

    def call(i: int) -> None:
        if pattern.transposable:
            engine.enumerate_blocks(views[i], mask, pattern.n, True, torch.float32, False)
        else:
            engine.keep_groups(views[i], mask, pattern.n, pattern.m, False, True, torch.float32, False)

    call(0)
    if not torch.equal(mask[0], nmt.solve(matrices[0], text).mask):
        raise WrongResult(f"{text}: the kernel and nmt.solve disagree")
    (us,) = medians_us([call], mask.device, len(matrices))
    return us


def _rivals(matrices: list[Tensor]) -> Iterator[Row]:
    weights = matrices[0]
    size = weights.numel()
    best = {text: nmt.solve(weights, text).objective for text in ("2:4T", "4:8T", "8:16T")}

    def row(what: str, us: float, kept: float, text: str, note: str) -> Row:
        return Row(what=what, us=us, value=size / us / 1e3, unit="Gw/s", loss=1 - kept / best[text], note=note)

    def timed(call: Callable[[Tensor], object], repeats: int) -> float:
        (us,) = medians_us([lambda i: call(matrices[i])], weights.device, len(matrices), repeats=repeats, warm_up=1)
        return us

    def score(mask: Tensor, m: int) -> float:
        return float(torch.where(mask, rivals.as_blocks(weights, m), 0).sum(dtype=torch.float64))

    yield row("2:4T, argmax over 90 in torch", timed(rivals.argmax_of_90, 3), score(rivals.argmax_of_90(weights), 4), "2:4T", "")
    if weights.is_cuda and torch.backends.cusparselt.is_available():
        kept = float(rivals.tile_kernel(weights).abs().sum(dtype=torch.float64))
        yield row("2:4T, torch's tile kernel", timed(rivals.tile_pack, 10), kept, "2:4T", "greedy; packs both ways as well")
    for n, m in ((4, 8), (8, 16)):
        kept = score(rivals.entropic(weights, n, m), m)
        us = timed(lambda W, n=n, m=m: rivals.entropic(W, n, m), 1)  # type: ignore[misc]
        yield row(f"{n}:{m}T, entropic transport in torch", us, kept, f"{n}:{m}T", "")
    if not all(math.isfinite(value) for value in best.values()):
        raise WrongResult(f"objectives {best}")
