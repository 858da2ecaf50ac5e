"""Budgets for a choice of patterns: kept weights, multiply-adds, or measured seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real

from nmsolve.errors import InputError
from nmsolve.pattern import Pattern


@dataclass(frozen=True, slots=True)
class Params:
    """At most `limit` kept weights over the planned layers.

    Attributes
    ----------
    limit : int

    Raises
    ------
    InputError
        If the limit is no positive number, or a share of the weights.

    Examples
    --------
    >>> Params(2_000_000).limit
    2000000
    """

    limit: int

    def __post_init__(self) -> None:
        _check_limit(self, self.limit, "kept weights")


@dataclass(frozen=True, slots=True)
class FLOPs:
    """At most `limit` multiply-adds of planned weights, for the example inputs that they are
    counted with.

    A kept weight costs one per token, or one per output position of a convolution; biases, norms
    and the scores of attention are not counted.

    Attributes
    ----------
    limit : int

    Raises
    ------
    InputError
        If the limit is no positive number, or a share of the multiply-adds.

    Examples
    --------
    >>> FLOPs(227_000_000).limit
    227000000
    """

    limit: int

    def __post_init__(self) -> None:
        _check_limit(self, self.limit, "multiply-adds")


@dataclass(frozen=True, slots=True)
class Latency:
    """At most `limit` seconds (or whatever unit the table is in) over the planned layers, by a
    table of measured ones.

    Attributes
    ----------
    table : mapping
        Layer path → pattern → time; "dense" for the layer without a pattern.
    limit : float
        In the table's unit.

    Raises
    ------
    InputError
        If the limit is no positive number.

    Examples
    --------
    >>> Latency({"fc": {"2:4": 1.1e-4, "dense": 1.9e-4}}, limit=1.5e-4).limit
    0.00015
    """

    table: Mapping[str, Mapping[Pattern | str, float]]
    limit: float

    def __post_init__(self) -> None:
        _check_limit(self, self.limit, "seconds")


Budget = Params | FLOPs | Latency


def _check_limit(budget: object, limit: object, unit: str) -> None:
    """InputError unless a limit is a positive number; NumPy's numbers become Python's."""
    name = type(budget).__name__
    try:
        number = (
            math.nan if isinstance(limit, bool) or not isinstance(limit, Real) else float(limit)
        )
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or number <= 0:
        form = "Latency(table, limit) takes" if name == "Latency" else f"{name} takes"
        got = f"a {type(limit).__name__}" if isinstance(limit, Mapping) else repr(limit)
        raise InputError(f"{form} a positive number of {unit}, got {got}")
    limit = int(limit) if isinstance(limit, Integral) else number
    object.__setattr__(budget, "limit", limit)  # NumPy's numbers as Python's
    if name != "Latency" and limit < 1:
        raise InputError(
            f"{name} counts {unit}, and {limit!r} is less than one: a share of the model is "
            f"{limit!r} × its number"
        )
