"""`nmsolve demo`: every method on a small trained network, in one table and one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nmsolve.demo_picture import draw, is_picture
from nmsolve.demo_results import REPEATS, Row, load_checkpoint, required, solve_rows
from nmsolve.output import Output
from nmsolve.table import table

#: The format that the file of masks names.
FORMAT = "nmsolve-demo"
NOTES = """
kept |W|, gap and distance are of all layers together, and every result was verified against its
weights. 1:4 and 2:4 are row-wise: groups are independent, so that greedy and cover choose what
exact does. A heuristic's gap is measured to its own bound, which is looser than the optimum. Mw/s:
million weights per second on one thread, kernels loaded, best of {repeats}. Accuracy is without
retraining, and follows kept |W|, which is what is maximised, only loosely; one image is {point:.2f}
points.
"""


def results_table(dense_accuracy: float, rows: Sequence[Row]) -> str:
    """Return the rows as text, below one for the network as it was trained."""
    head = (
        "pattern",
        "method",
        "status",
        "kept |W|",
        "certified gap",
        "from optimum",
        "Mw/s",
        "test accuracy",
    )
    cells = [("dense", "", "", "100.00 %", "", "", "", f"{100 * dense_accuracy:.2f} %")]
    cells += [
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
        for row in rows
    ]
    return table(head, cells, range(3, len(head)), ruled=True)


def packed(rows: Sequence[Row]) -> bytes:
    """Return one safetensors file of bool masks named "pattern/method/layer", such as
    "2:4T/exact/layer1".
    """
    masks = {
        f"{row.pattern}/{row.method}/layer{layer}": mask
        for row in rows
        for layer, mask in enumerate(row.masks, start=1)
    }
    return bytes(required("safetensors.numpy").save(masks, {"format": FORMAT}))


def is_packed(beginning: bytes) -> bool:
    """Return whether a file that begins like this is such a file of masks."""
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
        If safetensors or Pillow is not installed.
    SolverError
        If a result does not stand up to its verification.
    """
    required("PIL.Image")
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
        print(results_table(network.accuracy(), rows))
        print(NOTES.format(repeats=REPEATS, point=100 / len(network.labels)))
        masks.write(packed(rows))
        picture.write(draw(network.weights[1], rows))
    print(f"Written: {out / 'masks.safetensors'}, {out / 'demo.png'}")
