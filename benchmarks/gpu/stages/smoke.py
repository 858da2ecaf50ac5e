"""Right or wrong, before anything is timed: every pattern and dtype solved, proven, verified on the
host and found again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

import nmsolve.torch as nmt
from benchmarks.gpu.rows import Measurement, Place, Solved
from benchmarks.gpu.weights import INTEGERS, ZEROS, checked, normal, scores

F16, BF16, F32, F64, I8 = torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8
#: Patterns and dtypes: first those that everything else needs, then the others, and last what
#: compiles longest.
LARGE = (
    *((pattern, dtype) for pattern in ("2:4", "2:4T", "4:8T") for dtype in (BF16, F32)),
    ("8:16T", F32),
    ("<=4:8T", F32),
    *((pattern, dtype) for pattern in ("1:4T", "4:8") for dtype in (BF16, F32)),
    *((pattern, dtype) for pattern in ("2:4", "2:4T", "4:8T") for dtype in (F16, F64, I8)),
    ("8:16T", BF16),
    ("16:32T", F32),
    *((pattern, dtype) for pattern in ("1:4T", "4:8", "<=4:8T") for dtype in (F16, F64, I8)),
    ("<=4:8T", BF16),
    ("32:64T", F32),
)
#: On a CPU without a cache of kernels each pattern takes seconds to compile, and again for other
#: widths.
SMALL = (
    *((pattern, dtype) for pattern in ("2:4", "2:4T", "4:8T") for dtype in (BF16, F32, I8)),
    ("2:4T", F64),
)
#: Scores with ties in all blocks, by the patterns that treat ties most differently.
TIED = tuple((pattern, kind) for kind in (INTEGERS, ZEROS) for pattern in ("2:4", "2:4T", "4:8T"))


def measure(place: Place) -> Iterator[Measurement]:
    """Ties are a part of the first half: a run that is short of time has seen them."""
    device, side = torch.device(place.device), 512 if place.large else 64
    plain = LARGE if place.large else SMALL
    half = plain.index(("8:16T", F32)) + 1 if place.large else len(plain)
    for pattern, dtype in plain[:half]:
        yield _drawn(pattern, dtype, side, device)
    for pattern, kind in TIED:
        draw = partial(scores, kind, side, device)
        yield Measurement(
            f"{pattern} {kind}",
            lambda pattern=pattern, kind=kind, draw=draw: solved(pattern, draw(), kind),
        )  # type: ignore[misc]
    for pattern, dtype in plain[half:]:
        yield _drawn(pattern, dtype, side, device)


def _drawn(pattern: str, dtype: torch.dtype, side: int, device: torch.device) -> Measurement:
    what = f"{pattern} {str(dtype).removeprefix('torch.')}"
    return Measurement(what, lambda: solved(pattern, normal(side, side, dtype, device), "N(0, 1)"))


def solved(pattern: str, weights: Tensor, kind: str) -> Iterator[Solved]:
    """Solve, verify, repeat."""
    began = time.perf_counter()
    stats = nmt.solve(weights, pattern).stats
    first = time.perf_counter() - began
    checked(weights, pattern)
    yield Solved(
        pattern=pattern, dtype=str(weights.dtype).removeprefix("torch."), scores=kind,
        side=len(weights), first_s=first,
        stats={
            name: value
            for name, value in stats.items()
            if value and name not in ("seconds", "weights_per_second")
        },
    )  # fmt: skip
