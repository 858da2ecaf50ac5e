"""Erdős–Rényi-kernel (ERK) densities of layers, from the shapes of their weights alone."""

from __future__ import annotations

import math
from collections.abc import Sequence


def erk_densities(shapes: Sequence[tuple[int, ...]], density: float) -> list[float]:
    r"""Return the share of each weight to keep, so that all of them together keep `density`.

    .. math:: d_i = \min\left(1, \varepsilon \frac{\sum_k s_{ik}}{\prod_k s_{ik}}\right), \quad
              \sum_i d_i \prod_k s_{ik} = d \sum_i \prod_k s_{ik}

    Parameters
    ----------
    shapes : sequence of tuples
        s, of each weight: (out, in), or (out, in, kernel …).
    density : float
        d, 0 < d ≤ 1.

    Returns
    -------
    list of float
        One for each weight, in (0, 1].

    Notes
    -----
    A layer for which ε asks for more than there is stays dense, and ε is solved again for the
    others. That only raises ε, so a layer once dense stays dense, and the order in which they are
    found does not matter.

    References
    ----------
    Evci, Gale, Menick, Castro, Elsen: Rigging the Lottery, ICML 2020, section 3 (1).

    Examples
    --------
    >>> # ε = 68 / 40: the smaller is kept to 1.7 · 8 / 16, the larger to 1.7 · 32 / 256.
    >>> erk_densities([(4, 4), (16, 16)], 0.25)
    [0.85, 0.2125]
    """
    sizes = [math.prod(shape) for shape in shapes]
    raw = [sum(shape) / size for shape, size in zip(shapes, sizes, strict=True)]
    densities = [1.0] * len(shapes)
    free = list(range(len(shapes)))
    left = density * sum(sizes)
    while free:
        epsilon = left / sum(sum(shapes[i]) for i in free)
        full = [i for i in free if epsilon * raw[i] > 1]
        if not full:
            for i in free:
                densities[i] = epsilon * raw[i]
            break
        left -= sum(sizes[i] for i in full)
        free = [i for i in free if i not in full]
    return densities
