"""The tasks: a model, its data, and how it is trained. Settings were chosen on the validation
parts, for the dense model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from examples.study.cnn import cnn
from examples.study.data import Data, Part
from examples.study.digits import digits
from examples.study.gpt import GPT
from examples.study.text import text
from examples.study.vit import ViT


@dataclass(frozen=True)
class Task:
    """What is trained, on what, by which rule.

    optimizer : "sgd" has momentum 0.9, "adamw" torch's betas; both with warm-up over the first
    twentieth of the steps and a cosine to 0. decay : λ of SR-STE. The paper's 2e-4 is for 600,000
    steps; over these few it would do nothing, so λ is a task's own. dense : modules (globs of
    paths) that stay dense under every pattern, for patterns to be compared on the same weights.
    measure : what is reported of the test part. examples : how many are measured on; all unless
    given.
    """

    name: str
    title: str
    model: Callable[[], nn.Module]
    data: Callable[[], Data]
    steps: int
    batch: int
    optimizer: Literal["sgd", "adamw"]
    rate: float
    weight_decay: float
    decay: float
    dense: tuple[str, ...]
    measure: Literal["accuracy", "loss"]
    examples: int | None = None

    def make_optimizer(self, parameters: Iterable[nn.Parameter], rate: float = 1.0) -> Optimizer:
        """The optimizer, at the peak of its learning rate, times `rate`."""
        if self.optimizer == "sgd":
            return SGD(parameters, rate * self.rate, momentum=0.9, weight_decay=self.weight_decay)
        return AdamW(parameters, rate * self.rate, weight_decay=self.weight_decay)

    def settings(self) -> dict[str, Any]:
        """What results depend on, as saved with them."""
        return {
            "data": self.data().about,
            "parameters": sum(parameter.numel() for parameter in self.model().parameters()),
            "steps": self.steps,
            "batch": self.batch,
            "optimizer": self.optimizer,
            "rate": self.rate,
            "weight_decay": self.weight_decay,
            "decay": self.decay,
            "dense": list(self.dense),
        }

    def shortened(self, steps: int) -> Task:
        """The same with fewer steps, measured on less, to see that it runs."""
        return replace(self, steps=steps, batch=8, examples=16)

    def part(self, name: Part) -> list[tuple[Tensor, Tensor]]:
        """Batches to measure on."""
        batches = self.data().parts[name]
        return (
            batches
            if self.examples is None
            else [
                (inputs[: self.examples], targets[: self.examples])
                for inputs, targets in batches[:1]
            ]
        )


TASKS = {
    task.name: task
    for task in (
        Task(
            "cnn",
            "Digits, CNN",
            cnn,
            digits,
            600,
            64,
            "sgd",
            0.1,
            5e-4,
            2e-3,
            ("stem*", "head"),
            "accuracy",
        ),
        Task(
            "vit",
            "Digits, ViT",
            ViT,
            digits,
            600,
            32,
            "adamw",
            1e-3,
            0.05,
            2e-1,
            ("embed", "head"),
            "accuracy",
        ),
        Task(
            "gpt",
            "Text, GPT",
            GPT,
            text,
            600,
            16,
            "adamw",
            8e-3,
            0.05,
            2e-1,
            ("embed", "head"),
            "loss",
        ),
    )
}
