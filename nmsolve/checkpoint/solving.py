"""A tensor's mask: solved, applied, and reported."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsolve.api import solve
from nmsolve.checkpoint.planning import PlannedTensor, TensorPlan
from nmsolve.checkpoint.summary import TensorReport
from nmsolve.disk import as_text
from nmsolve.elements import as_stored, kind_of, widen
from nmsolve.errors import InputError
from nmsolve.geometry import as_matrices, from_matrices
from nmsolve.result import MaskResult, Status
from nmsolve.totals import exact_sum
from nmsolve.validate import first_non_finite, non_finite_message, read_scores, value_at

#: Elements that |W| is summed over at a time: what stays in a processor's cache.
_PART = 2**15


def solve_tensor(
    array: NDArray[Any], plan: PlannedTensor, method: str, threads: int | None
) -> tuple[NDArray[np.bool_], MaskResult]:
    """Return the mask of a tensor, in its own shape, and the result it came with.

    Raises
    ------
    InputError
        For NaN and infinity, with the index in the tensor.
    """
    try:
        result = solve(
            as_matrices(array, plan.axis),
            plan.pattern,
            method=method,
            threads=threads,
            padding=plan.padding,
        )
    except InputError as error:
        scores = read_scores(array, None, plan.pattern)
        index = first_non_finite(scores)
        if index is None:
            raise
        raise non_finite_message(
            "weights", index, value_at(scores, index), array.shape, plan.pattern
        ) from error
    return np.ascontiguousarray(from_matrices(result.mask, plan.axis)), result


def apply(array: NDArray[Any], mask: NDArray[np.bool_]) -> None:
    """Zero, in place, what a mask drops: all bits, so that no −0 is left and any dtype will do."""
    bits = array.view(f"u{array.dtype.itemsize}")
    np.multiply(bits, mask.view(np.uint8), out=bits)


def total(array: NDArray[Any]) -> float:
    """Return Σ|W| in float64; parts are of fixed size, so that it is the same wherever it is
    computed.
    """
    flat = np.ravel(array, order="K")
    sums = [_sum(flat[start : start + _PART]) for start in range(0, flat.size, _PART)]
    summed = exact_sum(sums)
    if not math.isfinite(summed):
        raise InputError(
            f"weights of shape {array.shape} are too large for a float64 sum; scale them down"
        )
    return summed


def _sum(part: NDArray[Any]) -> float:
    kind = kind_of(part.dtype)
    assert kind is not None
    wide = widen(as_stored(part, kind), kind)
    if wide.dtype.kind == "f":
        return float(np.add.reduce(np.abs(wide), dtype=np.float64))
    return float(np.add.reduce(np.abs(wide.astype(np.float64))))


def report_of(plan: TensorPlan) -> TensorReport:
    """Return the report of a tensor that is kept dense, or that is yet to be solved."""
    return TensorReport(
        file=as_text(plan.file),
        name=plan.tensor.name,
        dtype=plan.tensor.dtype,
        shape=plan.tensor.shape,
        pattern=plan.pattern,
        axis=plan.axis,
        padding=plan.padding,
        reason=plan.reason,
    )


def is_outcome(entry: Mapping[str, Any], plan: TensorPlan) -> bool:
    """Return whether a journal's entry can be the outcome of a tensor."""
    kinds: dict[str, Any] = {"seconds": float, "digest": str}
    if plan.pattern is not None:
        numbers = dict.fromkeys(("objective", "total"), float) | dict.fromkeys(
            ("bound", "gap"), float | None
        )
        kinds |= {"status": str, "kept": int, "mask_digest": str, **numbers}
    if set(entry) != set(kinds) or not all(
        isinstance(entry[key], kind) for key, kind in kinds.items()
    ):
        return False
    return plan.pattern is None or entry["status"] in {status.value for status in Status}


def outcome(
    result: MaskResult,
    mask: NDArray[np.bool_],
    weight_sum: float,
    digests: tuple[str, str],
    started: float,
) -> dict[str, Any]:
    """Return what a journal keeps of a solved tensor: the fields of its `TensorReport` that were
    not known before.

    digests : of the pruned weights, and of the mask.
    """
    return {
        "status": result.status.value,
        "objective": result.objective,
        "bound": result.bound,
        "gap": result.gap,
        "total": weight_sum,
        "kept": int(np.count_nonzero(mask)),
        "digest": digests[0],
        "mask_digest": digests[1],
        "seconds": time.perf_counter() - started,
    }
