"""Damping by the error on held-out inputs."""

from __future__ import annotations

from collections.abc import Callable

from nmsolve.torch.pruning.problem import Problem, Solution

#: By how much relative errors on held-out inputs may exceed those on fitted ones before more
#: damping is tried, by which factor, and how often.
_OVERFITTED, _FACTOR, _TIMES = 1.2, 10.0, 4


def with_damping(
    problem: Problem, damping: float, fit: Callable[[float, Solution | None], Solution]
) -> Solution:
    """Return fit(damping, None), or fit(more damping, that) where errors on held-out inputs are
    well above those on fitted ones and get lower with it.
    """
    best = fit(damping, None)
    shares = problem.shares(best.weight)
    for _ in range(_TIMES):
        error = shares.held_out
        if error is None or not damping or error <= _OVERFITTED * shares.fitted:
            break
        damping *= _FACTOR
        other = fit(damping, best)
        if not problem.shares(other.weight).judged < error:
            break
        best, shares = other, problem.shares(other.weight)
    return best
