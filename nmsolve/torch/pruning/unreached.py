"""Layers that no calibration input comes to: masks by magnitude, with the reason."""

from __future__ import annotations

import torch

from nmsolve.torch.pruning.dense_copies import DenseCopies
from nmsolve.torch.pruning.pruned_layer import PrunedLayer
from nmsolve.torch.pruning.reconstruction import LayerReconstruction
from nmsolve.torch.weights.planned import solve_mask


def masked_by_magnitude(layer: PrunedLayer, copies: DenseCopies) -> LayerReconstruction:
    """Put the mask of largest magnitudes on a layer's weight; return its entry in the report."""
    entry = layer.entry
    mask = solve_mask(entry, layer.own, None, "exact")
    copies.keep([layer.own])
    layer.own.copy_(torch.where(mask, layer.own, 0))
    layer.pruned = True
    return LayerReconstruction(
        path=entry.path,
        pattern=entry.pattern,
        shape=entry.shape,
        before=None,
        after=None,
        held_out_before=None,
        held_out_after=None,
        samples=0,
        columns=layer.layout.matrices(layer.own).shape[-1],
        method="magnitude",
        iterations=0,
        residual=None,
        damping=0.0,
        seconds=0.0,
        reason="never reached by the calibration",
    )
