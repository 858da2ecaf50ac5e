"""What the hooks in an optimizer's steps cost when no mask is due, by method; and what masked
forward and backward passes cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

import nmsolve.torch as nmt
from benchmarks.training.rows import Row, Spread
from benchmarks.training.settings import Settings
from benchmarks.training.stack import Times, Trainer, adamw, sgd, take_turns, turn

NEVER = 10**9
#: Name, pattern, method, optimizer, and the most that the hooks may add to a step, in percent.
CASES: tuple[tuple[str, str, Any, Callable[[nn.Module], Optimizer], float], ...] = (
    ("Fixed, AdamW", "2:4T", nmt.Fixed(), adamw, 2.0),
    ("STE, AdamW", "2:4T", nmt.STE(update_every=NEVER), adamw, 2.0),
    (
        "SRSTE coupled, SGD with momentum",
        "2:4T",
        nmt.SRSTE(update_every=NEVER, decoupled=False),
        sgd,
        2.0,
    ),
    ("SRSTE decoupled, AdamW", "2:4T", nmt.SRSTE(update_every=NEVER, decoupled=True), adamw, 2.0),
    (
        "LBC between removals, AdamW",
        "2:4",
        nmt.LBC(t_i=0, t_f=2 * NEVER, update_every=NEVER),
        adamw,
        2.0,
    ),
    (
        "LBC without momentum, AdamW",
        "2:4",
        nmt.LBC(t_i=0, t_f=2 * NEVER, update_every=NEVER, momentum=0.0),
        adamw,
        2.0,
    ),
    ("LBC after its end, AdamW", "2:4", nmt.LBC(t_i=0, t_f=1), adamw, 2.0),
)


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """One method. Times in ms, of a step that the method takes no part in but for `hooks_ms`;
    shares in percent.

    share : the hooks, of that step; least : by the least times of any round instead of medians.
    whole, optimizer : what taking part adds to whole steps and to optimizer.step(). masked : what
    the masked forward and backward add to a dense step, hooks apart.
    """

    name: str
    pattern: str
    weights: int
    step_ms: float
    optimizer_ms: float
    hooks_ms: float
    share: float
    least: float
    whole: Spread
    optimizer: Spread
    masked: Spread
    target: float

    @property
    def rows(self) -> Iterator[Row]:
        """Its target."""
        what, note = f"{self.name}, {self.pattern}: hooks", f"by least times {self.least:.2g} %"
        yield Row(what=what, measured=self.share, unit="% of a step", target=self.target, note=note)


def measure(settings: Settings, device: torch.device) -> Iterator[Hooks]:
    """Every method; dense steps, steps with masks alone, and steps with the method take turns."""
    for name, pattern, method, optimizer, target in CASES:
        dense = Trainer(settings, device, optimizer)
        trainer = Trainer(settings, device, optimizer, pattern, method)
        cases: dict[str, Callable[[], Times]] = {
            "dense": lambda dense=dense: turn(dense.step, settings.steps),  # type: ignore[misc]
            "apart": lambda trainer=trainer: turn(trainer.step, settings.steps),  # type: ignore[misc]
            "part": lambda trainer=trainer: _taking_part(trainer, settings.steps),  # type: ignore[misc]
        }
        take_turns(cases, 1)
        found = take_turns(cases, settings.rounds)
        steps = {case: [times.step for times in found[case]] for case in cases}
        updates = {case: [times.optimizer for times in found[case]] for case in cases}
        hooks = [times.hooks for times in found["part"]]
        step, spent = median(steps["apart"]), median(hooks)
        yield Hooks(
            name=name,
            pattern=pattern,
            weights=trainer.weights,
            step_ms=1e3 * step,
            optimizer_ms=1e3 * median(updates["apart"]),
            hooks_ms=1e3 * spent,
            share=100 * spent / step,
            least=100 * min(hooks) / min(steps["apart"]),
            whole=Spread.added(steps["part"], steps["apart"]),
            optimizer=Spread.added(updates["part"], updates["apart"]),
            masked=Spread.added(steps["apart"], steps["dense"]),
            target=target,
        )


def _taking_part(trainer: Trainer, steps: int) -> Times:
    with (
        trainer.attached()
    ):  # what that itself does falls into the step that is not counted, or before it
        return turn(trainer.step, steps)
