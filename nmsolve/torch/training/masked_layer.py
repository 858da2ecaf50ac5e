"""A planned weight while it is trained: where it is now, and its mask solved anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nmsolve.errors import InputError, NMSolveError
from nmsolve.torch.masks import solve
from nmsolve.torch.weights.layer_kinds import for_solver, from_solver
from nmsolve.torch.weights.masked import Masked, masked_parameters, original
from nmsolve.torch.weights.planning import LayerPlan
from nmsolve.torch.weights.sharding import anywhere, gathered, is_sharded, local
from nmsolve.validate import thread_count

#: What a mask maximises, from a weight and its gradient (None before the first step).
Score = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(slots=True, eq=False)
class MaskedLayer:
    """A weight with its mask.

    entry : its plan. module : whose parameter it is. tied : further modules that hold the same
    parameter, each after its plan.
    """

    entry: LayerPlan
    module: nn.Module
    masked: Masked
    tied: list[tuple[LayerPlan, nn.Module]] = field(default_factory=list)

    @property
    def path(self) -> str:
        """The weight's path in the model."""
        return self.entry.path

    @property
    def has_mask(self) -> bool:
        """Whether the mask is still on it."""
        return masked_parameters(self.module).get(self.entry.parameter) is self.masked

    @property
    def parameter(self) -> Tensor:
        """The dense parameter as it is now: FSDP replaces it."""
        return original(self.module, self.entry.parameter)

    @property
    def weight(self) -> Tensor:
        """The dense weight on this rank, outside autograd."""
        return local(self.parameter.detach())

    @property
    def gradient(self) -> Tensor | None:
        """Its gradient on this rank."""
        gradient = self.parameter.grad
        return None if gradient is None else local(gradient)


def rate_of(layer: MaskedLayer, group: dict[str, Any]) -> float:
    """The learning rate of an optimizer's group."""
    if group.get("lr") is None:
        raise InputError(
            f"layer {layer.path}: its optimizer has no learning rate (lr=None), which this method "
            "goes by: give it one (Adafactor: lr=1e-3, relative_step=False)"
        )
    return float(group["lr"])


def solve_mask(
    entry: LayerPlan, weight: Tensor, scores: Tensor | None, solver: str, threads: int | None = None
) -> Tensor:
    """The best mask of a weight, of its shape; errors name the layer."""
    assert entry.pattern is not None
    assert entry.axis is not None
    if not weight.numel():  # this rank holds no row of it
        return torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
    given = None if scores is None else for_solver(scores, entry.axis)
    try:
        result = solve(
            for_solver(weight, entry.axis),
            entry.pattern,
            given,
            solver,
            None,
            threads,
            entry.padding,
        )
    except NMSolveError as error:
        raise type(error)(f"layer {entry.path}: {error}") from error
    return from_solver(result.mask, entry.axis, weight.dim())


def scores_of(
    entry: LayerPlan, weight: Tensor, gradient: Tensor | None, score: str | Score
) -> Tensor | None:
    """What a mask maximises instead of |W|, if anything."""
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


def _solve_all(layers: Sequence[MaskedLayer], solver: str, score: str | Score) -> list[Tensor]:
    """This rank's parts of the best masks. On a CPU layers side by side, for one of usual size is
    too small for several threads.
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
        return [solve_mask(layer.entry, w, s, solver) for layer, w, s in work]
    with ThreadPoolExecutor(workers) as pool:
        largest_first = sorted(range(len(work)), key=lambda i: -weights[i].numel())
        futures = {
            i: pool.submit(solve_mask, layers[i].entry, weights[i], scores[i], solver, 1)
            for i in largest_first
        }
    return [futures[i].result() for i in range(len(work))]


def refresh(layers: Sequence[MaskedLayer], solver: str, score: str | Score) -> None:
    """Solve the masks of all these layers anew, and exchange them only if every one could be
    solved, on every rank.

    Raises
    ------
    InputError
        If a weight is not finite, naming the layer; all masks and counters are then as they were.
    """
    with together(layers):
        try:
            parts = _solve_all(layers, solver, score)
        except InputError as error:
            raise _not_finite(layers) or error from None
    exchange(layers, parts)


def diverged(layer: MaskedLayer, what: str) -> InputError:
    """The error for a layer that has numbers that are not finite: during training another remedy
    helps than the solver's.
    """
    return InputError(
        f"layer {layer.path}: {what}. Masks and counters are as before this step, but the "
        "optimizer has changed the weights: resume from the last checkpoint, with a lower learning "
        "rate or with gradients clipped"
    )


def _not_finite(layers: Sequence[MaskedLayer]) -> InputError | None:
    """The error for the first weight that is not finite, if one is."""
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
    """Errors inside are errors on every rank: one that raised while others gather would leave them
    waiting.
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
