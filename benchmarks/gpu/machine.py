"""The machine and the versions that something was measured on."""

from __future__ import annotations

import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any


def describe(device: Any) -> dict[str, Any]:
    """A torch device, what computes there, and the versions."""
    import numba
    import numpy as np
    import torch

    import nmsolve
    import nmsolve.torch as nmt

    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device)
        if cuda
        else platform.processor() or platform.machine(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability(device)))
        if cuda
        else None,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "backends": {
            name: f"{'yes' if entry.available else 'no'}: {entry.reason}"
            for name, entry in nmt.backends().items()
        },
        "versions": {
            "nmsolve": nmsolve.__version__,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "triton": installed("triton"),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "numba": numba.__version__,
        },
    }


def installed(package: str) -> str:
    """The version of a package, without importing it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def slug(machine: dict[str, Any]) -> str:
    """The name of results: hardware and versions."""
    name = (
        f"{machine['device']} torch{machine['versions']['torch']} "
        f"triton{machine['versions']['triton']}"
    )
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def gpu_slug() -> str:
    """`slug` for the first GPU here, by a process that never touches it."""
    versions = {package: installed(package) for package in ("torch", "triton")}
    return slug({"device": nvidia_smi("name").get("name", "gpu"), "versions": versions})


def nvidia_smi(*fields: str) -> dict[str, str]:
    """Fields of the first GPU as nvidia-smi prints them, which only reads; empty where it does not
    answer.
    """
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    first = next(iter(done.stdout.splitlines()), "")
    return dict(zip(fields, (value.strip() for value in first.split(",")), strict=False))
