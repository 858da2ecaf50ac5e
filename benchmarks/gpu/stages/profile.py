"""Where the time of a solve goes: kernels, gaps between them, waits of the host, launches,
memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from importlib import import_module
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import nmsolve.torch as nmt
from benchmarks.gpu.rows import Figure, Measurement, Place, Profile, Row
from benchmarks.gpu.weights import BF16, ROUNDED, TRUE, scores
from nmsolve.pattern import Pattern
from nmsolve.torch.masks import solve_on_device

#: What of a profile the host waits in: whatever the operator, one of these is underneath. The
#: profiler's own are device-wide.
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy")
#: Host waits of a solve whose last resort is not needed.
MOST_WAITS = 3.0


class Event(NamedTuple):
    """An event of a profile, in microseconds. own : without the events inside it."""

    name: str
    on_device: bool
    start: float
    end: float
    own: float


def measure(place: Place) -> Iterator[Measurement]:
    """The patterns that have targets. A CPU runs the engine of torch operations, the only one that
    leaves traces there.
    """
    device, side = torch.device(place.device), 8192 if place.large else 64
    cases = [("2:4T", BF16), ("2:4", BF16), ("4:8T", TRUE), ("4:8T", ROUNDED), ("8:16T", TRUE)]
    if place.large:
        cases.append(("16:32T", TRUE))
    for pattern, kind in cases:
        yield Measurement(f"{pattern} {kind}", partial(profiled, pattern, kind, side, device))


def profiled(pattern: str, kind: str, side: int, device: torch.device) -> Iterator[Row]:
    """A solve under the profiler, and its time without."""
    what, weights = f"{pattern} {kind}", scores(kind, side, device)
    result = _solve(weights, pattern)
    walls = []
    for _ in range(5):
        _wait(weights)
        began = perf_counter()
        _solve(weights, pattern)
        _wait(weights)
        walls.append(perf_counter() - began)
    peak = _peak_mb(weights, pattern)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if weights.is_cuda else [])]
    with profile(activities=activities) as recorded:
        _solve(weights, pattern)
    events = [
        _event(event)
        for event in recorded.events()
        if not getattr(event, "is_user_annotation", False)
    ]
    names = Counter(event.name for event in events)
    waits = {name: names[name] for name in WAITS if names[name]}
    yield Profile(
        what=what,
        wall_ms=1e3 * median(walls),
        busy_ms=busy_us(events) / 1e3 if weights.is_cuda else None,
        launches=sum(event.on_device for event in events) if weights.is_cuda else None,
        waits=waits if weights.is_cuda else None,
        peak_mb=peak,
        stats=result.stats,
        top=longest(events, weights.is_cuda),
    )
    if weights.is_cuda:
        yield Figure(
            what=f"{what}: host waits of a solve", value=float(sum(waits.values())), unit="waits",
            target=None if kind == ROUNDED else MOST_WAITS, at_least=False,
        )  # fmt: skip


def busy_us(events: Iterable[Event]) -> float:
    """How long the device was at work: the union of its events."""
    total, until = 0.0, -float("inf")
    for start, end in sorted((event.start, event.end) for event in events if event.on_device):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def longest(
    events: Iterable[Event], on_device: bool, most: int = 14
) -> list[tuple[str, int, float]]:
    """Names of events on the device (or the host) with their counts and microseconds, those that
    take longest first.
    """
    times: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for event in events:
        if event.on_device == on_device:
            times[event.name] += event.own  # type: ignore[assignment]
            counts[event.name] += 1
    return [(name[:60], counts[name], round(us, 1)) for name, us in times.most_common(most)]


def _event(event: Any) -> Event:
    on_device, span = event.device_type == DeviceType.CUDA, event.time_range
    return Event(
        event.name,
        on_device,
        span.start,
        span.end,
        span.elapsed_us() if on_device else event.self_cpu_time_total,
    )


def _solve(weights: Tensor, pattern: str) -> nmt.MaskResult:
    if weights.is_cuda:
        return nmt.solve(weights, pattern)
    engine = import_module("nmsolve.torch.device.torch_engine")
    return solve_on_device(
        weights, None, Pattern.parse(pattern), "exact", None, "error", False, engine
    )


def _wait(weights: Tensor) -> None:
    if weights.is_cuda:
        torch.cuda.synchronize(weights.device)


def _peak_mb(weights: Tensor, pattern: str) -> float | None:
    """What a solve allocates beyond its input, mask included."""
    if not weights.is_cuda:
        return None
    torch.cuda.reset_peak_memory_stats(weights.device)
    before = torch.cuda.memory_allocated(weights.device)
    _solve(weights, pattern)
    return float(torch.cuda.max_memory_allocated(weights.device) - before) / 1e6
