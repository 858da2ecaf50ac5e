"""Remarks of a report on what makes a result worse than it looks."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

from nmsolve.torch.calibration.padding import Padding
from nmsolve.torch.pruning.reconstruction import LayerReconstruction


def notes_on(
    layers: Sequence[LayerReconstruction], padding: Padding, heads: Sequence[str]
) -> tuple[str, ...]:
    """Return what makes a result worse than it looks; warn of layers that were not reached, and of
    padding that counts.
    """
    notes = []
    missing = [layer.path for layer in layers if layer.reason is not None]
    if missing:
        notes.append(
            f"the calibration never reached {_listed(missing)}: masked by magnitude, weights not "
            "adjusted; give inputs that reach them, or leave them out (exclude=…)"
        )
        warnings.warn(notes[0], stacklevel=_to_the_caller())
    few = [layer for layer in layers if layer.reason is None and not layer.enough]
    if few:
        least = min(few, key=lambda layer: layer.samples / layer.columns)
        notes.append(
            f"{len(few)} layer{'s' * (len(few) > 1)} got fewer than 5 samples per input, "
            f"{least.path} the fewest ({least.samples} for {least.columns} inputs): errors on "
            "held-out inputs are what counts, and more calibration lowers them"
        )
    if heads:
        notes.append(
            f"the head of the language model, {_listed(heads)}, is left dense: name it in the "
            "patterns to prune it, or pass a plan"
        )
    if padding.remark:
        padding.warn(stacklevel=_to_the_caller())
        notes.append(padding.remark)
    return tuple(notes)


def _listed(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
    return f"layer{'s' * (len(paths) > 1)} {', '.join(paths[:5])}{more}"


def _to_the_caller() -> int:
    """The level of the first function on the stack that is not of this package."""
    level, frame = 1, sys._getframe(1)
    while (
        frame.f_back is not None and str(frame.f_globals.get("__name__")).split(".")[0] == "nmsolve"
    ):
        level, frame = level + 1, frame.f_back
    return level
