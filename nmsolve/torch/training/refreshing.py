"""Masks of planned weights chosen again, all of them or none, and put on.

A rank solves the rows that it holds, and parts are gathered: every rank holds the whole mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

from nmsolve.errors import InputError, NMSolveError
from nmsolve.torch.training.masked_layer import MaskedLayer, diverged
from nmsolve.torch.weights.layer_plan import PlannedWeight
from nmsolve.torch.weights.planned import solve_mask
from nmsolve.torch.weights.sharding import anywhere, gathered, is_sharded
from nmsolve.validate import thread_count

#: A rule for what a mask maximises, from a weight and its gradient (None before the first step).
Score = Callable[[Tensor, Tensor | None], Tensor]


def scores_of(
    entry: PlannedWeight, weight: Tensor, gradient: Tensor | None, score: str | Score
) -> Tensor | None:
    """Return what a mask maximises instead of |W|; None for |W|."""
    if not callable(score):
        return None
    with torch.no_grad():
        scores = score(weight, gradient)
    if not isinstance(scores, Tensor) or scores.shape != weight.shape:
        found = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise InputError(
            f"layer {entry.path}: the score function gave {found} for a weight of shape "
            f"{tuple(weight.shape)}; it scores each"
        )
    return scores


def _solve_all(layers: Sequence[MaskedLayer], mask_method: str, score: str | Score) -> list[Tensor]:
    """Return this rank's parts of the best masks. On a CPU layers are solved side by side, for one
    of usual size is too small for several threads.
    """
    weights = [layer.weight for layer in layers]
    scores = [
        scores_of(layer.entry, w, layer.gradient, score)
        for layer, w in zip(layers, weights, strict=True)
    ]
    work = list(zip(layers, weights, scores, strict=True))
    workers = thread_count(None)
    share = sum(weight.numel() for weight in weights) // workers
    if workers == 1 or any(
        weight.device.type != "cpu" or weight.numel() > share for weight in weights
    ):
        return [solve_mask(layer.entry, w, s, mask_method) for layer, w, s in work]
    with ThreadPoolExecutor(workers) as pool:
        largest_first = sorted(range(len(work)), key=lambda i: -weights[i].numel())
        futures = {
            i: pool.submit(solve_mask, layers[i].entry, weights[i], scores[i], mask_method, 1)
            for i in largest_first
        }
    return [futures[i].result() for i in range(len(work))]


def refresh(layers: Sequence[MaskedLayer], mask_method: str, score: str | Score) -> None:
    """Solve the masks of all these layers again, and exchange them only if every one could be
    solved, on every rank.

    Raises
    ------
    InputError
        If a weight is not finite, naming the layer; all masks and counters are then as they were.
    """
    with together(layers):
        try:
            parts = _solve_all(layers, mask_method, score)
        except InputError as error:
            raise _not_finite(layers) or error from None
    exchange(layers, parts)


def _not_finite(layers: Sequence[MaskedLayer]) -> InputError | None:
    """Return the error for the first weight that is not finite; None if all are finite."""
    for layer in layers:
        weight = layer.weight
        finite = torch.isfinite(weight)
        if not bool(finite.all()):
            index = (~finite).nonzero()[0].tolist()
            return diverged(
                layer,
                f"its weight is not finite any more, {weight[tuple(index)].item()} at {index}",
            )
    return None


@contextmanager
def together(layers: Sequence[MaskedLayer]) -> Iterator[None]:
    """Make errors inside errors on every rank: one that raised while others gather would leave
    them waiting.
    """
    failure: NMSolveError | None = None
    try:
        yield
    except NMSolveError as error:
        failure = error
    sharded = next((layer.parameter for layer in layers if is_sharded(layer.parameter)), None)
    if sharded is not None and anywhere(failure is not None, sharded) and failure is None:
        failure = InputError(
            "masks were not refreshed: another rank could not choose its part, and says why"
        )
    if failure is not None:
        raise failure


def exchange(layers: Sequence[MaskedLayer], parts: Sequence[Tensor]) -> None:
    """Put new masks on layers, of which this rank knows its parts, and count what changed."""
    masks = [gathered(part, layer.parameter) for layer, part in zip(layers, parts, strict=True)]
    for layer, mask in zip(layers, masks, strict=True):
        changed = layer.masked.put(mask)
        progress = layer.masked.progress
        progress.refreshes += 1
        progress.sad = changed
        progress.flips += changed
