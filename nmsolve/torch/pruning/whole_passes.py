"""Pruning by passes of all items through the whole model, two for each stage of layers: for models
whose forwards cannot run side by side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from torch import nn

from nmsolve.torch.calibration.inputs import Calibration
from nmsolve.torch.pruning.collect import collect
from nmsolve.torch.pruning.gathered import Gathered, Gathering
from nmsolve.torch.pruning.pruned_layer import PrunedLayer
from nmsolve.torch.pruning.stages import stages_of


def prune_by_passes(
    model: nn.Module,
    order: Sequence[PrunedLayer],
    items: Calibration,
    step: Callable[[PrunedLayer, Gathered, float], None],
    how: Gathering,
) -> None:
    """Call step(layer, gathered, seconds) for every layer, in their order.

    Parameters
    ----------
    model, items, step, how
        As for `prune_side_by_side`.
    order : sequence of PrunedLayer
        As the calibration comes to them. Copies of their dense weights are kept until the end.
    """
    for layer in order:
        layer.keep_dense()
    for stage in stages_of(order, how.sequential):
        began = time.perf_counter()
        found = collect(model, stage, order, items, how)
        share = (time.perf_counter() - began) / len(stage)
        for layer in stage:
            with layer.at_work():
                step(layer, found.pop(layer.entry.owner), share)
