"""User input, checked once: after this nothing downstream raises about it."""

from __future__ import annotations

import operator
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nmsolve.elements import as_stored, kind_of, tolerance, widen
from nmsolve.errors import InputError
from nmsolve.pattern import Pattern


@dataclass(frozen=True, slots=True)
class Scores:
    """The array that is maximised.

    Attributes
    ----------
    array : (..., rows, cols) array
        As `elements.as_stored` views it, so that `elements.widen` gives its numbers.
    kind : str
        How its elements are stored, as `elements.kind_of` tells it.
    absolute : bool
        Whether signs are dropped.
    name : {"weights", "scores"}
        The argument of `solve` that it was.
    tolerance : float
        The relative gap up to which a mask counts as optimal.
    """

    array: NDArray[Any]
    kind: str
    absolute: bool
    name: str
    tolerance: float


def to_array(values: ArrayLike, name: str, purpose: str) -> NDArray[Any]:
    """Return an array-like as an array; InputError if NumPy cannot read it or if it is masked."""
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise InputError(
            f"{name} is a masked array of shape {values.shape}, and {purpose} has no meaning for "
            f"missing entries; fill them, for example with {name}.filled(0)"
        )
    try:
        return np.asarray(values)
    except Exception as error:
        tensor = type(values).__module__.partition(".")[0] == "torch"
        remedy = "; it is a tensor: nmsolve.torch takes those, on any device" if tensor else ""
        raise InputError(f"{name} for {purpose} is not an array: {error}{remedy}") from error


def check_flag(value: object, name: str) -> None:
    """Raise InputError unless the value is True or False."""
    if not isinstance(value, bool):
        raise InputError(f"{name} must be True or False, got {value!r}")


def _array(values: ArrayLike, name: str, pattern: Pattern) -> tuple[NDArray[Any], str]:
    """Return an array-like as it is stored, and its kind; InputError if it cannot be solved."""
    array = to_array(values, name, f"pattern {pattern}")
    if array.dtype == object:
        raise InputError(
            f"{name} has dtype object and shape {array.shape}: pattern {pattern} needs numbers in "
            f"rows of equal length; convert with np.asarray({name}, dtype=np.float32)"
        )
    kind = kind_of(array.dtype)
    if kind is None and array.dtype.kind == "V":
        raise InputError(
            f"{name} has dtype {array.dtype}, shape {array.shape}: pattern {pattern} needs to know "
            "what the bytes are; what lost its name (np.load does that) is viewed as what it was: "
            f"{name}.view(nmsolve.bfloat16), or a float8 or int4 as "
            f"{name}.view(ml_dtypes.float8_e4m3fn) and the like"
        )
    if kind is None:
        raise InputError(
            f"{name} has dtype {array.dtype}, shape {array.shape}: pattern {pattern} takes "
            "float16, bfloat16, float32, float64, the float8, float6, float4 and int4 of "
            f"ml_dtypes, and integers; convert with {name}.astype(np.float32)"
        )
    if array.ndim < 2:
        raise InputError(
            f"{name} has shape {array.shape}: pattern {pattern} needs (..., rows, cols) with "
            f"groups along the last axis; for one row pass {name}[None, :]"
        )
    if array.size == 0:
        raise InputError(
            f"{name} has shape {array.shape}, without any element: pattern {pattern} has nothing "
            "to choose from"
        )
    return as_stored(array, kind), kind


def read_scores(weights: ArrayLike, scores: ArrayLike | None, pattern: Pattern) -> Scores:
    """Return the scores to maximise: |weights|, or `scores` as they are (signs kept).

    Raises
    ------
    InputError
        For a dtype, shape or size that cannot be worked with. Finiteness is checked by the solvers
        as they read.
    """
    array, kind = _array(weights, "weights", pattern)
    if scores is None:
        return Scores(array, kind, True, "weights", tolerance(kind))
    given, given_kind = _array(scores, "scores", pattern)
    if given.shape != array.shape:
        raise InputError(
            f"scores have shape {given.shape}, weights {array.shape}: pattern {pattern} needs one "
            "score a weight"
        )
    return Scores(given, given_kind, False, "scores", tolerance(given_kind))


def first_non_finite(scores: Scores) -> tuple[int, ...] | None:
    """Return the index of the first NaN or infinity in C order, or None."""
    array = scores.array
    step = max(1, 2**20 // max(1, array[0].size))
    for start in range(0, array.shape[0], step):
        part = array[start : start + step]
        bad = (
            (part & 0x7F80) == 0x7F80
            if scores.kind == "bf16"
            else ~np.isfinite(widen(part, scores.kind))
        )
        if bad.any():
            index = np.unravel_index(int(np.argmax(bad)), part.shape)
            return (start + int(index[0]), *(int(i) for i in index[1:]))
    return None


def non_finite_error(scores: Scores, pattern: Pattern, *, too_large: bool = False) -> InputError:
    """Return the error for scores that are not all finite, naming the first that is not; for those
    that are, whose sum was not, if `too_large`.
    """
    index = first_non_finite(scores)
    if index is not None:
        return non_finite_message(
            scores.name, index, value_at(scores, index), scores.array.shape, pattern
        )
    if too_large:
        return too_large_error(scores.name, scores.array.shape)
    return InputError(
        f"{scores.name} changed while pattern {pattern} was being solved: a value was not finite"
    )


def too_large_error(name: str, shape: tuple[int, ...]) -> InputError:
    """Return the error for finite scores whose sum is not."""
    return InputError(
        f"the {name} of shape {shape} are too large for a float64 sum; scale them down"
    )


def value_at(scores: Scores, index: tuple[int, ...]) -> float:
    """Return one score, as a number."""
    return float(widen(np.asarray([scores.array[index]], scores.array.dtype), scores.kind)[0])


def non_finite_message(
    name: str, index: tuple[int, ...], value: float, shape: tuple[int, ...], pattern: Pattern
) -> InputError:
    """Return the error for a score that is NaN or infinite, given where the first is."""
    place = ", ".join(map(str, index))
    return InputError(
        f"{name}[{place}] is {value}: pattern {pattern} on shape {shape} needs finite values; "
        f"find what produced it, or replace it with nan_to_num({name})"
    )


def thread_count(threads: int | None) -> int:
    """Return how many threads to use: as asked, or every processor this process may run on."""
    if threads is None:
        return (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
    try:
        count = operator.index(threads)
    except (TypeError, ValueError):
        count = 0
    if count < 1 or isinstance(threads, bool):
        raise InputError(
            f"threads must be a positive integer or None (all processors), got {threads!r}"
        )
    return count
