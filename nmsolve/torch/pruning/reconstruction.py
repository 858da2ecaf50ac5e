"""What pruning by calibration did to each layer: `Reconstruction`."""

from __future__ import annotations

from dataclasses import dataclass

from nmsolve.pattern import Pattern
from nmsolve.table import shortened, table
from nmsolve.torch.weights.entries import Entries, entry_of


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReconstruction:
    """How well a pruned layer gives the outputs of the dense one, over the calibration inputs.

    before, after : ‖Y − X Wᵀ‖² / ‖Y‖² of the weights that are masked by magnitude (by scores, if
    given) and otherwise as they were, and of the new ones. iterations : of the solver. residual :
    of the normal equations on the mask, relative, the largest of any row; None where they were not
    solved. damping : δ. seconds : for this layer, its share of running the model included.

    Behind batch norms, X is what their statistics from before make of it: new ones are estimated
    when all layers have been pruned.
    """

    name: str
    pattern: Pattern
    shape: tuple[int, ...]
    before: float
    after: float
    iterations: int
    residual: float | None
    damping: float
    seconds: float


class Reconstruction(Entries[LayerReconstruction]):
    """An entry a pruned layer, in the order in which they were pruned. Prints as a table.

    batch_norms : how many had their statistics estimated anew: those that come after a pruned
    layer.
    """

    def __init__(self, layers: tuple[LayerReconstruction, ...], batch_norms: int) -> None:
        super().__init__(layers)
        self.batch_norms = batch_norms

    def of(self, name: str) -> LayerReconstruction:
        """The entry of a layer, by its path."""
        return entry_of({layer.name: layer for layer in self.layers}, name)

    @property
    def seconds(self) -> float:
        """For all layers."""
        return sum(layer.seconds for layer in self.layers)

    def __str__(self) -> str:
        head = (
            "layer",
            "shape",
            "pattern",
            "error before",
            "after",
            "iterations",
            "residual",
            "damping",
            "seconds",
        )
        rows = [
            (
                shortened(layer.name),
                "×".join(map(str, layer.shape)),
                str(layer.pattern),
                f"{layer.before:.4g}",
                f"{layer.after:.4g}",
                str(layer.iterations),
                "-" if layer.residual is None else f"{layer.residual:.1e}",
                f"{layer.damping:.3g}",
                f"{layer.seconds:.3g}",
            )
            for layer in self.layers
        ]
        text = table(head, rows, {3, 4, 5, 6, 7})
        return text + (
            f"\nstatistics of {self.batch_norms} batch norms estimated anew"
            if self.batch_norms
            else ""
        )

    def __repr__(self) -> str:
        return f"<Reconstruction: {len(self)} layers>"
