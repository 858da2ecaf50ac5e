"""The results of a task, as tables, sentences and figures ask for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from examples.study.configurations import Configuration
from examples.study.statistics import Difference, Rank, Spread
from examples.study.tasks import Task


@dataclass(frozen=True)
class Outcome:
    """runs : configuration → seed → `Run` as JSON. machine : what they were made on."""

    task: Task
    runs: dict[str, dict[str, dict[str, Any]]]
    machine: dict[str, Any]

    def seeds(self, configuration: Configuration) -> list[str]:
        """The seeds that a configuration was run with."""
        return sorted(self.runs.get(configuration.name, {}), key=int)

    def has(self, *configurations: Configuration) -> bool:
        """Whether there are runs of all of them."""
        return all(self.seeds(configuration) for configuration in configurations)

    def values(
        self, configuration: Configuration, key: str, seeds: Sequence[str] | None = None
    ) -> list[float]:
        """One number of every run."""
        return [
            float(self.runs[configuration.name][seed][key])
            for seed in seeds or self.seeds(configuration)
        ]

    def spread(self, configuration: Configuration, key: str) -> Spread:
        """Over seeds."""
        return Spread.of(self.values(configuration, key))

    def seconds(self, configuration: Configuration) -> float:
        """The median: the first run of a kernel compiles it."""
        return median(self.values(configuration, "seconds"))

    def difference(
        self, first: Configuration, second: Configuration, key: str | None = None
    ) -> Difference:
        """Of the task's measure unless another key is given, over the seeds that both have."""
        key = key or self.task.measure
        common = [seed for seed in self.seeds(first) if seed in self.seeds(second)]
        return Difference.of(self.values(first, key, common), self.values(second, key, common))

    def ratio(self, first: Configuration, second: Configuration, key: str) -> Spread:
        """first / second, seed by seed."""
        common = [seed for seed in self.seeds(first) if seed in self.seeds(second)]
        pairs = zip(self.values(first, key, common), self.values(second, key, common), strict=True)
        return Spread.of([a / b if b else float("nan") for a, b in pairs])

    def rank(self, configurations: Sequence[Configuration], numbers: Sequence[float]) -> Rank:
        """Of numbers, one a configuration, with how good their means are: positive if larger
        numbers go with better models.
        """
        means = [
            self.spread(configuration, self.task.measure).mean for configuration in configurations
        ]
        return Rank.of(
            numbers, means if self.task.measure == "accuracy" else [-mean for mean in means]
        )

    # How the measure is written: accuracies in per cent, losses in nats.

    @property
    def heading(self) -> str:
        """Of a column."""
        return (
            "test accuracy, %"
            if self.task.measure == "accuracy"
            else "held-out loss, nats a character"
        )

    def show(self, configuration: Configuration) -> str:
        """The measure of a configuration."""
        return self.spread(configuration, self.task.measure).show(*self._format)

    def show_with_loss(self, configuration: Configuration) -> tuple[str, ...]:
        """The measure of the test part and, where that is the accuracy, the loss, which tells
        equally accurate models apart.
        """
        losses = (
            (self.spread(configuration, "loss").show(4),) if self.task.measure == "accuracy" else ()
        )
        return (self.show(configuration), *losses)

    @property
    def headings(self) -> tuple[str, ...]:
        """Of its columns."""
        return (self.heading, "test loss") if self.task.measure == "accuracy" else (self.heading,)

    def show_difference(self, difference: Difference) -> str:
        """With its sign and p-value."""
        return f"{difference.spread.show(*self._format, sign=True)} (p = {difference.p:.2g})"

    @property
    def _format(self) -> tuple[int, float]:
        return (2, 100.0) if self.task.measure == "accuracy" else (4, 1.0)
