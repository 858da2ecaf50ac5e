"""One run: a task trained under a configuration from a seed."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

import nmsolve.torch as nmt
from examples.study.churn import Churn
from examples.study.configurations import Configuration
from examples.study.flops import forward_flops
from examples.study.measure import loss, measure
from examples.study.schedule import cosine
from examples.study.tasks import Task

#: Steps over which SAD is summed.
WINDOW = 20


@dataclass(frozen=True)
class Run:
    """What came out. accuracy, loss : of the test part. validation_* : of the part that settings
    are chosen by.

    training_flops : of the whole model, relative to dense. density : of the masked weights at the
    end. flips : mask entries that changed, over all of training, a masked weight. sad_steps, sad :
    `Churn`. seconds : of training alone, without measuring.
    """

    accuracy: float
    loss: float
    validation_accuracy: float
    validation_loss: float
    training_flops: float
    density: float
    flips: float
    sad_steps: list[int]
    sad: list[float]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Rounded to what means something."""
        return {
            key: round(value, 6) if isinstance(value, float) else value
            for key, value in asdict(self).items()
        }

    @property
    def summary(self) -> str:
        """For the terminal."""
        return f"accuracy {self.accuracy:.4f}, loss {self.loss:.4f}, {self.seconds:.1f} s"


def run(task: Task, configuration: Configuration, seed: int) -> dict[str, Run]:
    """`train`, under the configuration's name."""
    return {configuration.name: train(task, configuration, seed)}


def train(task: Task, configuration: Configuration, seed: int) -> Run:
    """Train and measure. The seed draws the initial weights and the order of the data, the same for
    every configuration.

    All configurations take equally many steps. "Fixed" spends the first half on the dense model and
    the second on what the mask keeps, by the same schedule twice, as NVIDIA's recipe for 2:4
    repeats the training; the others train masked from the start.
    """
    torch.manual_seed(seed)
    order = torch.Generator().manual_seed(seed)
    model = task.model()
    phases: list[tuple[int, nmt.Method | None]]
    if configuration.pattern is None:
        phases = [(task.steps, None)]
    elif configuration.method == "Fixed":
        phases = [(task.steps // 2, None), (task.steps - task.steps // 2, nmt.Fixed())]
    else:
        phases = [(task.steps, _method(task, configuration))]
    cost, churn, density, seconds = 0.0, None, 1.0, 0.0
    for steps, method in phases:
        began = time.perf_counter()
        relative = 1.0
        if method is None:
            fit(task, model, steps, order, None)
            seconds += time.perf_counter() - began
        else:
            assert configuration.pattern is not None
            plan = nmt.plan(model, configuration.pattern, exclude=task.dense)
            flops = forward_flops(
                model, task.part("validation")[0][0][:1], [layer.path for layer in plan.planned]
            )
            sparse = nmt.sparsify_(model, plan, method)
            churn = Churn(sparse, min(WINDOW, steps))
            fit(task, model, steps, order, churn)
            seconds += time.perf_counter() - began
            stats = sparse.stats()
            relative, density = flops.relative(stats), stats.density
            sparse.finalize_()
            if not nmt.verify(model, plan):
                raise AssertionError(
                    f"{configuration.name}: the model is not sparse\n{nmt.verify(model, plan)}"
                )
        cost += relative * steps / task.steps
    tested, validated = (measure(model, task.part(part)) for part in ("test", "validation"))
    return Run(
        accuracy=tested["accuracy"],
        loss=tested["loss"],
        validation_accuracy=validated["accuracy"],
        validation_loss=validated["loss"],
        training_flops=cost,
        density=density,
        flips=sum(churn.shares) if churn else 0.0,
        sad_steps=churn.steps if churn else [],
        sad=churn.shares if churn else [],
        seconds=seconds,
    )


def fit(
    task: Task,
    model: nn.Module,
    steps: int,
    order: torch.Generator,
    churn: Churn | None = None,
    sparse: nmt.SparseModel | None = None,
    rate: float = 1.0,
) -> None:
    """A loop as anyone writes it; masks are kept by the optimizer's hooks. rate : in units of the
    task's learning rate.
    """
    optimizer = task.make_optimizer(model.parameters(), rate)
    sparse = churn.sparse if churn else sparse
    if sparse:
        sparse.attach(optimizer)
    schedule = cosine(optimizer, steps)
    data = task.data()
    model.train()
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss(model, *data.sample(task.batch, order)).backward()
        optimizer.step()
        schedule.step()
        if churn:
            churn.record(step)


def _method(task: Task, configuration: Configuration) -> nmt.Method:
    if configuration.method == "STE":
        return nmt.STE()
    if configuration.method == "SR-STE":
        return nmt.SRSTE(decay=task.decay * configuration.decay)
    return nmt.LBC(t_i=0, t_f=max(1, task.steps // 2), criterion=configuration.criterion)
