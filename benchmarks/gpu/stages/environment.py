"""Where this runs: versions, the GPU and its clocks, backends, and the two rates that everything
else is compared with.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator

import torch

import nmsolve.torch as nmt
from benchmarks.gpu.machine import describe, nvidia_smi
from benchmarks.gpu.rows import Fact, Figure, Measurement, Place
from benchmarks.gpu.weights import normal
from benchmarks.processes import ROOT
from nmsolve.torch.dispatch.availability import loaded_cusparselt
from nmsolve.torch.dispatch.timing import medians_us

#: What nvidia-smi is asked for.
SMI = (
    "driver_version",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "clocks.max.mem",
    "power.draw",
    "power.limit",
    "temperature.gpu",
    "memory.total",
    "memory.used",
)


def measure(place: Place) -> Iterator[Measurement]:
    """Facts first, so that they are there whatever happens to the rates."""
    device = torch.device(place.device)
    yield Measurement("versions", lambda: versions(device))
    yield Measurement("the device", lambda: properties(device))
    yield Measurement("the repository", repository)
    yield Measurement("backends", backends)
    yield Measurement("cuSPARSELt", cusparselt)
    yield Measurement(
        "copy bandwidth", lambda: [copy_figure(device, 2**30 if place.large else 2**24)]
    )
    yield Measurement("bf16 matmul rate", lambda: matmul_rate(device, 8192 if place.large else 256))
    if place.large:  # under load, which is what clocks and power are worth something at
        yield Measurement("clocks and power", clocks)


def versions(device: torch.device) -> Iterator[Fact]:
    """The device's name and capability, and every version."""
    machine = describe(device)
    yield Fact(what="device", value=machine["device"])
    if machine["capability"] is not None:
        yield Fact(what="compute capability", value=machine["capability"])
    for name, version in machine["versions"].items():
        yield Fact(what=name, value=str(version))
    yield Fact(
        what="CPUs",
        value=str(
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        ),
    )
    yield Fact(what="system", value=f"{platform.system()} {platform.release()}")


def properties(device: torch.device) -> Iterator[Fact]:
    """What torch knows of a GPU."""
    if device.type != "cuda":
        return
    known = torch.cuda.get_device_properties(device)
    yield Fact(what="multiprocessors", value=str(known.multi_processor_count))
    yield Fact(what="memory", value=f"{known.total_memory / 2**30:.1f} GiB")
    yield Fact(what="L2", value=f"{known.L2_cache_size / 2**20:.1f} MiB")


def repository() -> Iterator[Fact]:
    """The commit, where the repository has come along."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    yield Fact(what="commit", value=described.stdout.strip() or "not known here")


def backends() -> Iterator[Fact]:
    """As `nmt.backends()` says."""
    for name, backend in nmt.backends().items():
        yield Fact(what=f"backend {name}", value=f"{'yes' if backend else 'no'}: {backend.reason}")


def cusparselt() -> Iterator[Fact]:
    """Its version, as torch was compiled with it and as it is loaded: the two may differ."""
    known = torch.backends.cusparselt
    yield Fact(
        what="cuSPARSELt, as torch says",
        value=str(known.version() if known.is_available() else None),
    )
    yield Fact(what="cuSPARSELt, as loaded", value=str(loaded_cusparselt()))


def copy_bandwidth(device: torch.device, size: int) -> float:
    """Bytes a second of a copy on the device, read and written counted."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    (us,) = medians_us([lambda _: target.copy_(source)], device)
    return 2 * size / us * 1e6


def copy_figure(device: torch.device, size: int) -> Figure:
    """`copy_bandwidth`, as a row."""
    return Figure(
        what="device copy",
        value=copy_bandwidth(device, size) / 1e9,
        unit="GB/s",
        note="bytes read and written",
    )


def matmul_rate(device: torch.device, side: int) -> Iterator[Figure]:
    """A dense bfloat16 product, the yardstick of the sparse ones."""
    left, right = (normal(side, side, torch.bfloat16, device, seed) for seed in range(2))
    (us,) = medians_us([lambda _: left @ right], device)
    yield Figure(
        what=f"bf16 matmul, {side} × {side} × {side}",
        us=us,
        value=2 * side**3 / us / 1e6,
        unit="TFLOP/s",
    )


def clocks() -> Iterator[Fact]:
    """Clocks, power and memory, right after the products."""
    answers = nvidia_smi(*SMI)
    if not answers:
        yield Fact(what="nvidia-smi", value="does not answer")
    for name, value in answers.items():
        yield Fact(what=name, value=value)
