"""numba as this library uses it: kernels without the GIL, cached on disk, compiled per pattern."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit, types

#: Every kernel takes this as its last argument, a literal. numba's cache only watches the file that
#: defines the kernel, and a kernel is made of parts from several: with their hash in its signature
#: a stale one is never loaded.
BUILD = int(
    hashlib.sha256(
        b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    ).hexdigest()[:15],
    16,
)

#: Storage of scores by kind: the type kernels read, and the integer of the width they are computed
#: in.
STORAGE = {
    "f4": (types.float32, types.int32),
    "f8": (types.float64, types.int64),
    "f16": (types.uint16, types.int32),
    "bf16": (types.uint16, types.int32),
}


def kernel(function: Callable[..., Any]) -> Any:
    """Compile on first use and cache beside the source, or in the user's cache folder where that
    cannot be written.

    Where neither can be written the kernel is compiled again in every process.
    """
    try:
        return njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:
        return njit(nogil=True, error_model="numpy")(function)


#: For the parts of a kernel that live in functions of their own: compiled with the kernel that
#: calls them.
part = njit(nogil=True, error_model="numpy")


def structure(
    fields: dict[str, tuple[str, tuple[int, ...]]], same: dict[str, tuple[str, str]] | None = None
) -> np.dtype[np.void]:
    """Return the layout of a record of arrays: name to element and shape.

    A kernel's parts are given a record as one pointer. Of a tuple of arrays numba hands on each
    one, and counts its references up and down at every call.

    same : further names for the memory of a field, with the
    element to read it as.
    """
    plain = np.dtype([(name, *field) for name, field in fields.items()], align=True)
    offsets = {name: field[1] for name, field in (plain.fields or {}).items()}
    formats = {name: np.dtype(field) for name, field in fields.items()}
    for name, (other, element) in (same or {}).items():
        offsets[name], formats[name] = offsets[other], np.dtype((element, fields[other][1]))
    return np.dtype(
        {
            "names": list(offsets),
            "formats": list(formats.values()),
            "offsets": list(offsets.values()),
            "itemsize": plain.itemsize,
            "aligned": True,
        }
    )


def array(element: Any, dimensions: int, layout: str = "C") -> Any:
    """The numba type of an array."""
    return types.Array(element, dimensions, layout)


def specialise(dispatcher: Any, *arguments: Any) -> Callable[..., Any]:
    """Return the entry point of a kernel for these argument types, compiled or from the cache; ints
    and strings are literals.

    Calling it skips numba's dispatch, which has no notion of literal arguments.
    """
    signature = [types.literal(a) if isinstance(a, (int, str)) else a for a in (*arguments, BUILD)]
    compiled: Callable[..., Any] = dispatcher.compile(tuple(signature))
    return compiled
