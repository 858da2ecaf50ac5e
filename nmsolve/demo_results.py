"""Every method on a small trained network, the layers' masks applied to it without retraining.

The network (`benchmarks/train_digits.py`) classifies 8 × 8 images of handwritten digits. Its layers
are solved one by one; the masks of all layers together then multiply its weights, and the held-out
images are classified again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.resources import as_file, files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsolve.api import solve
from nmsolve.errors import MissingDependencyError
from nmsolve.result import MaskResult, Status, relative_gap

PATTERNS = ("1:4", "2:4", "2:4T", "4:8T", "8:16T")
METHODS = ("exact", "greedy", "cover")
#: The last layer has 10 rows, which no block divides.
PADDING = "pad"
#: A layer is solved in some 50 µs, so that one measurement would show the scheduler as much as the
#: solver.
REPEATS = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A trained network, and images that it was not trained on.

    Attributes
    ----------
    weights : tuple of (out, in) float32 arrays
        One per layer.
    biases : tuple of (out,) float32 arrays
        One per layer.
    images : (count, in) float32 array
        In [0, 1].
    labels : (count,) uint8 array
    """

    weights: tuple[NDArray[np.float32], ...]
    biases: tuple[NDArray[np.float32], ...]
    images: NDArray[np.float32]
    labels: NDArray[np.uint8]

    def accuracy(self, masks: Sequence[NDArray[np.bool_]] | None = None) -> float:
        """Return the share of images classified rightly, with the weights outside the masks set to
        zero.
        """
        values = self.images
        for layer, (weights, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            kept = weights if masks is None else np.where(masks[layer], weights, np.float32(0))
            values = (np.maximum(values, 0) if layer else values) @ kept.T + bias
        return float((values.argmax(axis=1) == self.labels).mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One pattern and method, over all layers.

    Attributes
    ----------
    pattern, method : str
    status : Status
        OPTIMAL if every layer is.
    kept : float
        Share of the sum of |weights| that the masks keep.
    gap : float
        (bound − objective) / bound of the sums over layers.
    distance : float
        (optimum − objective) / optimum, where the optimum is what the exact method found.
    rate : float
        Weights solved per second, kernels loaded.
    accuracy : float
        On the held-out images, masks applied to all layers.
    masks : tuple of (out, in) bool arrays
        One per layer.
    """

    pattern: str
    method: str
    status: Status
    kept: float
    gap: float
    distance: float
    rate: float
    accuracy: float
    masks: tuple[NDArray[np.bool_], ...]


def required(module: str) -> Any:
    """Import an optional module.

    Raises
    ------
    MissingDependencyError
        If it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingDependencyError(
            f"the demo needs {package}, which is not installed: pip install 'nmsolve[demo]'"
        ) from error


def load_checkpoint() -> Checkpoint:
    """Read the checkpoint that ships in the package."""
    safetensors = required("safetensors.numpy")
    with as_file(files("nmsolve.data") / "digits.safetensors") as path:
        tensors = safetensors.load_file(path)
    layers = range(1, 1 + sum(name.endswith(".weight") for name in tensors))
    return Checkpoint(
        weights=tuple(tensors[f"layer{layer}.weight"] for layer in layers),
        biases=tuple(tensors[f"layer{layer}.bias"] for layer in layers),
        images=tensors["images"].astype(np.float32) / 16,
        labels=tensors["labels"],
    )


def _solved(weights: NDArray[np.float32], pattern: str, method: str) -> MaskResult:
    """Return the fastest of `REPEATS` results, all verified, after a first solve that loads the
    kernels.
    """
    results = [
        solve(weights, pattern, method=method, threads=1, padding=PADDING)
        for _ in range(1 + REPEATS)
    ][1:]
    for result in results:
        result.verify(weights)
    return min(results, key=lambda result: result.stats["seconds"])


def solve_rows(network: Checkpoint) -> Iterator[Row]:
    """Yield a row of the table for every pattern and method, in the table's order."""
    total = math.fsum(float(np.abs(weights).sum(dtype=np.float64)) for weights in network.weights)
    for pattern in PATTERNS:
        optimum = 0.0
        for method in METHODS:
            results = [_solved(weights, pattern, method) for weights in network.weights]
            objective = math.fsum(result.objective for result in results)
            bound = math.fsum(
                math.inf if result.bound is None else result.bound for result in results
            )
            if method == "exact":
                optimum = objective
            masks = tuple(result.mask for result in results)
            yield Row(
                pattern=pattern,
                method=method,
                status=Status.OPTIMAL
                if all(result.status is Status.OPTIMAL for result in results)
                else Status.FEASIBLE,
                kept=objective / total,
                gap=relative_gap(objective, bound),
                distance=(optimum - objective) / optimum,
                rate=sum(weights.size for weights in network.weights)
                / math.fsum(result.stats["seconds"] for result in results),
                accuracy=network.accuracy(masks),
                masks=masks,
            )
