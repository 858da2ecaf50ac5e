"""`nmsolve demo`: every method on a small trained network, in one table and one picture.

The network (`benchmarks/train_digits.py`) classifies 8 × 8 images of handwritten digits. Its layers
are solved one by one; the masks of all layers together then multiply its weights, without
retraining, and the held-out images are classified again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsolve.api import solve
from nmsolve.checkpoint.output import Output
from nmsolve.errors import MissingDependencyError
from nmsolve.result import MaskResult, Status, relative_gap

#: What the file of masks says that it is.
FORMAT = "nmsolve-demo"
PATTERNS = ("1:4", "2:4", "2:4T", "4:8T", "8:16T")
METHODS = ("exact", "greedy", "cover")
#: The last layer has 10 rows, which no block divides.
PADDING = "pad"
#: A layer is solved in some 50 µs, so that one measurement would show the scheduler as much as the
#: solver.
REPEATS = 9
NOTES = """
kept |W|, gap and distance are of all layers together, and every result was verified against its
weights. 1:4 and 2:4 are
row-wise: groups are independent, so that greedy and cover choose what exact does. A heuristic's
gap is measured to its own
bound, which is looser than the optimum. Mw/s: million weights a second on one thread, kernels
loaded, best of {repeats}.
Accuracy is without retraining, and follows kept |W|, which is what is maximised, only loosely; one
image is {point:.2f} points.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A trained network and what it was not trained on.

    weights : one (out, in) float32 a layer. biases : one (out,) float32 a layer.
    images : (count, in) float32 in [0, 1]. labels : (count,) uint8.
    """

    weights: tuple[NDArray[np.float32], ...]
    biases: tuple[NDArray[np.float32], ...]
    images: NDArray[np.float32]
    labels: NDArray[np.uint8]

    def accuracy(self, masks: Sequence[NDArray[np.bool_]] | None = None) -> float:
        """The share of images classified rightly, with the weights outside the masks set to
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
        Weights solved a second, kernels loaded.
    accuracy : float
        On the held-out images, masks applied to all layers.
    masks : one (out, in) bool a layer.
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
    """An optional module, imported.

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
    """The checkpoint that ships in the package."""
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
    """The fastest of `REPEATS` results, all verified, after a first solve that loads the
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
    """A row of the table for every pattern and method, in the table's order."""
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


def table(dense_accuracy: float, rows: Sequence[Row]) -> str:
    """The rows as text, below one for the network as it was trained."""
    cells = [
        (
            "pattern",
            "method",
            "status",
            "kept |W|",
            "certified gap",
            "from optimum",
            "Mw/s",
            "test accuracy",
        ),
        ("dense", "", "", "100.00 %", "", "", "", f"{100 * dense_accuracy:.2f} %"),
    ]
    for row in rows:
        cells.append(
            (
                row.pattern,
                row.method,
                row.status.value,
                f"{100 * row.kept:.2f} %",
                f"{row.gap:.1e}" if row.gap else "0",
                f"{100 * row.distance:.3f} %",
                f"{row.rate / 1e6:.3g}",
                f"{100 * row.accuracy:.2f} %",
            )
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    above = ""
    for line in cells:
        if above not in ("", line[0]):
            lines.append("-" * (sum(widths) + 2 * len(widths) - 2))
        above = line[0]
        padded = [
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def packed(rows: Sequence[Row]) -> bytes:
    """One safetensors file of bool masks named "pattern/method/layer", such as
    "2:4T/exact/layer1".
    """
    masks = {
        f"{row.pattern}/{row.method}/layer{layer}": mask
        for row in rows
        for layer, mask in enumerate(row.masks, start=1)
    }
    return bytes(required("safetensors.numpy").save(masks, {"format": FORMAT}))


def is_packed(beginning: bytes) -> bool:
    """Whether a file that begins like this is such a file of masks."""
    return beginning[8:].startswith(f'{{"__metadata__":{{"format":"{FORMAT}"}}'.encode())


def demo(out: Path, *, force: bool = False) -> None:
    """Print the table, and write masks.safetensors and demo.png into a folder, which is made if it
    does not exist.

    Files of an earlier demo are replaced, others of these names only with `force`.

    Raises
    ------
    InputError
        If a file of one of these names is there.
    MissingDependencyError
        If safetensors or matplotlib is not installed.
    SolverError
        If a result does not stand up to its verification.
    """
    from nmsolve.demo_picture import draw, is_picture

    required("matplotlib.figure")
    network = load_checkpoint()
    with (
        Output(out / "masks.safetensors", ours=is_packed, force=force, parents=True) as masks,
        Output(out / "demo.png", ours=is_picture, force=force, parents=True) as picture,
    ):
        shapes = ", ".join(
            f"{rows} x {cols}" for rows, cols in (weights.shape for weights in network.weights)
        )
        print(
            f"A classifier of handwritten digits, layers {shapes}; tested on {len(network.labels)} "
            "images it was not trained on."
        )
        print(
            "Solving every layer; the first run on a machine also compiles the kernels, about a "
            "minute ...\n",
            flush=True,
        )
        rows = list(solve_rows(network))
        print(table(network.accuracy(), rows))
        print(NOTES.format(repeats=REPEATS, point=100 / len(network.labels)))
        masks.write(packed(rows))
        picture.write(draw(network.weights[1], rows))
    print(f"Written: {out / 'masks.safetensors'}, {out / 'demo.png'}")
