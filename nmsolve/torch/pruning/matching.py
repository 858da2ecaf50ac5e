"""A pattern for each layer of a model that is unstructured-sparse already: `matching_plan`."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from nmsolve.errors import InputError
from nmsolve.pattern import Pattern
from nmsolve.torch.options import is_number
from nmsolve.torch.weights.layer_plan import LayerPlan, Plan, PlannedWeight
from nmsolve.torch.weights.parameters import parameters_of
from nmsolve.torch.weights.planned import planned_modules
from nmsolve.torch.weights.planning import plan as make_plan


def matching_plan(
    model: nn.Module,
    *,
    m: int = 8,
    confidence: float = 0.95,
    transposable: bool = False,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] = (),
    padding: str = "skip",
) -> Plan:
    r"""Choose n for each layer of an unstructured-sparse model, so that few groups of m lose a
    nonzero weight.

    .. math:: n = m - \max \{ k : \Pr[\mathrm{Bin}(m, z) \ge k] > c \},
        \quad z \text{ the share of zeros in the layer}

    If zeros lay independently, a share c of all groups would have at least m − n zeros, and keep
    all that they have.

    Parameters
    ----------
    model : nn.Module
        With exact zeros in its weights.
    m : int
        Length of a group.
    confidence : float
        c, between 0 and 1.
    transposable : bool
        n:mT in place of n:m. The rule looks at groups, not at blocks.
    include, exclude, padding
        As for `nmsolve.torch.plan`.

    Returns
    -------
    Plan
        Layers with n = m stay dense, with the reason.

    Raises
    ------
    PatternError, InputError
        If m is no length of a group, the confidence does not lie between 0 and 1, or no weight can
        have groups of m.

    References
    ----------
    Hubara et al., Accelerated sparse neural training, NeurIPS 2021, section 5; the rule is in the
    released code (AdaPrune).

    Examples
    --------
    >>> layer = nn.Linear(64, 64)
    >>> kept = torch.rand(64, 64, generator=torch.Generator().manual_seed(0)) > 0.75
    >>> _ = layer.weight.data.mul_(kept)
    >>> str(matching_plan(nn.Sequential(layer), m=8).planned[0].pattern)
    '4:8'
    """
    if not (is_number(confidence) and 0 < confidence < 1):
        raise InputError(f"confidence must lie between 0 and 1, such as 0.95, got {confidence!r}")
    fits = make_plan(
        model,
        Pattern(1, m, transposable=transposable),
        include=include,
        exclude=exclude,
        padding=padding,
    )
    if not fits.planned:
        raise InputError(f"no weight can have groups of {m}:\n{fits}")
    zeros = {}
    for entry, module in zip(fits.planned, planned_modules(model, fits), strict=True):
        weight = parameters_of(module)[entry.parameter].detach()
        zeros[entry.path] = 1 - int(torch.count_nonzero(weight)) / weight.numel()
    return Plan(
        _matched(entry, zeros[entry.path], m, confidence, transposable)
        if isinstance(entry, PlannedWeight)
        else entry
        for entry in fits
    )


def _matched(
    entry: PlannedWeight, zeros: float, m: int, confidence: float, transposable: bool
) -> LayerPlan:
    """The weight with the pattern for its share of zeros, or dense."""
    pattern = _pattern(zeros, m, confidence, transposable)
    if pattern is None:
        return entry.skipped(f"stays dense: {zeros:.0%} zeros are too few for groups of {m}")
    return entry.with_pattern(pattern)


def _pattern(zeros: float, m: int, confidence: float, transposable: bool) -> Pattern | None:
    """The pattern for a share of zeros; None where that keeps all."""
    at_least = zeros**m  # Pr[Bin(m, z) ≥ k], from k = m down
    for k in range(m - 1, 0, -1):  # one weight at least is kept
        at_least += math.comb(m, k) * zeros**k * (1 - zeros) ** (m - k)
        if at_least > confidence:
            return Pattern(m - k, m, transposable=transposable)
    return None
