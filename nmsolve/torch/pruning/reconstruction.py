"""`Reconstruction`: the errors of each layer before and after pruning by calibration."""

from __future__ import annotations

from dataclasses import dataclass

from nmsolve.pattern import Pattern
from nmsolve.table import extent, shortened, table
from nmsolve.torch.weights.entries import Entries


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReconstruction:
    """The errors of a pruned layer's outputs, against the dense one's, over the calibration inputs.

    Attributes
    ----------
    path : str
        The weight's path; `name` is the same.
    pattern : Pattern
    shape : tuple of int
        The weight's.
    before, after : float
        ‖Y − X Wᵀ‖² / ‖Y‖² of the weights that are masked by magnitude (by scores, if given) and
        otherwise as they were, and of the new ones.
    iterations : int
        Of the update, or of the choice of the mask.
    residual : float or None
        Of the normal equations on the mask, relative, the largest of any row; None where they were
        not solved.
    damping : float
        δ.
    seconds : float
        For this layer, with its share of running the model.

    Notes
    -----
    Behind batch norms, X is normalised by the statistics from before: new ones are estimated when
    all layers have been pruned.
    """

    path: str
    pattern: Pattern
    shape: tuple[int, ...]
    before: float
    after: float
    iterations: int
    residual: float | None
    damping: float
    seconds: float

    @property
    def name(self) -> str:
        """The weight's path."""
        return self.path


class Reconstruction(Entries[LayerReconstruction]):
    """One entry for each pruned layer, in the order in which they were pruned, to be looked up by
    index or by path. Prints as a table.

    Attributes
    ----------
    layers : tuple of LayerReconstruction
    batch_norms : int
        Number of batch norms whose statistics were estimated again: those after a pruned layer.
    """

    def __init__(self, layers: tuple[LayerReconstruction, ...], batch_norms: int) -> None:
        super().__init__(layers)
        self.batch_norms = batch_norms

    def of(self, path: str) -> LayerReconstruction:
        """Return the entry of a layer, by its path."""
        return self[path]

    @property
    def seconds(self) -> float:
        """Of all layers."""
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
                shortened(layer.path),
                extent(layer.shape),
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
