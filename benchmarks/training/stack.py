"""A stack of transformer layers, trained step by step on a clock that also tells how long nmsolve's
hooks take.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

import nmsolve.torch as nmt
from benchmarks.training.settings import Settings

BATCHES = 4


@dataclass(frozen=True)
class Times:
    """Seconds of a training step (forward, backward, optimizer), of its optimizer.step(), and of
    nmsolve's hooks in that.
    """

    step: float
    optimizer: float
    hooks: float


def clock(device: torch.device) -> float:
    """Seconds, once everything queued on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def adamw(model: nn.Module) -> Optimizer:
    """AdamW as torch chooses to run it. The rate is small: masks move, and the model does not learn
    its batches by heart.
    """
    return torch.optim.AdamW(model.parameters(), lr=1e-5)


def sgd(model: nn.Module) -> Optimizer:
    """SGD with momentum and weight decay."""
    return torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-5)


def stack(settings: Settings, device: torch.device) -> nn.Module:
    """Pre-norm layers without dropout, in training mode; the same weights at every call."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        settings.width,
        settings.heads,
        4 * settings.width,
        dropout=0.0,
        batch_first=True,
        norm_first=True,
    )
    model = nn.TransformerEncoder(layer, settings.layers, enable_nested_tensor=False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)  # the stack copies one layer: let them differ
    return model.to(device, settings.dtype).train()


class Trainer:
    """A model with its optimizer, dense or with masks.

    model : dense or sparsified. sparse : its masks, or None. `attached` says when their method
    takes part in the steps.
    """

    def __init__(
        self,
        settings: Settings,
        device: torch.device,
        optimizer: Callable[[nn.Module], Optimizer] = adamw,
        plan: nmt.Plan | str | None = None,
        method: Any = None,
    ) -> None:
        self.model = stack(settings, device)
        self.optimizer = optimizer(self.model)
        self.device = device
        self.sparse = None if plan is None else nmt.sparsify_(self.model, plan, method)
        generator = torch.Generator().manual_seed(1)
        shape = (2, settings.batch, settings.length, settings.width)
        self._batches = [
            torch.randn(shape, generator=generator).to(device, settings.dtype)
            for _ in range(BATCHES)
        ]
        self._next = 0
        self._entered = self._hooks = 0.0

    def step(self) -> Times:
        """Take one."""
        inputs, targets = self._batch()
        self._hooks = 0.0
        start = clock(self.device)
        self.optimizer.zero_grad()
        F.mse_loss(self.model(inputs), targets).backward()  # type: ignore[no-untyped-call]
        before = clock(self.device)
        self.optimizer.step()
        end = clock(self.device)
        return Times(end - start, end - before, self._hooks)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Let the method take part, between two hooks that read the clock: hooks run in the order
        of their registration.
        """
        assert self.sparse is not None
        handles = [
            self.optimizer.register_step_pre_hook(self._enter),
            self.optimizer.register_step_post_hook(self._enter),
        ]
        self.sparse.attach(self.optimizer)
        handles += [
            self.optimizer.register_step_pre_hook(self._leave),
            self.optimizer.register_step_post_hook(self._leave),
        ]
        try:
            yield
        finally:
            self.sparse.detach()
            for handle in handles:
                handle.remove()

    @property
    def weights(self) -> int:
        """How many have a mask."""
        return 0 if self.sparse is None else self.sparse.stats().weights

    def _batch(self) -> Tensor:
        self._next = (self._next + 1) % BATCHES
        return self._batches[self._next]

    def _enter(self, *_: Any) -> None:
        self._entered = clock(self.device)

    def _leave(self, *_: Any) -> None:
        self._hooks += clock(self.device) - self._entered


def turn(step: Callable[[], Times], steps: int) -> Times:
    """Medians over a few steps. One before them is not counted: it pays for what the case before it
    left in the caches.
    """
    step()
    times = [step() for _ in range(steps)]
    return Times(
        *(median(getattr(one, part) for one in times) for part in ("step", "optimizer", "hooks"))
    )


def take_turns(cases: dict[str, Callable[[], Times]], rounds: int) -> dict[str, list[Times]]:
    """Every case in every round, in the reverse order in every other one, so that a drift of the
    machine hits all alike.
    """
    found: dict[str, list[Times]] = {name: [] for name in cases}
    for number in range(rounds):
        for name in list(cases)[:: 1 if number % 2 == 0 else -1]:
            found[name].append(cases[name]())
    return found
