"""Pruning of a layer by its inputs, written out in loops: activation norms, least squares a row,
the brain surgeon a weight.
"""

from __future__ import annotations

import math

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


def matching_n(zeros: float, m: int, confidence: float) -> int:
    """The least n for which a group of m with independent zeros has at most n nonzeros with more
    than this probability.
    """
    for n in range(1, m):
        within = sum(math.comb(m, k) * (1 - zeros) ** k * zeros ** (m - k) for k in range(n + 1))
        if within > confidence:
            return n
    return m
