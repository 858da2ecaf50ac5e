"""Counts of the products with each planned weight in a run of the model, from the shapes of its
inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from nmsolve.torch.calibration.activations import Use, check_reached, watched
from nmsolve.torch.weights.layer_plan import PlannedWeight


def positions_of(
    model: nn.Module,
    entries: Sequence[PlannedWeight],
    run: Callable[[], Any],
    by: str | None = "the example inputs",
) -> dict[str, float]:
    """Return by path how often an entry of each weight is multiplied while run() runs the model:
    tokens, or output positions.

    The multiply-adds of a layer are that times its kept weights.

    Parameters
    ----------
    model : nn.Module
    entries : sequence of PlannedWeight
    run : function without arguments
    by : str or None
        Description of the run, for the message; None: layers may be left out, at zero.

    Raises
    ------
    InputError
        If a layer is not reached, naming it.
    """
    found = dict.fromkeys((entry.path for entry in entries), 0.0)

    def count(path: str, use: Use) -> None:
        found[path] += use.positions

    with watched(model, entries, count):
        run()
    if by is not None:
        check_reached(entries, {entry.owner for entry in entries if found[entry.path]}, by)
    return found
