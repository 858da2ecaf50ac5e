"""Times of calls: on a GPU the device's and the host's, elsewhere the clock's. Calls alternate, and
medians count.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from nmsolve.torch.device.failures import is_lost

#: What is timed: a callable of one number, which names its operands.
Timed = Callable[[int], object]
#: The device sleeps twice as long as the host takes, because that scatters, and so many seconds
#: more for recording an event; but not for long, because a call that takes the host so much time
#: waits for the device itself.
_SLACK, _LONGEST_SLEEP = 1e-4, 0.05
#: Graphs whose capture failed. Allocators may go on asking them which stream they captured, so they
#: are never destroyed.
_FAILED: list[torch.cuda.CUDAGraph] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTime:
    """Medians of a call. On a CPU both are the whole call.

    Attributes
    ----------
    device_us : float
        Microseconds that the device takes, its queue never empty.
    host_us : float
        Microseconds until the host has queued the call, which then may return.
    """

    device_us: float
    host_us: float

    @property
    def in_use_us(self) -> float:
        """Microseconds per call of a loop over it: host and device work side by side, and the
        slower is waited for.
        """
        return max(self.device_us, self.host_us)


def call_times(
    calls: Sequence[Timed],
    device: torch.device,
    rotation: int = 1,
    repeats: int = 15,
    warm_up: int = 3,
) -> list[CallTime]:
    """Return the median times of a call of each callable.

    Parameters
    ----------
    calls : callables of one number
        They alternate, so that a clock that drifts or a GPU that heats up favours none.
    rotation : int
        A sample times call(0) … call(rotation − 1) in a row, each of which uses operands of its
        own: with enough of them none is still in the cache from the last time.
    repeats, warm_up : int
        Samples taken, and those thrown away before.
    """
    samples: list[list[tuple[float, float]]] = [[] for _ in calls]
    for sample in range(warm_up + repeats):
        for k, call in enumerate(calls):
            taken = _seconds(call, device, rotation)
            if sample >= warm_up:
                samples[k].append(taken)
    medians = [
        [statistics.median(times) / rotation * 1e6 for times in zip(*taken, strict=True)]
        for taken in samples
    ]
    return [CallTime(device_us=on_device, host_us=on_host) for on_device, on_host in medians]


def medians_us(
    calls: Sequence[Timed],
    device: torch.device,
    rotation: int = 1,
    repeats: int = 15,
    warm_up: int = 3,
) -> list[float]:
    """Return what `call_times` does, the device's times alone. A call that waits for the device is
    timed as it is, waits included.
    """
    return [taken.device_us for taken in call_times(calls, device, rotation, repeats, warm_up)]


def graph_medians_us(
    calls: Sequence[Timed],
    device: torch.device,
    rotation: int = 1,
    repeats: int = 15,
    warm_up: int = 3,
) -> list[float | None]:
    """Return what `medians_us` does, of calls replayed from CUDA graphs, which take the host
    nothing; None for a call that cannot be captured.

    On a CPU none can. A call that waits for the device is recognised before it is captured, as far
    as torch can tell; a capture that fails all the same is cleaned up.
    """
    graphs = [_captured(call, device, rotation) for call in calls]
    # A replay is all calls of the rotation at once.
    replays = [_replay(graph) for graph in graphs if graph is not None]
    times = iter(medians_us(replays, device, 1, repeats, warm_up))
    return [None if graph is None else next(times) / rotation for graph in graphs]


def _replay(graph: torch.cuda.CUDAGraph) -> Timed:
    return lambda _: graph.replay()


def _seconds(call: Timed, device: torch.device, rotation: int) -> tuple[float, float]:
    """Return seconds of all calls of a rotation: the device's, and the host's."""
    if device.type != "cuda":
        taken = _host_seconds(call, rotation)
        return taken, taken
    with torch.cuda.device(device):
        cycles = _cycles_a_second(torch.cuda.current_device())
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        on_host = _host_seconds(call, rotation)
        torch.cuda.synchronize()
        # While the device sleeps, the host queues what is timed.
        torch.cuda._sleep(int(min(2 * on_host + _SLACK, _LONGEST_SLEEP) * cycles))
        begin.record()
        for i in range(rotation):
            call(i)
        end.record()
        end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3, on_host


def _host_seconds(call: Timed, rotation: int) -> float:
    started = time.perf_counter()
    for i in range(rotation):
        call(i)
    return time.perf_counter() - started


@functools.cache
def _cycles_a_second(index: int) -> float:
    """Return how many cycles of `torch.cuda._sleep` a device counts in a second. Measured: CUDA 13
    no longer tells clock rates.
    """
    cycles = 10_000_000
    with torch.cuda.device(index):
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(cycles)
        begin.record()
        torch.cuda._sleep(cycles)
        end.record()
        end.synchronize()
    return cycles / (float(begin.elapsed_time(end)) / 1e3)


def _captured(call: Timed, device: torch.device, rotation: int) -> torch.cuda.CUDAGraph | None:
    """Return all calls of a rotation as a graph; None if they cannot be captured."""
    if device.type != "cuda":
        return None
    with torch.cuda.device(device), warnings.catch_warnings():
        # That the mode of debugging is a prototype, and that a graph is empty.
        warnings.simplefilter("ignore")
        side = torch.cuda.Stream()
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            for i in range(rotation):
                call(i)
            if _waits(call):
                return None
        torch.cuda.synchronize()
        pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(side):
                # Relaxed: libraries may allocate memory of their own at a first call.
                graph.capture_begin(pool, capture_error_mode="relaxed")
                try:
                    for i in range(rotation):
                        call(i)
                finally:
                    graph.capture_end()
        except RuntimeError as error:
            if is_lost(error, device):
                raise
            _end(graph, pool, side)
            return None
    return graph


def _waits(call: Timed) -> bool:
    """Return whether a call waits for the device, as far as torch can tell: found outside a
    capture, which such a call would break.
    """
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call(0)
    except RuntimeError:  # it has just run without one
        return True
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return False


def _end(graph: torch.cuda.CUDAGraph, pool: tuple[int, int], side: torch.cuda.Stream) -> None:
    """End what torch leaves open when a capture fails: a pool of memory, and random numbers that
    are drawn as in a capture.
    """
    graph.reset()
    _FAILED.append(graph)
    with contextlib.suppress(RuntimeError):  # it had not begun, or had ended
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
    # Versions of torch that do not tell captures apart take random numbers to be captured until a
    # capture has ended well.
    with contextlib.suppress(RuntimeError), torch.cuda.stream(side):
        empty = torch.cuda.CUDAGraph()
        empty.capture_begin()
        empty.capture_end()


def rotation_beyond_cache(bytes_a_call: int, device: torch.device) -> int:
    """Return how many sets of operands of a size are twice the cache, at most 8: enough that each
    is read from memory.
    """
    cache = 2**25
    if device.type == "cuda":
        cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(1, min(8, -(-2 * cache // max(1, bytes_a_call))))
