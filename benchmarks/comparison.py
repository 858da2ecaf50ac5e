"""Exact speed by score family, and every method beside the exact one: speed, loss against the
optimum, certified gap.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

import nmsolve
from benchmarks import instances
from benchmarks.rivals import RIVALS, Rival
from benchmarks.settings import Settings
from benchmarks.timing import Case, WrongResult, interleave, solve_case

PATTERNS = ("2:4T", "4:8T", "8:16T", "16:32T")
#: Two optima agree to the library's documented tolerance for float32.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Comparison:
    """One method on one pattern, N(0, 1) scores. loss : (optimum − objective) / optimum; gap :
    certified, None without a bound.
    """

    pattern: str
    method: str
    rate: float
    loss: float
    gap: float | None
    weights: int
    exact: bool


def family_rates(settings: Settings) -> Iterator[tuple[str, dict[str, float]]]:
    """For each pattern, Mw/s of the exact solver by family."""
    side = settings.family_side
    matrices = {name: family(side, side) for name, family in instances.FAMILIES.items()}
    for pattern in PATTERNS:
        timed = interleave(
            [solve_case(name, weights, pattern) for name, weights in matrices.items()], settings
        )
        yield pattern, {name: case.rate for name, case in timed.items()}


def compare(settings: Settings) -> Iterator[Comparison]:
    """Every method on every pattern. Slow rivals get fewer blocks, and their loss is against the
    optimum of those.
    """
    weights = instances.normal(settings.side, settings.side)
    small = sample(2**18)
    for pattern in PATTERNS:
        ours = [
            solve_case("nmsolve exact", weights, pattern),
            solve_case("nmsolve greedy", small, pattern, "greedy"),
            solve_case("nmsolve cover", small, pattern, "cover"),
            solve_case("cover, the rule alone", small, f"<={pattern}", "cover"),
        ]
        serving = [
            rival for rival in RIVALS if rival.only_m in (None, nmsolve.Pattern.parse(pattern).m)
        ]
        timed = interleave([*ours, *(rival_case(rival, pattern) for rival in serving)], settings)
        for case in ours:
            result: nmsolve.MaskResult = timed[case.name].output
            best = result.objective if result.method == "exact" else optimum(small.size, pattern)
            loss = (best - result.objective) / best
            yield Comparison(
                pattern,
                case.name,
                timed[case.name].rate,
                loss,
                result.gap,
                case.weights,
                result.method == "exact",
            )
        for rival in serving:
            best, mine = (
                optimum(rival.weights, pattern),
                kept_score(sample(rival.weights), timed[rival.name].output),
            )
            yield Comparison(
                pattern,
                rival.name,
                timed[rival.name].rate,
                (best - mine) / best,
                None,
                rival.weights,
                rival.exact,
            )


def rival_case(rival: Rival, pattern: str) -> Case:
    """A rival on as many N(0, 1) weights as suit it. Its mask must be feasible, and optimal if the
    rival is exact.
    """
    parsed = nmsolve.Pattern.parse(pattern)
    weights = sample(rival.weights)

    def check(mask: NDArray[np.bool_]) -> None:
        report = nmsolve.verify(mask, pattern, at_most=not rival.exactly_n)
        if not report:
            raise WrongResult(f"{rival.name}: {report}")
        score, best = (
            kept_score(weights, mask),
            optimum(rival.weights, pattern, not rival.exactly_n),
        )
        if score > best * (1 + TOLERANCE):
            raise WrongResult(
                f"{rival.name} keeps {score!r}, more than nmsolve's optimum {best!r} for {pattern}"
            )
        if rival.exact and score < best * (1 - TOLERANCE):
            raise WrongResult(
                f"{rival.name} keeps {score!r}, less than the optimum {best!r} for {pattern}"
            )

    return Case(rival.name, weights.size, lambda: rival.solve(weights, parsed.n, parsed.m), check)


@cache
def sample(weights: int) -> NDArray[np.float32]:
    """An N(0, 1) matrix of a power of two of weights."""
    rows = 2 ** (int(math.log2(weights)) // 2)
    return instances.normal(rows, weights // rows)


@cache
def optimum(weights: int, pattern: str, at_most: bool = False) -> float:
    """The verified optimum of `sample(weights)`."""
    result = nmsolve.solve(sample(weights), pattern, at_most=at_most, threads=1)
    result.verify(sample(weights))
    return result.objective


def kept_score(weights: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
    """The float64 sum of kept |weights|."""
    return float(np.abs(weights)[mask].sum(dtype=np.float64))
