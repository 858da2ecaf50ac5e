"""`Reconstruction`: the errors of each layer before and after pruning by calibration."""

from __future__ import annotations

from dataclasses import dataclass

from nmsolve.pattern import Pattern
from nmsolve.table import extent, shortened, table
from nmsolve.torch.weights.coverage import Coverage
from nmsolve.torch.weights.entries import Entries

#: Samples per column below which errors on the calibration say little about others.
ENOUGH = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReconstruction:
    """The errors of a pruned layer's outputs, against the dense one's.

    Attributes
    ----------
    path : str
        The weight's path; `name` is the same.
    pattern : Pattern
    shape : tuple of int
        The weight's.
    before, after : float or None
        ‖Y − X Wᵀ‖² / ‖Y‖² over the calibration inputs that weights were fitted to: of the weights
        that are masked by the scores (`adaprune_`'s criterion by default) and otherwise as they
        were, and of the new ones. None where the calibration did not reach the layer.
    held_out_before, held_out_after : float or None
        The same over the tenth of the calibration that nothing was fitted to, which tells more;
        None where there is none.
    samples : int
        Rows of X: tokens, or output positions.
    columns : int
        Of X. Fewer than `ENOUGH` samples per column are warned of.
    method : str
        The way to the weights that did best on held-out inputs.
    iterations : int
        Of the update.
    residual : float or None
        Of the normal equations on the mask, relative to their right-hand side, the largest of any
        row; None where they were not solved.
    damping : float
        δ.
    seconds : float
        For this layer, with its share of running the model.
    reason : str or None
        Why the layer got a mask by magnitude and nothing else; None where it did not.

    Notes
    -----
    Behind batch norms, X is normalised by the statistics from before: new ones are estimated when
    all layers have been pruned.
    """

    path: str
    pattern: Pattern
    shape: tuple[int, ...]
    before: float | None
    after: float | None
    held_out_before: float | None
    held_out_after: float | None
    samples: int
    columns: int
    method: str
    iterations: int
    residual: float | None
    damping: float
    seconds: float
    reason: str | None = None

    @property
    def name(self) -> str:
        """The weight's path."""
        return self.path

    @property
    def enough(self) -> bool:
        """True if errors on the calibration say something about others."""
        return self.samples >= ENOUGH * self.columns


class Reconstruction(Entries[LayerReconstruction]):
    """One entry for each pruned layer, in the order in which they were pruned, to be looked up by
    index or by path. Prints as a table.

    Attributes
    ----------
    layers : tuple of LayerReconstruction
    batch_norms : int
        Number of batch norms whose statistics were estimated again: those after a pruned layer.
    way : str
        How the calibration went through the model.
    notes : tuple of str
        What makes the result worse than it looks, if anything does.
    coverage : Coverage
        The share of the model's parameters that the plan is about.
    """

    def __init__(
        self,
        layers: tuple[LayerReconstruction, ...],
        batch_norms: int,
        way: str,
        notes: tuple[str, ...],
        coverage: Coverage,
    ) -> None:
        super().__init__(layers)
        self.batch_norms = batch_norms
        self.way = way
        self.notes = notes
        self.coverage = coverage

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
            "held out before",
            "after",
            "method",
            "iterations",
            "damping",
            "seconds",
        )
        rows = [
            (
                shortened(layer.path),
                extent(layer.shape),
                str(layer.pattern),
                _number(layer.before),
                _number(layer.after),
                _number(layer.held_out_before),
                _number(layer.held_out_after),
                layer.method if layer.reason is None else f"{layer.method}: {layer.reason}",
                str(layer.iterations),
                f"{layer.damping:.3g}",
                f"{layer.seconds:.3g}",
            )
            for layer in self.layers
        ]
        lines = [table(head, rows, {3, 4, 5, 6, 8, 9, 10}), f"calibration: {self.way}", *self.notes]
        if self.batch_norms:
            lines.append(f"statistics of {self.batch_norms} batch norms estimated anew")
        return "\n".join([*lines, str(self.coverage)])

    def __repr__(self) -> str:
        return f"<Reconstruction: {len(self)} layers>"


def _number(error: float | None) -> str:
    return "-" if error is None else f"{error:.4g}"
