"""Scikit-learn's 1797 handwritten digits, 8 × 8, as examples to classify."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from examples.study.data import Data, Part

TEST, VALIDATION = 597, 300
SPLIT_SEED = 0


@cache
def digits() -> Data:
    """Images (N, 1, 8, 8) in [0, 1] and labels (N,): 900 to train on, 300 to choose settings by,
    597 to test on.

    The split is stratified and the same for every task and seed.
    """
    images, labels = load_digits(return_X_y=True)
    rest, test = train_test_split(
        np.arange(len(labels)), test_size=TEST, stratify=labels, random_state=SPLIT_SEED
    )
    train, validation = train_test_split(
        rest, test_size=VALIDATION, stratify=labels[rest], random_state=SPLIT_SEED
    )

    def part(indices: np.ndarray) -> tuple[Tensor, Tensor]:
        pictures = torch.tensor(images[indices], dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
        return pictures, torch.tensor(labels[indices], dtype=torch.int64)

    inputs, targets = part(train)

    def sample(size: int, order: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(targets), (size,), generator=order)
        return inputs[chosen], targets[chosen]

    parts: dict[Part, list[tuple[Tensor, Tensor]]] = {
        "validation": [part(validation)],
        "test": [part(test)],
    }
    sizes = f"{len(train)} to train on, {len(validation)} for settings, {len(test)} to test on"
    about = f"Scikit-learn's handwritten digits, stratified: {sizes}"
    return Data(sample, parts, about)
