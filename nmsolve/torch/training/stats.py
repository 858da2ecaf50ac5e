"""`Stats`: density, flips and SAD of masks so far, and the training FLOPs that they save."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nmsolve.pattern import Pattern
from nmsolve.table import shortened, table
from nmsolve.torch.training.masked_layer import MaskedLayer
from nmsolve.torch.weights.coverage import Coverage
from nmsolve.torch.weights.entries import Entries


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerStats:
    """A layer's mask over training.

    Attributes
    ----------
    path : str
        The weight's path in the model.
    pattern : Pattern
    weights : int
        Entries of the weight.
    step : int
        Optimizer steps taken.
    refreshes : int
        Masks chosen after the first.
    density : float
        The share that is kept now.
    mean_density : float
        The share that is kept, averaged over the steps.
    sad : int
        Sparse architecture divergence Σ |E_j − E_i| of the last two masks.
    flips : int
        The sum of `sad` over all refreshes.
    training_flops : float
        Multiply-adds of the layer's products so far, relative to dense.
    """

    pattern: Pattern
    weights: int
    step: int
    refreshes: int
    density: float
    mean_density: float
    sad: int
    flips: int
    training_flops: float
    path: str  # last: what was pickled without it would be read with every value one place off

    @property
    def sad_share(self) -> float:
        """SAD as a share of the weights."""
        return self.sad / self.weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """`LayerStats` of every layer by its path, and their totals. Prints as a table.

    Totals of densities and FLOPs weigh layers by their weights, which is right for layers that see
    equally many tokens.

    Attributes
    ----------
    layers : mapping of str to LayerStats
        By path, in the model's order.
    gone : tuple of str
        Paths of planned weights that the model has no more, or without a mask.
    coverage : Coverage or None
        The share of the model's parameters that have masks.
    """

    layers: Mapping[str, LayerStats]
    gone: tuple[str, ...] = ()
    coverage: Coverage | None = None

    def __getitem__(self, layer: int | str) -> LayerStats:
        """Return the statistics of a layer, by its path or its place."""
        return Entries(self.layers.values())[layer]

    @property
    def weights(self) -> int:
        """All weights with a mask."""
        return sum(layer.weights for layer in self.layers.values())

    @property
    def step(self) -> int:
        """Optimizer steps taken, the most of any layer."""
        return max(layer.step for layer in self.layers.values())

    @property
    def density(self) -> float:
        """The share of these weights that is kept."""
        return self._mean("density")

    @property
    def mean_density(self) -> float:
        """The share that is kept, averaged over the steps."""
        return self._mean("mean_density")

    @property
    def training_flops(self) -> float:
        """Multiply-adds of training so far, relative to dense."""
        return self._mean("training_flops")

    @property
    def sad(self) -> int:
        """Entries that differ between the last two masks."""
        return sum(layer.sad for layer in self.layers.values())

    @property
    def sad_share(self) -> float:
        """SAD as a share of the weights."""
        return self.sad / self.weights

    @property
    def flips(self) -> int:
        """The sum of SAD over all refreshes."""
        return sum(layer.flips for layer in self.layers.values())

    def _mean(self, name: str) -> float:
        return float(
            sum(getattr(layer, name) * layer.weights for layer in self.layers.values())
            / self.weights
        )

    def __str__(self) -> str:
        head = (
            "layer",
            "pattern",
            "weights",
            "refreshes",
            "density",
            "SAD",
            "SAD %",
            "flips",
            "training FLOPs",
        )
        rows = [
            (shortened(name), str(layer.pattern), *_numbers(layer))
            for name, layer in self.layers.items()
        ]
        refreshes = max(layer.refreshes for layer in self.layers.values())
        total = (
            str(self.weights),
            str(refreshes),
            f"{self.density:.4f}",
            str(self.sad),
            f"{100 * self.sad_share:.3f}",
        )
        rows += [(shortened(name), "gone", *[""] * 7) for name in self.gone]
        rows.append(("total", "", *total, str(self.flips), f"{self.training_flops:.3f} ×"))
        text = table(head, rows, {2, 3, 4, 5, 6, 7})
        return text if self.coverage is None else f"{text}\n{self.coverage}"


def _numbers(layer: LayerStats) -> tuple[str, ...]:
    shown = (
        str(layer.weights),
        str(layer.refreshes),
        f"{layer.density:.4f}",
        str(layer.sad),
        f"{100 * layer.sad_share:.3f}",
    )
    return (*shown, str(layer.flips), f"{layer.training_flops:.3f} ×")


def stats_of(
    layers: Sequence[MaskedLayer], gone: tuple[str, ...], straight_through: bool, coverage: Coverage
) -> Stats:
    """Return statistics of layers, as their masks are now, beside those that are gone.

    Of a training step's three products, the forward one runs at the mask's density; the input's
    gradient does for transposable masks; the weight's gradient does unless dropped weights get
    gradients too (LBC paper, Table 1).
    """
    found = {}
    for layer in layers:
        masked, pattern = layer.masked, layer.entry.pattern
        progress = masked.progress
        density = masked.density
        mean = progress.density_sum / progress.step if progress.step else density
        products = (
            mean + (mean if pattern.transposable else 1.0) + (1.0 if straight_through else mean)
        )
        found[layer.path] = LayerStats(
            path=layer.path,
            pattern=pattern,
            weights=masked.mask.numel(),
            step=progress.step,
            refreshes=progress.refreshes,
            density=density,
            mean_density=mean,
            sad=progress.sad,
            flips=progress.flips,
            training_flops=products / 3,
        )
    return Stats(layers=found, gone=gone, coverage=coverage)
