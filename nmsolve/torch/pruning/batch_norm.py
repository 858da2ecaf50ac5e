"""Statistics of batch norms, estimated anew after weights have changed."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nmsolve.torch.calibration.inputs import Calibration, run, run_all

#: Running mean, running variance, and the number of batches, where a norm counts them.
Statistics = dict[_BatchNorm, tuple[Tensor | None, ...]]


def estimate_anew(model: nn.Module, calibration: Calibration, progress: bool | None) -> Statistics:
    """The statistics that batch norms would have from the calibration: the plain mean over its batches.

    The rest of the model runs as it is set, in eval mode. What a batch norm is given has been through those before it, which
    normalise by the batch's own statistics meanwhile, as in training. Norms are left with their new statistics, for the caller to
    keep or to undo.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]
    if not norms:
        return {}
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean
            norm.training = True
        run_all(calibration, lambda item, index: run(model, item, index), "batch norms", progress)
        return {norm: tuple(None if s is None else s.clone() for s in _of(norm)) for norm in norms}
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.training = False


def put(statistics: Statistics) -> None:
    """Make these the statistics of the norms."""
    for norm, values in statistics.items():
        for own, value in zip(_of(norm), values, strict=True):
            if own is not None and value is not None:
                own.copy_(value)


def _of(norm: _BatchNorm) -> tuple[Tensor | None, ...]:
    return norm.running_mean, norm.running_var, norm.num_batches_tracked
