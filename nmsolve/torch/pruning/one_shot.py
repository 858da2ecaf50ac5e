"""`mask_`: the best masks of a model's weights, baked in as zeros. No training, no calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from nmsolve.errors import SolverError
from nmsolve.selection import Patterns
from nmsolve.torch.masks import verify as verify_tensor
from nmsolve.torch.offload.lent_parameter import is_lent
from nmsolve.torch.pruning.dense_copies import DenseCopies
from nmsolve.torch.pruning.pruned_layer import PrunedLayer, layers_of
from nmsolve.torch.verification import ModelReport, verify
from nmsolve.torch.weights.given_scores import check_scores, scores_for
from nmsolve.torch.weights.layer_plan import Plan
from nmsolve.torch.weights.planned import for_solver, solve_mask
from nmsolve.torch.weights.planning import plan_for


def mask_(model: nn.Module, plan: Plan | Patterns) -> ModelReport:
    r"""Mask a model in one shot: zeros in the planned weights where their best masks drop, in
    place.

    .. math:: W \leftarrow M \circ W, \quad M = \operatorname{argmax}_X \sum_{ij} S_{ij} X_{ij}

    over the masks of the weight's pattern, with S the plan's scores, or |W| where it has none. The
    weights that are kept stay as they are, bit for bit: `adaprune_` and `sparsegpt_` adjust them,
    and `sparsify_` trains them.

    Parameters
    ----------
    model : nn.Module
        Floating-point weights on any device, not sharded, without masks on them.
    plan : Plan, or pattern
        From `nmsolve.torch.plan`, whose `scores` masks then go by; a pattern, or a mapping of globs
        to patterns, means the default plan for it, and magnitudes.

    Returns
    -------
    ModelReport
        What `nmsolve.torch.verify(model, plan)` says of the model as it is now: every layer
        satisfies its pattern.

    Raises
    ------
    InputError, PatternError
        If the plan has nothing to do, is another model's, or lacks scores of a layer; if a weight
        is not finite, sharded, quantized, has a mask on it, or shares memory with a tensor that is
        not the same parameter. The model is then as it was.
    SolverError
        If memory runs out, or a device is lost while masks are solved. Likewise.

    Notes
    -----
    Masks are exact, and those of `sparsify_(model, plan, Fixed()).finalize_()`. A weight that
    several layers share gets one. Parameters stay the same objects on the same memory, so that
    optimizers, hooks and compiled models go on; an optimizer that steps further revives what was
    dropped, since no mask is left on the model.

    All masks are solved before the first zero is written, so no dense weight is copied: beyond the
    model this takes one byte for each planned weight, and what a solve of the largest layer takes.
    Errors and Ctrl-C leave the model as it was. Only a Ctrl-C while the zeros are written, which
    takes no longer than to read the weights once, waits until all of them are: it finds the model
    masked.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    >>> report = mask_(model, "2:4")
    >>> report.ok, report.density, int(model[0].weight.count_nonzero())
    (True, 0.5, 256)
    >>> print(report.coverage)
    covers 768 of 808 parameters (95.0 %)
    """
    plan = plan_for(model, plan)
    layers = layers_of(model, plan)
    if plan.scores is not None:
        check_scores(plan.planned, plan.scores)
    with torch.no_grad():
        if any(is_lent(layer.parameter) for layer in layers):
            _mask_one_by_one(layers, plan.scores)
            return verify(model, plan)
        _write_zeros(layers, [_dropped(layer, plan.scores) for layer in layers])
    return verify(model, plan)


def _dropped(layer: PrunedLayer, scores: Mapping[str, Tensor] | None) -> Tensor:
    """True where the best mask of a weight drops it."""
    entry, weight = layer.entry, layer.own
    given = None if scores is None else scores_for(entry, scores).to(weight.device)
    mask = solve_mask(entry, weight, given, "exact")
    report = verify_tensor(for_solver(mask, entry.axis), entry.pattern, padding=entry.padding)
    if not report:
        raise SolverError(f"layer {entry.path}: the mask does not satisfy its pattern: {report}")
    return mask.logical_not_()


def _mask_one_by_one(layers: Sequence[PrunedLayer], scores: Mapping[str, Tensor] | None) -> None:
    """Masks of weights of which a few are in memory at a time; dense ones are where they came
    from.
    """
    with DenseCopies(None) as copies:
        try:
            for layer in layers:
                copies.keep([layer.parameter])
                layer.parameter.masked_fill_(_dropped(layer, scores), 0)
        except BaseException:
            copies.put_back()
            raise


def _write_zeros(layers: Sequence[PrunedLayer], dropped: Sequence[Tensor]) -> None:
    """Write all of them, come what may: nothing could put dropped weights back."""

    def write() -> None:
        for layer, where in zip(layers, dropped, strict=True):
            layer.parameter.masked_fill_(where, 0)

    try:
        write()
    except BaseException:  # an interrupt: there is nothing here that fails by itself
        write()
        raise
