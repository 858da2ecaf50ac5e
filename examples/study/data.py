"""What a task trains on and is measured on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

#: Settings are chosen on "validation"; what is reported comes from "test".
Part = Literal["validation", "test"]


@dataclass(frozen=True)
class Data:
    """sample(size, order): inputs and targets of a training step, drawn by the generator `order`.
    parts: batches to measure on.
    """

    sample: Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
    parts: dict[Part, list[tuple[Tensor, Tensor]]]
    about: str
