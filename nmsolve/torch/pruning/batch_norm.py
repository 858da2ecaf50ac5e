"""Statistics of batch norms, estimated again after weights have changed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from nmsolve.errors import InputError
from nmsolve.torch.calibration.activations import Use, watched
from nmsolve.torch.calibration.inputs import Calibration, Item, run, run_all
from nmsolve.torch.weights.layer_plan import PlannedWeight

BatchNorm = _BatchNorm

#: Running mean, running variance, and the number of batches, where a norm counts them.
Statistics = dict[BatchNorm, tuple[Tensor | None, ...]]


def estimate_again(
    model: nn.Module,
    norms: Sequence[BatchNorm],
    entries: Sequence[PlannedWeight],
    calibration: Calibration,
    progress: bool | None,
) -> Statistics:
    """Return the statistics that batch norms would have from the calibration, of those to which it
    comes after any of some weights: the plain mean over its batches.

    The rest of the model runs as it is set, in eval mode. The inputs of a batch norm have been
    through those before it, which normalise by the batch's own statistics meanwhile, as in
    training. All are left with what they have counted: the caller undoes that, and puts (`put`)
    the statistics that are wanted.

    Raises
    ------
    InputError
        If an item gives such a norm one value per channel, naming both.
    """
    if not norms:
        return {}
    names = {module: name for name, module in model.named_modules()}
    momenta = [norm.momentum for norm in norms]
    started: list[BatchNorm] = []
    behind, at = False, 0

    def seen(path: str, use: Use) -> None:
        nonlocal behind
        behind = behind or all(x.numel() for x in use.inputs)

    def normed(norm: BatchNorm, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["input"]
        norm.training = behind and bool(x.numel())
        if not norm.training:
            return
        check_normed(x, names[norm], at)
        if norm not in started:
            started.append(norm)
            norm.reset_running_stats()

    def each(item: Item, index: int) -> None:
        nonlocal behind, at
        behind, at = False, index
        run(model, item, index)

    try:
        with ExitStack() as hooks:
            for norm in norms:
                norm.momentum = None  # a plain mean
                hooks.callback(norm.register_forward_pre_hook(normed, with_kwargs=True).remove)
            hooks.enter_context(watched(model, entries, seen))
            run_all(calibration, each, "batch norms", progress)
        return statistics_of(started)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.training = False


def check_normed(x: Tensor, name: str, index: int) -> None:
    """Raise InputError if an item gives a batch norm one value per channel, from which no variance
    can be estimated.
    """
    if x.numel() and x.numel() == x.shape[1]:
        raise InputError(
            f"batch norm {name} is given one value a channel by calibration item {index}, which "
            "has no variance to estimate its statistics anew with: give larger batches"
        )


def norms_of(model: nn.Module) -> list[BatchNorm]:
    """Return the batch norms that normalise by running statistics."""
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    return [
        norm for norm in norms if norm.running_mean is not None and not is_lazy(norm.running_mean)
    ]


def statistics_of(norms: list[BatchNorm]) -> Statistics:
    """Return a copy of the statistics of norms."""
    return {norm: tuple(None if s is None else s.clone() for s in _of(norm)) for norm in norms}


def put(statistics: Statistics) -> None:
    """Make these the statistics of the norms."""
    for norm, values in statistics.items():
        for own, value in zip(_of(norm), values, strict=True):
            if own is not None and value is not None:
                own.copy_(value)


def _of(norm: BatchNorm) -> tuple[Tensor | None, ...]:
    return norm.running_mean, norm.running_var, norm.num_batches_tracked
