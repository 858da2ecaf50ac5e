"""Exact masks against the copy bandwidth and against what was promised; every result verified
outside the timer.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib import import_module

import torch
from torch import Tensor

import nmsolve
import nmsolve.torch as nmt
from benchmarks.gpu.rows import Figure, Measurement, Place, Row
from benchmarks.gpu.stages.environment import copy_bandwidth
from benchmarks.gpu.weights import BF16, INTEGERS, ROUNDED, TRUE, ZEROS, checked, on_host, scores
from benchmarks.timing import WrongResult
from nmsolve.torch.dispatch.timing import call_times, medians_us
from nmsolve.torch.masks import engine_name

#: Matrices that the timed calls rotate through: of 8192 × 8192 weights even two are larger than any
#: cache.
ROTATION = 3
#: Bytes a weight of bfloat16 kernels: two read, one of mask written.
TRAFFIC = 3
#: At 8192 × 8192 on an H100 or H200: the least share of the copy bandwidth, the least rate in
#: billion weights a second, the most milliseconds. Promised for true float32.
SHARE, RATE, TIME = {"2:4T": 0.45, "2:4": 0.7}, {"4:8T": 60.0}, {"8:16T": 4.0, "16:32T": 10.0}
#: What nmt.solve is timed with.
LARGE = (
    *((pattern, kind) for kind in (TRUE, ROUNDED) for pattern in ("4:8T", "8:16T", "16:32T")),
    *((pattern, kind) for kind in (INTEGERS, ZEROS) for pattern in ("4:8T", "8:16T")),
    ("<=4:8T", TRUE),
    *((pattern, BF16) for pattern in ("4:8T", "8:16T", "<=4:8T")),
)
SMALL = (("4:8T", TRUE), ("8:16T", TRUE), ("4:8T", INTEGERS), ("4:8T", ZEROS), ("4:8T", BF16))
#: Milliseconds that Meng et al. (TSENOR, 2025) publish for approximate masks of 8192 × 8192 weights
#: on an H100.
PUBLISHED = {"8:16T": "published for an approximate one, H100: 120 ms"}


def measure(place: Place) -> Iterator[Measurement]:
    """What has a target first."""
    device, side = torch.device(place.device), 8192 if place.large else 128
    for pattern in SHARE:
        yield Measurement(f"{pattern} bfloat16", partial(against_copy, pattern, side, device))
    for pattern, kind in LARGE if place.large else SMALL:
        yield Measurement(f"{pattern} {kind}", partial(solved, pattern, kind, side, device))


def against_copy(pattern: str, side: int, device: torch.device) -> Iterator[Row]:
    """A kernel that reads and writes each byte once, against a copy in the same process."""
    size = side * side
    matrices = [scores(BF16, side, device, seed) for seed in range(ROTATION)]
    bandwidth = copy_bandwidth(device, min(2**30, 16 * size))

    def row(what: str, us: float, target: float | None, note: str) -> Figure:
        return Figure(
            what=what,
            us=us,
            value=TRAFFIC * size / us * 1e6 / bandwidth,
            unit="× copy",
            target=target,
            note=note,
        )

    result = checked(matrices[0], pattern)
    us = kernel_us(matrices, pattern, result.mask)
    note = (
        "kernel and its sums, without what Python adds; a copy in the same process: "
        f"{bandwidth / 1e9:.0f} GB/s"
    )
    yield row(f"{pattern} bfloat16, kernel", us, SHARE[pattern], note)
    yield row(f"{pattern} bfloat16, nmt.solve", solve_us(matrices, pattern), None, on_host(result))


def kernel_us(matrices: list[Tensor], text: str, expected: Tensor) -> float:
    """The engine's call for row-wise masks and 4 × 4 blocks, which neither waits nor allocates the
    mask.
    """
    pattern = nmsolve.Pattern.parse(text)
    # On a CPU the core solves; there torch operations stand in, so that the row is there.
    engine = import_module(
        f"nmsolve.torch.device.{engine_name(matrices[0].device, pattern) or 'torch'}_engine"
    )
    views = [weights[None] for weights in matrices]
    mask = torch.empty(views[0].shape, dtype=torch.bool, device=views[0].device)

    def call(i: int) -> None:
        if pattern.transposable:
            engine.enumerate_blocks(views[i], mask, pattern.n, True, torch.float32, False)
        else:
            engine.keep_groups(
                views[i], mask, pattern.n, pattern.m, False, True, torch.float32, False
            )

    call(0)
    if not torch.equal(mask[0], expected):
        raise WrongResult(f"{text}: the kernel and nmt.solve disagree")
    (us,) = medians_us([call], mask.device, len(matrices))
    return us


def solve_us(matrices: list[Tensor], pattern: str) -> float:
    """A call of nmt.solve, which waits for the device, until it returns."""
    (taken,) = call_times(
        [lambda i: nmt.solve(matrices[i], pattern)], matrices[0].device, len(matrices)
    )
    return taken.in_use_us


def solved(pattern: str, kind: str, side: int, device: torch.device) -> Iterator[Row]:
    """nmt.solve, as a rate and, where that was promised, as a time."""
    matrices = [scores(kind, side, device, seed) for seed in range(ROTATION)]
    result = checked(matrices[0], pattern)
    us = solve_us(matrices, pattern)
    promised = kind == TRUE
    note = on_host(result)
    yield Figure(
        what=f"{pattern} {kind}", us=us, value=matrices[0].numel() / us / 1e3, unit="Gw/s",
        target=RATE.get(pattern) if promised else None, note=note,
    )  # fmt: skip
    if promised and pattern in TIME:
        yield Figure(
            what=f"{pattern} {kind}, time", us=us, value=us / 1e3, unit="ms", target=TIME[pattern],
            at_least=False,
            note=PUBLISHED.get(pattern, "") if matrices[0].is_cuda else "",
        )  # fmt: skip
