"""Gram matrices of the inputs of layers, for losses by layer: of the model as it is, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nmsolve.geometry import Geometry
from nmsolve.torch.calibration.activations import Use, check_reached, run_watched
from nmsolve.torch.calibration.inputs import Calibration, check_finite
from nmsolve.torch.calibration.padding import Padding
from nmsolve.torch.weights.layer_plan import PlannedWeight
from nmsolve.torch.weights.planned import layout_of


def gram_matrices(
    model: nn.Module,
    entries: Sequence[PlannedWeight],
    calibration: Calibration,
    padding: Padding,
    progress: bool | None = None,
) -> dict[str, Tensor]:
    """Return XᵀX of the inputs of each planned weight, of the rows that are no padding, (parts,
    cols, cols) in float64, by path.

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

    run_watched(model, entries, calibration, add, "inputs of layers", progress, padding)
    reached = {by_path[path].owner: path for path in grams}
    check_reached(entries, reached, "the calibration")
    for entry in entries:  # a use of a shared weight that is not reached adds nothing to the others
        grams.setdefault(entry.path, torch.zeros_like(grams[reached[entry.owner]]))
    return grams
