"""The options of `domino_search`, checked."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import SupportsIndex

from nmsolve.errors import InputError
from nmsolve.torch.allocation.budget import FLOPs, Latency, Params
from nmsolve.torch.options import is_number

POLICIES = ("fixed_m", "fixed_n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """As for `domino_search`, checked by `checked_options`.

    Attributes
    ----------
    m : int
    candidates : tuple of int
        In ascending order, m the last.
    betas : (float, float)
        β1 and β2.
    layerwise : bool
    decay : float
        λ.
    doubling : tuple of int
    lr : float
    penalty_every, check_every : int
    vote : float
    max_steps : int
    """

    m: int
    candidates: tuple[int, ...]
    betas: tuple[float, float]
    layerwise: bool
    decay: float
    doubling: tuple[int, ...]
    lr: float
    penalty_every: int
    check_every: int
    vote: float
    max_steps: int

    def penalty(self, step: int) -> float:
        """Return λ at an iteration, 0 at those without."""
        return (
            0.0
            if step % self.penalty_every
            else self.decay * 2.0 ** sum(step >= milestone for milestone in self.doubling)
        )


def checked_options(
    *,
    m: object,
    candidates: Iterable[int] | None,
    policy: str,
    budget: object,
    betas: tuple[float, float] | None,
    layerwise: bool,
    decay: object,
    doubling: object,
    lr: object,
    penalty_every: object,
    check_every: object,
    vote: object,
    max_steps: object,
) -> Options:
    """Return the options of a search; InputError for those that do not exist."""
    m = _count(m, "m", 2)
    options = Options(
        m=m,
        candidates=_candidates(candidates, m, policy),
        betas=_betas(betas, budget),
        layerwise=layerwise,
        decay=_positive(decay, "decay"),
        doubling=_counts(doubling, "doubling", 0),
        lr=_positive(lr, "lr"),
        penalty_every=_count(penalty_every, "penalty_every"),
        check_every=_count(check_every, "check_every"),
        vote=_positive(vote, "vote"),
        max_steps=_count(max_steps, "max_steps"),
    )
    if options.vote > 1:
        raise InputError(f"vote is a share of the groups, at most 1, got {vote!r}")
    return options


def _candidates(candidates: Iterable[int] | None, m: int, policy: str) -> tuple[int, ...]:
    """The n that a plan may have, in ascending order, with m."""
    if policy not in POLICIES:
        raise InputError(f"policy must be one of {', '.join(map(repr, POLICIES))}, got {policy!r}")
    powers = (2**power for power in range(m.bit_length()))
    given = sorted({*_counts(powers if candidates is None else candidates, "candidates"), m})
    if given[-1] > m or len(given) == 1:
        raise InputError(
            f"candidates are numbers kept of every {m}, some of them smaller than {m}, got "
            f"{candidates!r}"
        )
    odd = [n for n in given if m % n]
    if policy == "fixed_n" and odd:
        raise InputError(
            f"policy='fixed_n' turns n:{m} into 1:({m}/n), and {odd[0]} does not divide {m}: give "
            "other candidates"
        )
    return tuple(given)


def _betas(betas: tuple[float, float] | None, budget: object) -> tuple[float, float]:
    """β1 and β2 for a budget, which is checked with them."""
    if isinstance(budget, Latency):
        raise InputError(
            "domino_search follows kept weights or multiply-adds; a plan under measured times is "
            "nmt.allocate's"
        )
    if not isinstance(budget, Params | FLOPs):
        raise InputError(f"budget must be nmt.Params(…) or nmt.FLOPs(…), got {budget!r}")
    if betas is None:
        return (0.5, 0.5) if isinstance(budget, Params) else (0.8, 0.2)
    try:
        first, second = (float(beta) for beta in betas)
    except (TypeError, ValueError):
        raise InputError(
            f"betas are two numbers, β1 of multiply-adds and β2 of redundancy, got {betas!r}"
        ) from None
    if not (math.isfinite(first + second) and first >= 0 and second >= 0 and first + second > 0):
        raise InputError(f"betas are not negative and not both zero, got {betas!r}")
    return first, second


def _count(number: object, name: str, least: int = 1) -> int:
    """An integer of `least` or more, NumPy's too."""
    try:
        value = (
            operator.index(number)
            if isinstance(number, SupportsIndex) and not isinstance(number, bool)
            else -1
        )
    except TypeError:
        value = -1
    if value < least:
        raise InputError(f"{name} must be an integer ≥ {least}, got {number!r}")
    return value


def _counts(numbers: object, name: str, least: int = 1) -> tuple[int, ...]:
    if not isinstance(numbers, Iterable):
        raise InputError(f"{name} takes several integers ≥ {least}, got {numbers!r}")
    return tuple(_count(number, name, least) for number in numbers)


def _positive(number: object, name: str) -> float:
    if not (is_number(number) and number > 0):
        raise InputError(f"{name} must be a positive number, got {number!r}")
    return float(number)
