"""Arrays of the floats and integers of a byte or less that ml_dtypes has."""

from __future__ import annotations

import ml_dtypes
import numpy as np

SMALL_FLOATS = (
    "float8_e3m4", "float8_e4m3", "float8_e5m2", "float8_e4m3fn", "float8_e4m3fnuz",
    "float8_e4m3b11fnuz", "float8_e5m2fnuz",
    "float8_e8m0fnu", "float6_e2m3fn", "float6_e3m2fn", "float4_e2m1fn",
)  # fmt: skip
SMALL_INTEGERS = ("int1", "uint1", "int2", "uint2", "int4", "uint4")
SMALL_TYPES = (*SMALL_FLOATS, *SMALL_INTEGERS)


def small(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Any finite numbers of a type, each code as often as the others."""
    dtype = np.dtype(getattr(ml_dtypes, name))
    codes = np.arange(256, dtype=np.uint8)
    finite = codes[np.isfinite(codes.view(dtype).astype(np.float32))]
    return np.random.default_rng((seed, *shape)).choice(finite, shape).view(dtype)
