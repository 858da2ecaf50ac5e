"""Score families: one random matrix shows little. Each is float32 (rows, cols) and a function of
its arguments alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]


def normal(rows: int, cols: int, seed: int = 1) -> Matrix:
    """N(0, 1): a layer at initialisation, and what published figures are measured on."""
    return np.random.default_rng(seed).standard_normal((rows, cols), dtype=np.float32)


def bf16(rows: int, cols: int, seed: int = 2) -> Matrix:
    """N(0, 1) rounded to bfloat16 (to nearest, ties to even): 8 significant bits, so equal
    magnitudes are common in a block.
    """
    bits = normal(rows, cols, seed).view(np.uint32)
    bits += 0x7FFF + ((bits >> 16) & 1)
    bits &= 0xFFFF0000
    return bits.view(np.float32)


def integers(rows: int, cols: int, seed: int = 3) -> Matrix:
    """Integers 0 … 7: every block is full of exact ties."""
    return np.random.default_rng(seed).integers(0, 8, (rows, cols)).astype(np.float32)


def zeros(rows: int, cols: int, seed: int = 4) -> Matrix:
    """N(0, 1) with 60 % zeros in random places: an already pruned matrix. Most blocks must keep
    some zeros.
    """
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((rows, cols), dtype=np.float32)
    matrix[rng.random((rows, cols), dtype=np.float32) < 0.6] = 0.0
    return matrix


def int4(rows: int, cols: int, seed: int = 5) -> Matrix:
    """N(0, 1) quantised to 4 bits, symmetric, one scale a row: at most 8 magnitudes in a row, the
    scales differ.
    """
    return _quantised(normal(rows, cols, seed), 7)


def int8(rows: int, cols: int, seed: int = 6) -> Matrix:
    """N(0, 1) quantised to 8 bits, symmetric, one scale a row."""
    return _quantised(normal(rows, cols, seed), 127)


def equal(rows: int, cols: int, seed: int = 7) -> Matrix:
    """One value everywhere: all masks are optimal. The seed is not used."""
    return np.ones((rows, cols), np.float32)


def column_scaled(rows: int, cols: int, seed: int = 8) -> Matrix:
    """N(0, 1) times a log-normal scale (σ = 1) a column, as in activation-aware scores such as
    Wanda's |W| · ‖x‖.
    """
    rng = np.random.default_rng(seed)
    scale = rng.lognormal(0.0, 1.0, cols).astype(np.float32)
    return rng.standard_normal((rows, cols), dtype=np.float32) * scale


def rank_one(rows: int, cols: int, seed: int = 9) -> Matrix:
    """|x| |y|ᵀ with normal x and y: rows agree on the order of columns, so all want the same
    ones.
    """
    rng = np.random.default_rng(seed)
    return np.abs(
        np.outer(
            rng.standard_normal(rows, dtype=np.float32), rng.standard_normal(cols, dtype=np.float32)
        )
    )


def student_t(rows: int, cols: int, seed: int = 10) -> Matrix:
    """Student's t with 2 degrees of freedom: infinite variance, a few huge entries."""
    return np.random.default_rng(seed).standard_t(2.0, (rows, cols)).astype(np.float32)


def _quantised(matrix: Matrix, levels: int) -> Matrix:
    scale = np.abs(matrix).max(axis=1, keepdims=True) / np.float32(levels)
    return np.rint(matrix / scale) * scale


FAMILIES: dict[str, Callable[[int, int], Matrix]] = {
    "normal": normal,
    "bf16": bf16,
    "int8": int8,
    "int4": int4,
    "integers": integers,
    "zeros": zeros,
    "equal": equal,
    "column_scaled": column_scaled,
    "rank_one": rank_one,
    "student_t": student_t,
}
