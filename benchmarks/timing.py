"""Interleaved timing: cases take turns (A B C A B C …), so that a slow moment of the machine hits
all of them alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

import nmsolve
from benchmarks.settings import Settings


class WrongResult(Exception):
    """A timed call returned something that its verification refuses. There is no time for a wrong
    answer.
    """


@dataclass(frozen=True)
class Case:
    """One thing to time: `run` is timed; `check` raises WrongResult (or an error of nmsolve's) if
    what it returned is wrong.
    """

    name: str
    weights: int
    run: Callable[[], Any]
    check: Callable[[Any], None]


@dataclass(frozen=True)
class Timed:
    """Seconds of every repetition of a case, and what it returned."""

    weights: int
    seconds: tuple[float, ...]
    output: Any

    @property
    def rate(self) -> float:
        """Million weights a second, at the median."""
        return self.weights / median(self.seconds) / 1e6


def interleave(cases: Iterable[Case], settings: Settings) -> dict[str, Timed]:
    """Time the cases in turns, after a warm-up whose outputs are verified; later ones must equal
    these bit for bit.
    """
    cases = list(cases)
    first = {}
    for case in cases:
        first[case.name] = case.run()
        case.check(first[case.name])
    times: dict[str, list[float]] = {case.name: [] for case in cases}
    began, rounds = time.perf_counter(), 0
    while rounds < settings.rounds or (
        rounds < settings.most_rounds and time.perf_counter() - began < settings.seconds
    ):
        for case in cases:
            start = time.perf_counter()
            output = case.run()
            times[case.name].append(time.perf_counter() - start)
            if not _same(output, first[case.name]):
                raise WrongResult(f"{case.name}: two runs returned different masks")
        rounds += 1
    return {
        case.name: Timed(case.weights, tuple(times[case.name]), first[case.name]) for case in cases
    }


def _same(left: Any, right: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(_masks(left), _masks(right), strict=True))


def _masks(output: Any) -> list[NDArray[Any]]:
    """The arrays in what a case returned: a MaskResult, an array, or several of them."""
    if isinstance(output, nmsolve.MaskResult):
        return [np.asarray(output.mask)]
    if isinstance(output, np.ndarray):
        return [output]
    return [array for part in output for array in _masks(part)]


def check_result(result: nmsolve.MaskResult, weights: ArrayLike) -> None:
    """Verify a result from scratch. One of an exact method must be proven optimal."""
    result.verify(weights)
    if result.method == "exact" and result.status is not nmsolve.Status.OPTIMAL:
        raise WrongResult(f"{result} is not proven optimal")


def solve_case(
    name: str, weights: NDArray[Any], pattern: str, method: str = "exact", threads: int = 1
) -> Case:
    """A call of `nmsolve.solve`."""
    return Case(
        name,
        weights.size,
        lambda: nmsolve.solve(weights, pattern, method=method, threads=threads),
        lambda result: check_result(result, weights),
    )


def copy_case(name: str, weights: NDArray[Any]) -> Case:
    """np.copyto into an array that exists already: the floor that memory traffic sets."""
    destination = np.empty_like(weights)

    def run() -> NDArray[Any]:
        np.copyto(destination, weights)
        return destination

    def check(copy: NDArray[Any]) -> None:
        if not np.array_equal(copy, weights):
            raise WrongResult(f"{name}: the copy differs")

    return Case(name, weights.size, run, check)
