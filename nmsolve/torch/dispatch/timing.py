"""How long calls take: CUDA events on a GPU, the clock elsewhere; alternating, medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch


def medians_us(
    calls: Sequence[Callable[[int], object]], device: torch.device, rotation: int = 1, repeats: int = 15, warm_up: int = 3
) -> list[float]:
    """The median time of a call of each callable, in microseconds.

    Parameters
    ----------
    calls : callables of one number
        Alternate, so that a clock that drifts or a GPU that heats up is nobody's disadvantage.
    rotation : int
        A sample times call(0) … call(rotation − 1) in a row, each of which uses operands of its own: with enough of them none
        is still in the cache from the last time.
    repeats, warm_up : int
        Samples taken, and those thrown away before.
    """
    samples: list[list[float]] = [[] for _ in calls]
    for sample in range(warm_up + repeats):
        for k, call in enumerate(calls):
            seconds = _seconds(call, device, rotation)
            if sample >= warm_up:
                samples[k].append(seconds)
    return [statistics.median(taken) / rotation * 1e6 for taken in samples]


def _seconds(call: Callable[[int], object], device: torch.device, rotation: int) -> float:
    if device.type != "cuda":
        started = time.perf_counter()
        for i in range(rotation):
            call(i)
        return time.perf_counter() - started
    with torch.cuda.device(device):
        begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        begin.record()
        for i in range(rotation):
            call(i)
        end.record()
        end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def rotation_beyond_cache(bytes_a_call: int, device: torch.device) -> int:
    """How many sets of operands of a size are twice the cache, at most 8: enough that each is read from memory."""
    cache = 2**25
    if device.type == "cuda":
        cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(1, min(8, -(-2 * cache // max(1, bytes_a_call))))
