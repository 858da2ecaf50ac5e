"""What a measurement was made on: processor, SIMD, versions, date."""

from __future__ import annotations

import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
import ortools
import scipy
import torch

import nmsolve

SIMD = (
    "sse4_2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_bf16",
    "avx512_fp16",
    "asimd",
    "sve",
)


def describe() -> dict[str, Any]:
    """The machine and the versions, as saved with every result."""
    text = Path("/proc/cpuinfo").read_text()
    fields = {
        key.strip(): value.strip()
        for key, _, value in (line.partition(":") for line in text.splitlines())
    }
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "simd": [flag for flag in SIMD if flag in flags],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "load_before": round(os.getloadavg()[0], 2),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "versions": {
            "nmsolve": nmsolve.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "numba": numba.__version__,
            "llvmlite": llvmlite.__version__,
            "ortools": ortools.__version__,
            "scipy": scipy.__version__,
            "torch": torch.__version__,
        },
    }


def slug(machine: dict[str, Any]) -> str:
    """The name of a result file: hardware and versions."""
    name = re.sub(r"\((R|TM)\)|CPU|@.*", "", machine["cpu"], flags=re.IGNORECASE)
    cpu = re.sub(r"[^a-z0-9]+", "-", f"{name} {machine['cpus']} cores".lower()).strip("-")
    versions = machine["versions"]
    return f"{cpu}-py{versions['python']}-numba{versions['numba']}-numpy{versions['numpy']}"
