"""What is saved of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from examples.study.measure import measure
from examples.study.rounding import rounded
from examples.study.tasks import Task


@dataclass(frozen=True)
class Measured:
    """A model, measured.

    accuracy, loss : of the test part. seconds : of what made it from the dense one. error : the
    squared error of its layers' outputs on the calibration, relative, summed over layers; None
    where it was not computed. params, flops : kept weights and multiply-adds of the planned layers,
    as shares of all. patterns : by layer, where they differ. steps : iterations of a search.
    """

    accuracy: float
    loss: float
    seconds: float = 0.0
    error: float | None = None
    params: float | None = None
    flops: float | None = None
    patterns: dict[str, str] | None = None
    steps: int | None = None

    @classmethod
    def of(cls, task: Task, model: nn.Module, **known: Any) -> Measured:
        """On the test part."""
        return cls(**measure(model, task.part("test")), **known)

    def as_json(self) -> dict[str, Any]:
        """As it is kept on disk."""
        return rounded(self)

    @property
    def summary(self) -> str:
        """For the terminal."""
        return f"{self.accuracy:.4f} {self.loss:.4f}"
