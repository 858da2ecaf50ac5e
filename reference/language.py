"""Perplexity written out token by token: windows as sets of positions, softmax over a list."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

#: From a list of ids, the logits (positions, vocabulary) of the tokens that come next.
Model = Callable[[list[int]], NDArray[np.float64]]


def perplexity(
    model: Model, texts: Sequence[Sequence[int]], window: int, stride: int
) -> tuple[float, int]:
    """exp of the mean of −log p over the tokens that are predicted, and their number."""
    losses = []
    for text in texts:
        seen: set[int] = set()
        first = 0
        while len(seen) < len(text):
            positions = range(first, min(first + window, len(text)))
            logits = model([text[position] for position in positions])
            for place, position in enumerate(positions):
                if place > 0 and position not in seen:
                    losses.append(-_log_probability(logits[place - 1], text[position]))
            seen.update(positions)
            first += stride
    return math.exp(math.fsum(losses) / len(losses)), len(losses)


def _log_probability(logits: NDArray[np.float64], token: int) -> float:
    greatest = max(float(x) for x in logits)
    total = math.fsum(math.exp(float(x) - greatest) for x in logits)
    return float(logits[token]) - greatest - math.log(total)
