"""Pruning of a layer by its inputs, written out in loops: activation norms, least squares a row,
the brain surgeon a weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def convolution_inputs(
    x: Array,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Array:
    """What each entry of a filter meets: (output positions of all images, channels, kernel rows,
    kernel columns), zero-padded.
    """
    images, channels, height, width = x.shape
    rows = (height + 2 * padding[0] - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
    cols = (width + 2 * padding[1] - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
    found = np.zeros((images * rows * cols, channels, *kernel))
    for image in range(images):
        for row in range(rows):
            for col in range(cols):
                for a in range(kernel[0]):
                    for b in range(kernel[1]):
                        i = row * stride[0] + a * dilation[0] - padding[0]
                        j = col * stride[1] + b * dilation[1] - padding[1]
                        if 0 <= i < height and 0 <= j < width:
                            found[(image * rows + row) * cols + col, :, a, b] = x[image, :, i, j]
    return found


def activation_scores(weight: Array, inputs: Array) -> Array:
    """|w| times the norm of what it meets, entry by entry; weight (rows, cols), inputs (samples,
    cols).
    """
    scores = np.zeros(weight.shape)
    for i in range(weight.shape[0]):
        for j in range(weight.shape[1]):
            scores[i, j] = abs(weight[i, j]) * math.sqrt(sum(float(x) ** 2 for x in inputs[:, j]))
    return scores


def least_squares_row(
    inputs: Array, wanted: Array, start: Array, mask: NDArray[np.bool_], delta: float
) -> Array:
    """argmin over v on the mask of ‖wanted − inputs v‖² + delta ‖v − start∘mask‖², for one row, by
    stacking the second term.
    """
    kept = np.flatnonzero(mask)
    above = np.vstack([inputs[:, kept], math.sqrt(delta) * np.eye(len(kept))])
    right = np.concatenate([wanted, math.sqrt(delta) * start[kept]])
    row = np.zeros(len(start))
    row[kept] = np.linalg.lstsq(above, right, rcond=None)[0]
    return row


def held_out_rows(sizes: Sequence[int]) -> NDArray[np.bool_]:
    """Which rows of items of so many samples, of one row each, are held out: those of every tenth
    item, or the last tenth of each of fewer than ten.
    """
    if len(sizes) >= 10:
        return np.concatenate([np.full(size, at % 10 == 9) for at, size in enumerate(sizes)])
    return np.concatenate([np.arange(size) >= size - size // 10 for size in sizes])


@dataclass(frozen=True, kw_only=True)
class Adjusted:
    """A linear layer with its weight on a mask; errors are relative to the outputs' squares."""

    weight: Array
    bias: Array | None
    method: str
    damping: float
    before: float
    after: float
    held_out_before: float | None
    held_out_after: float | None


def adjusted(
    weight: Array,
    bias: Array | None,
    mask: NDArray[np.bool_],
    inputs: Array,
    dense: Array,
    held_out: NDArray[np.bool_],
    share: float,
) -> Adjusted:
    """The best of least squares on a mask and of masking, each with a bias that fits it, and of
    masking alone, by the error on the rows that are held out; weight (rows, cols), inputs and the
    dense model's (samples, cols).

    Damping is ten times as much, up to four times, as long as the error on rows that are held out
    is above 1.2 times that on the others and falls.
    """
    fitted = ~held_out
    judges = held_out if held_out.any() else fitted
    centre, target = np.zeros(inputs.shape[1]), np.zeros(inputs.shape[1])
    if bias is not None:
        centre, target = inputs[fitted].mean(0), dense[fitted].mean(0)
    x, y, outputs = inputs - centre, (dense - target) @ weight.T, dense @ weight.T

    def error(new: Array, rows: NDArray[np.bool_]) -> float:
        """Where the bias takes up the means, if there is one."""
        return float(((y - x @ new.T)[rows] ** 2).sum())

    def bare(new: Array, rows: NDArray[np.bool_]) -> float:
        return float(((outputs - inputs @ new.T)[rows] ** 2).sum())

    def solved(damping: float) -> tuple[Array, float]:
        delta = damping * float((x[fitted] ** 2).sum()) / weight.shape[1]
        rows = [
            least_squares_row(x[fitted], wanted, row, kept, delta)
            for wanted, row, kept in zip(y[fitted].T, weight, mask, strict=True)
        ]
        return np.array(rows), delta

    new, delta = solved(share)
    for _ in range(4 if held_out.any() else 0):
        far, near = (error(new, rows) / float((y[rows] ** 2).sum()) for rows in (judges, fitted))
        if far <= 1.2 * near:
            break
        share *= 10
        other, more = solved(share)
        if not error(other, judges) < error(new, judges):
            break
        new, delta = other, more
    plain = weight * mask
    ways = [("least squares", new, error), ("masking", plain, bare)]
    if bias is not None:
        ways.insert(1, ("masking, bias fitted", plain, error))

    def relative(way: tuple[str, Array, Callable[..., float]], rows: NDArray[np.bool_]) -> float:
        return way[2](way[1], rows) / float((outputs[rows] ** 2).sum())

    best = min(ways, key=lambda way: relative(way, judges))
    of_masking, of_best = (
        [relative(way, rows) for rows in (fitted, judges)] for way in (ways[-1], best)
    )
    if bias is not None and best is not ways[-1]:
        bias = bias + weight @ target - best[1] @ centre
    return Adjusted(
        weight=best[1],
        bias=bias,
        method=best[0],
        damping=delta,
        before=of_masking[0],
        after=of_best[0],
        held_out_before=of_masking[1] if held_out.any() else None,
        held_out_after=of_best[1] if held_out.any() else None,
    )


def surgeon_row(target: Array, hessian: Array, n: int, m: int) -> NDArray[np.bool_]:
    """The mask of one row: groups from left to right, columns from left to right, the Hessian's
    inverse made anew for each column.

    A group keeps the n weights with the largest w² / [H⁻¹]_jj, with H of the columns from j on; a
    dropped weight moves the later ones by −w_j / [H⁻¹]_jj · H⁻¹_j.
    """
    weight, mask = target.copy(), np.zeros(len(target), dtype=bool)
    for first in range(0, len(target), m):
        saliency = []
        for j in range(first, first + m):
            inverse = np.linalg.inv(hessian[j:, j:])
            saliency.append(weight[j] ** 2 / inverse[0, 0])
        for j in np.argsort(-np.array(saliency), kind="stable")[:n]:
            mask[first + j] = True
        for j in range(first, first + m):
            if not mask[j]:
                inverse = np.linalg.inv(hessian[j:, j:])
                weight[j:] -= weight[j] / inverse[0, 0] * inverse[0]
    return mask


def surgeon_weights(target: Array, hessian: Array, mask: NDArray[np.bool_]) -> Array:
    """One row, when what its mask drops is dropped from left to right, and each moves the columns
    behind it as in `surgeon_row`.
    """
    weight = target.copy()
    for j in np.flatnonzero(~mask):
        inverse = np.linalg.inv(hessian[j:, j:])
        weight[j:] -= weight[j] / inverse[0, 0] * inverse[0]
        weight[j] = 0.0
    return weight


def matching_n(zeros: float, m: int, confidence: float) -> int:
    """The least n for which a group of m with independent zeros has at most n nonzeros with more
    than this probability.
    """
    for n in range(1, m):
        within = sum(math.comb(m, k) * (1 - zeros) ** k * zeros ** (m - k) for k in range(n + 1))
        if within > confidence:
            return n
    return m
