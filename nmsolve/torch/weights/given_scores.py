"""Scores that the user gives by layer, looked up and checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from nmsolve.errors import InputError
from nmsolve.torch.tensors import check_tensor
from nmsolve.torch.weights.layer_plan import PlannedWeight


def scores_for(entry: PlannedWeight, scores: Mapping[str, Tensor]) -> Tensor:
    """Return a planned weight's scores.

    Raises
    ------
    InputError
        If there are none, or of another shape, naming the layer.
    """
    path = entry.path if entry.path in scores else entry.owner
    if path not in scores:
        known = ", ".join(list(scores)[:3]) + (", …" if len(scores) > 3 else "")
        raise InputError(
            f"there are no scores for layer {entry.path} (there are some for "
            f"{known or 'no layer'}): score the model that is planned, without excluding what the "
            "plan has"
        )
    found = scores[path]
    if not isinstance(found, Tensor) or tuple(found.shape) != entry.shape:
        what = (
            f"have shape {tuple(found.shape)}"
            if isinstance(found, Tensor)
            else f"are a {type(found).__name__}"
        )
        raise InputError(
            f"the scores for layer {entry.path} {what}, its weight has shape {entry.shape}: each "
            "weight needs one"
        )
    return check_tensor(found, f"scores for layer {entry.path}", "a mask")


def check_scores(entries: Iterable[PlannedWeight], scores: object) -> None:
    """Raise InputError unless every planned weight has scores."""
    if not isinstance(scores, Mapping):
        raise InputError(
            "scores map layer paths to tensors, as nmt.scores.activation(model, calibration) "
            f"does, got a {type(scores).__name__}"
        )
    for entry in entries:
        scores_for(entry, scores)
