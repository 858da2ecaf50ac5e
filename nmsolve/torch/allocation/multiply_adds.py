"""How often each planned weight is multiplied in a run of the model, from the shapes that reach
it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from nmsolve.errors import InputError
from nmsolve.torch.calibration.activations import Use, unreached, watched
from nmsolve.torch.weights.planning import LayerPlan


def positions_of(
    model: nn.Module,
    entries: Sequence[LayerPlan],
    run: Callable[[], Any],
    by: str | None = "the example inputs",
) -> dict[str, float]:
    """By path, how often an entry of each weight is multiplied while run() runs the model: tokens,
    or output positions.

    The multiply-adds of a layer are that times its kept weights. by : what runs the model, for the
    message; None: layers may be left out, at zero.

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
    reached = {entry.owner for entry in entries if found[entry.path]}
    unused = [entry.path for entry in entries if entry.owner not in reached]
    if unused and by is not None:
        raise InputError(unreached(unused, by))
    return found
