"""What a refresh of all masks adds to training steps: patterns and solvers, each against steps that
refresh nothing.

Whether a step refreshes is set through the masks' own step counters, so that steps with and without
a refresh are those of one model and one optimizer, in the same memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import torch

import nmsolve.torch as nmt
from benchmarks.training.rows import Row, Spread
from benchmarks.training.settings import Settings
from benchmarks.training.stack import Times, Trainer, take_turns, turn

#: Patterns and solvers, with the most that a refresh every 40 steps, and in every step, may add to
#: a dense step, in percent.
CASES = (
    ("4:8T", "exact", 1.0, 10.0),
    ("2:4T", "exact", 1.0, None),
    ("8:16T", "exact", 1.0, None),
    ("2:4", "exact", 1.0, None),
    ("4:8T", "cover", None, None),
    ("4:8T", "greedy", None, None),
)
#: The transposable-masks paper's figures for ResNet-50 with a refresh every 40 steps, in percent of
#: a training step.
QUOTED = {"2-approximation": 14.0, "min-cost flow": 70.0, "integer program": 180.0}


@dataclass(frozen=True, kw_only=True)
class Refresh:
    """One pattern and solver. Times in ms, shares in percent of the dense step.

    hooks_ms : the hooks of a step without a refresh; refresh_ms : what a refresh adds to them.
    least : each_step by the least times of any round instead of medians, which a machine that
    others use disturbs less. whole : what it adds to whole steps. masked : what the masked step
    without a refresh adds to the dense one.
    """

    pattern: str
    solver: str
    layers: int
    weights: int
    every: int
    dense_ms: float
    masked_ms: float
    hooks_ms: float
    refresh_ms: float
    each_step: float
    each_40: float
    least: float
    whole: Spread
    masked: Spread
    target_40: float | None
    target_1: float | None

    @property
    def rows(self) -> Iterator[Row]:
        """Its targets."""
        what = f"{self.pattern} {self.solver}: refresh of all masks"
        unit = "% of a dense step"
        if self.target_40 is not None:
            note = f"by least times {self.least / self.every:.2g} %"
            yield Row(
                what=f"{what} every {self.every} steps",
                measured=self.each_40,
                unit=unit,
                target=self.target_40,
                note=note,
            )
        if self.target_1 is not None:
            note = f"by least times {self.least:.2g} %"
            yield Row(
                what=f"{what} in every step",
                measured=self.each_step,
                unit=unit,
                target=self.target_1,
                note=note,
            )


def measure(settings: Settings, device: torch.device) -> Iterator[Refresh]:
    """Every case, with dense steps in the same rounds."""
    dense = Trainer(settings, device)
    for pattern, solver, target_40, target_1 in CASES:
        if device.type != "cpu" and solver != "exact":
            continue  # approximate solvers run on the host
        trainer = Trainer(
            settings,
            device,
            plan=pattern,
            method=nmt.STE(update_every=settings.every, mask_method=solver),
        )
        assert trainer.sparse is not None
        with trainer.attached():
            cases: dict[str, Callable[[], Times]] = {
                "dense": lambda: turn(dense.step, settings.steps),
                "none": lambda trainer=trainer: turn(_without(trainer), settings.steps),  # type: ignore[misc]
                "each": lambda trainer=trainer: turn(
                    _refreshing(trainer, settings), settings.steps
                ),  # type: ignore[misc]
            }
            take_turns(cases, 1)  # compiles kernels
            found = take_turns(cases, settings.rounds)
        steps = {name: [times.step for times in found[name]] for name in cases}
        hooks = {name: [times.hooks for times in found[name]] for name in cases}
        refresh, dense_step = median(hooks["each"]) - median(hooks["none"]), median(steps["dense"])
        yield Refresh(
            pattern=pattern,
            solver=solver,
            layers=len(trainer.sparse.layers),
            weights=trainer.weights,
            every=settings.every,
            dense_ms=1e3 * dense_step,
            masked_ms=1e3 * median(steps["none"]),
            hooks_ms=1e3 * median(hooks["none"]),
            refresh_ms=1e3 * refresh,
            each_step=100 * refresh / dense_step,
            each_40=100 * refresh / dense_step / settings.every,
            least=100 * (min(hooks["each"]) - min(hooks["none"])) / min(steps["dense"]),
            whole=Spread.added(steps["each"], steps["none"], steps["dense"]),
            masked=Spread.added(steps["none"], steps["dense"]),
            target_40=target_40,
            target_1=target_1,
        )


def measure_long(settings: Settings, device: torch.device) -> Iterator[Row]:
    """Turns of 40 steps with one refresh in them, against turns of 40 without: the whole of the
    time, nothing left out.
    """
    trainer = Trainer(settings, device, plan="4:8T", method=nmt.STE(update_every=settings.every))

    def steps(step: Callable[[], Times]) -> Times:
        times = [step() for _ in range(settings.every)]
        return Times(
            *(sum(getattr(one, part) for one in times) for part in ("step", "optimizer", "hooks"))
        )

    def scheduled() -> Times:
        _set_counters(trainer, 0)
        return steps(trainer.step)

    with trainer.attached():
        turn(_refreshing(trainer, settings), 1)  # compiles kernels
        found = take_turns(
            {"none": lambda: steps(_without(trainer)), "one": scheduled}, settings.long_rounds
        )
    for part, name in (("step", "whole steps"), ("hooks", "the hooks")):
        one, none = ([getattr(times, part) for times in found[case]] for case in ("one", "none"))
        spread = Spread.added(one, none, [times.step for times in found["none"]])
        yield Row(
            what=f"4:8T exact: {settings.every} steps with one refresh against {settings.every} "
                 f"without, {name}",
            measured=spread.median, unit="% of a masked step",
            note=f"quartiles {spread.low:.2f} … {spread.high:.2f} of {settings.long_rounds} pairs",
        )  # fmt: skip


def _set_counters(trainer: Trainer, step: int) -> None:
    assert trainer.sparse is not None
    for layer in trainer.sparse.layers:
        layer.masked.progress.step = step


def _without(trainer: Trainer) -> Callable[[], Times]:
    """A step that is never due for a refresh."""

    def step() -> Times:
        _set_counters(trainer, 0)
        return trainer.step()

    return step


def _refreshing(trainer: Trainer, settings: Settings) -> Callable[[], Times]:
    """A step that always is."""

    def step() -> Times:
        _set_counters(trainer, settings.every - 1)
        return trainer.step()

    return step
