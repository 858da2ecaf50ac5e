"""The values of stored elements: NumPy's own, bfloat16, and the floats and integers of a byte or
less that ml_dtypes names.

Those are told by their names, so that ml_dtypes is not imported. A byte has 256 values, and float32
holds each of them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: bfloat16 without a package: view the bits (uint16) as this type. Arrays of ml_dtypes.bfloat16 are
#: taken too.
bfloat16 = np.dtype([("bfloat16", np.uint16)])

#: Bits of exponent and of fraction, the exponent's bias, and which codes are no numbers: as in
#: "ieee" (the largest exponent: infinity and NaN), "fn" (all ones: NaN), "fnuz" (what would be −0:
#: NaN), "finite" (none).
_FORMATS = {
    "float8_e3m4": (3, 4, 3, "ieee"),
    "float8_e4m3": (4, 3, 7, "ieee"),
    "float8_e5m2": (5, 2, 15, "ieee"),
    "float8_e4m3fn": (4, 3, 7, "fn"),
    "float8_e4m3fnuz": (4, 3, 8, "fnuz"),
    "float8_e4m3b11fnuz": (4, 3, 11, "fnuz"),
    "float8_e5m2fnuz": (5, 2, 16, "fnuz"),
    "float6_e2m3fn": (2, 3, 1, "finite"),
    "float6_e3m2fn": (3, 2, 3, "finite"),
    "float4_e2m1fn": (2, 1, 1, "finite"),
}
#: Powers of two: an exponent alone, without sign and zero.
POWERS = "float8_e8m0fnu"
#: Bits, and whether the first is a sign. Each element has a byte of its own.
_INTEGERS = {
    "int1": (1, True),
    "uint1": (1, False),
    "int2": (2, True),
    "uint2": (2, False),
    "int4": (4, True),
    "uint4": (4, False),
}
#: Told at once: putting a type's name together takes as long as solving a thousand weights.
_PLAIN = {np.dtype(f"f{size}"): kind for size, kind in ((2, "f16"), (4, "f4"), (8, "f8"))}
SMALL_FLOATS = frozenset({*_FORMATS, POWERS})
_SMALL = SMALL_FLOATS | frozenset(_INTEGERS)


def as_type(name: str) -> np.dtype[Any]:
    """Return a type that says what bytes are: view them (uint8) as it. Arrays of ml_dtypes' type of
    this name are taken too.
    """
    assert name in _SMALL
    return np.dtype([(name, np.uint8)])


def kind_of(dtype: np.dtype[Any]) -> str | None:
    """Return how elements are stored; None if they are no numbers, or some that are not solved.

    "f16", "f4", "f8" and "bf16"; "i4" and "i8" for integers whose values float32 and float64 hold
    exactly (64-bit integers: to 53 bits); the names of `as_type`.
    """
    plain = _PLAIN.get(dtype)
    if plain is not None:
        return plain
    name = dtype.name
    if dtype.names is not None:
        alone = (
            len(dtype.names) == 1 and dtype[0].kind == "u" and dtype[0].itemsize == dtype.itemsize
        )
        name = dtype.names[0] if alone else ""
    if name == "bfloat16" and dtype.itemsize == 2:
        return "bf16"
    if name in _SMALL and dtype.itemsize == 1:
        return name
    if dtype.kind == "f":
        return {2: "f16", 4: "f4", 8: "f8"}.get(dtype.itemsize)
    if dtype.kind in "iu":
        return "i4" if dtype.itemsize <= 2 else "i8"
    return None


def is_float(kind: str | None) -> bool:
    """Return whether elements of a kind are floating-point numbers."""
    return kind in ("f4", "f8", "f16", "bf16") or kind in SMALL_FLOATS


def tolerance(kind: str) -> float:
    """Return the relative gap up to which a mask of scores of a kind counts as optimal."""
    return 1e-6 if kind in ("f4", "f16", "bf16") or kind in SMALL_FLOATS else 1e-12


def as_stored(array: NDArray[Any], kind: str) -> NDArray[Any]:
    """Return a view of an array whose elements NumPy computes with: their bits, where it does not
    know their values.
    """
    if kind == "bf16":
        return array.view(np.dtype(np.uint16).newbyteorder("=" if array.dtype.isnative else "S"))
    return array.view(np.uint8) if kind in _SMALL else array


def widen(stored: NDArray[Any], kind: str) -> NDArray[Any]:
    """Return elements, as `as_stored` gives them, as numbers of NumPy: float32 for bfloat16 and for
    those of a byte or less.
    """
    if kind == "bf16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return values(kind)[stored] if kind in _SMALL else stored


def nonzero(array: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where elements of any kind are not zero; −0 is, NaN is not. Works on a few thousand
    elements at a time.
    """
    kind = kind_of(array.dtype)
    found: NDArray[np.bool_]
    if kind == "bf16":
        found = np.bitwise_and(as_stored(array, kind), 0x7FFF) != 0
        return found
    if kind not in _SMALL:
        found = array != 0
        return found
    counts, found = values(kind) != 0, np.empty(array.shape, np.bool_)
    operands = (as_stored(array, kind), found)
    with np.nditer(
        operands, ("external_loop", "buffered", "zerosize_ok"), [["readonly"], ["writeonly"]]
    ) as parts:
        for codes, out in parts:
            out[...] = counts[codes]
    return found


@cache
def values(kind: str) -> NDArray[np.float32]:
    """Return the value of each of the 256 codes of a byte."""
    code = np.arange(256)
    found: NDArray[np.float32]
    if kind in _INTEGERS:
        bits, signed = _INTEGERS[kind]
        worth = code & (2**bits - 1)
        found = (worth - ((worth >> (bits - 1)) << bits if signed else 0)).astype(np.float32)
    elif kind == POWERS:
        found = np.where(code == 255, np.nan, np.ldexp(1.0, code - 127)).astype(np.float32)
    else:
        found = _floats(code, *_FORMATS[kind])
    found.flags.writeable = False
    return found


def _floats(
    code: NDArray[Any], exponent_bits: int, fraction_bits: int, bias: int, special: str
) -> NDArray[np.float32]:
    """Return (−1)^sign × 1.fraction × 2^(exponent − bias), and 0.fraction × 2^(1 − bias) where the
    exponent is 0.
    """
    width = exponent_bits + fraction_bits
    magnitude, negative = code & (2**width - 1), code >> width != 0
    exponent, fraction = magnitude >> fraction_bits, magnitude & (2**fraction_bits - 1)
    whole = np.where(exponent == 0, fraction, fraction + 2**fraction_bits)
    worth = np.ldexp(whole.astype(np.float64), np.maximum(exponent, 1) - bias - fraction_bits)
    if special == "ieee":
        worth[exponent == 2**exponent_bits - 1] = np.nan
        worth[(exponent == 2**exponent_bits - 1) & (fraction == 0)] = np.inf
    elif special == "fn":
        worth[magnitude == 2**width - 1] = np.nan
    elif special == "fnuz":
        worth[negative & (magnitude == 0)] = np.nan
    found: NDArray[np.float32] = np.where(negative, -worth, worth).astype(np.float32)
    return found
