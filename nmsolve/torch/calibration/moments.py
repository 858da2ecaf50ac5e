"""Second moments of a layer's inputs and of its wanted outputs: all that least squares needs of the
calibration.

For inputs X and wanted outputs Y they are XᵀX, YᵀX and the row sums of Y², so that memory does not
depend on the number of samples, and ‖Y − X Wᵀ‖² = Σ Y² − 2 ⟨YᵀX, W⟩ + ⟨W XᵀX, W⟩. In float64, for
that is a difference of large numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nmsolve.geometry import Geometry
from nmsolve.torch.calibration.activations import Use, check_reached, run_watched
from nmsolve.torch.calibration.inputs import Calibration, check_finite
from nmsolve.torch.weights.layer_plan import PlannedWeight
from nmsolve.torch.weights.planned import layout_of


@dataclass(slots=True)
class Moments:
    """Sums over samples that state a least-squares problem, in float64.

    Attributes
    ----------
    gram : (parts, cols, cols) Tensor
        XᵀX.
    cross : (parts, rows, cols) Tensor
        YᵀX.
    energy : (parts, rows) Tensor
        Σ Y².
    """

    gram: Tensor
    cross: Tensor
    energy: Tensor

    @classmethod
    def empty(cls, weight: Tensor) -> Moments:
        """Return moments of no samples, for weights (parts, rows, cols)."""
        parts, rows, cols = weight.shape
        kind: dict[str, Any] = {"dtype": torch.float64, "device": weight.device}
        return cls(
            torch.zeros(parts, cols, cols, **kind),
            torch.zeros(parts, rows, cols, **kind),
            torch.zeros(parts, rows, **kind),
        )

    @classmethod
    def of_dense(cls, gram: Tensor, weight: Tensor) -> Moments:
        """Return moments whose wanted outputs are those of weights (parts, rows, cols) in float64
        for the same inputs.
        """
        cross = weight @ gram
        return cls(gram, cross, (cross * weight).sum(-1))

    def add(self, part: int, inputs: Tensor, outputs: Tensor) -> None:
        """Add samples of a part: inputs (samples, cols), outputs (samples, rows), in float64."""
        self.gram[part].addmm_(inputs.T, inputs)
        self.cross[part].addmm_(outputs.T, inputs)
        self.energy[part] += outputs.square().sum(0)

    def error(self, weight: Tensor) -> Tensor:
        """Return ‖Y − X Wᵀ‖² of each row of weights (parts, rows, cols) in float64: (parts, rows),
        not below zero.
        """
        return (self.energy + ((weight @ self.gram - 2 * self.cross) * weight).sum(-1)).clamp(min=0)


def gram_matrices(
    model: nn.Module,
    entries: Sequence[PlannedWeight],
    calibration: Calibration,
    progress: bool | None = None,
) -> dict[str, Tensor]:
    """Return XᵀX of the inputs of each planned weight, (parts, cols, cols) in float64, by path.

    The model is run as it is: the caller decides about training mode and gradients.

    Raises
    ------
    InputError
        If an input is not finite or a layer is never reached, naming the layer; if the model cannot
        be run.
    """
    layouts: dict[str, Geometry] = {}
    grams: dict[str, Tensor] = {}
    by_path = {entry.path: entry for entry in entries}

    def add(path: str, use: Use, item: int) -> None:
        layout = layouts.setdefault(path, layout_of(by_path[path], use.module))
        for part, x in use.matrices():
            check_finite(x, f"the input of layer {path}", item)
            if path not in grams:
                grams[path] = torch.zeros(
                    layout.parts, x.shape[1], x.shape[1], dtype=torch.float64, device=x.device
                )
            wide = x.double()
            grams[path][part].addmm_(wide.T, wide)

    run_watched(model, entries, calibration, add, "inputs of layers", progress)
    reached = {by_path[path].owner: path for path in grams}
    check_reached(entries, reached, "the calibration")
    for entry in entries:  # a use of a shared weight that is not reached adds nothing to the others
        grams.setdefault(entry.path, torch.zeros_like(grams[reached[entry.owner]]))
    return grams
