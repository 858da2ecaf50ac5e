"""Statistics of batch norms, estimated again after weights have changed."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from nmsolve.torch.calibration.inputs import Calibration, run, run_all

BatchNorm = _BatchNorm

#: Running mean, running variance, and the number of batches, where a norm counts them.
Statistics = dict[BatchNorm, tuple[Tensor | None, ...]]


def estimate_again(
    model: nn.Module, norms: list[BatchNorm], calibration: Calibration, progress: bool | None
) -> Statistics:
    """Return the statistics that these batch norms would have from the calibration: the plain mean
    over its batches, of those that a batch reached.

    The rest of the model runs as it is set, in eval mode. The inputs of a batch norm have been
    through those before it, which normalise by the batch's own statistics meanwhile, as in
    training. All are left with what they have counted: the caller undoes that, and puts (`put`)
    the statistics that are wanted.
    """
    if not norms:
        return {}
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean
            norm.training = True
        run_all(calibration, lambda item, index: run(model, item, index), "batch norms", progress)
        return {
            norm: statistics for norm, statistics in statistics_of(norms).items() if _batches(norm)
        }
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.training = False


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


def _batches(norm: BatchNorm) -> int:
    return 1 if norm.num_batches_tracked is None else int(norm.num_batches_tracked)


def _of(norm: BatchNorm) -> tuple[Tensor | None, ...]:
    return norm.running_mean, norm.running_var, norm.num_batches_tracked
