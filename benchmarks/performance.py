"""The performance table: what was promised, as ratios within one run, and what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

import nmsolve
import nmsolve.torch as nmt
from benchmarks import instances, processes
from benchmarks.comparison import rival_case
from benchmarks.rivals import KEEP_GREEDY, ORTOOLS
from benchmarks.settings import Settings
from benchmarks.timing import Case, WrongResult, check_result, copy_case, interleave, solve_case

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    target : None for what is shown beside the promises. at_least : whether more is better. rates :
    the Mw/s behind it.
    """

    what: str
    measured: float
    unit: str
    target: float | None
    at_least: bool = True
    rates: dict[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def passed(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        return self.measured >= self.target if self.at_least else self.measured < self.target


def measure(settings: Settings) -> Iterator[Row]:
    """Every row, as it is measured."""
    weights = instances.normal(settings.side, settings.side)
    yield from _enumeration_against_copy(weights, settings)
    yield from _exact_against_flow(weights, settings)
    yield from _exact_against_greedy(weights, settings)
    yield from _ties(settings)
    yield from _rowwise_against_copy(weights, settings)
    for pattern, target in (("4:8T", 1.8), ("2:4T", None), ("8:16T", None)):
        yield from _two_threads(weights, pattern, target, settings)
    yield from _tensors(weights, settings)
    yield from _in_new_processes(settings)


def _rates(cases: list[Case], settings: Settings) -> dict[str, float]:
    return {name: timed.rate for name, timed in interleave(cases, settings).items()}


def _ratio(
    what: str, rates: dict[str, float], over: str, under: str, target: float | None, note: str = ""
) -> Row:
    """The rate of `over` against that of `under`."""
    shown = {name: rates[name] for name in (over, under)}
    return Row(what, rates[over] / rates[under], "×", target, rates=shown, note=note)


def _enumeration_against_copy(weights: Matrix, settings: Settings) -> Iterator[Row]:
    half = weights.astype(np.float16)
    brain = (
        (instances.bf16(*weights.shape).view(np.uint32) >> 16)
        .astype(np.uint16)
        .view(nmsolve.bfloat16)
    )
    wide, narrow = "copy of 4 bytes", "copy of 2 bytes"
    cases = [
        solve_case("float32", weights, "2:4T"),
        copy_case(wide, weights),
        copy_case(narrow, half),
    ]
    cases += [solve_case("bfloat16", brain, "2:4T"), solve_case("float16", half, "2:4T")]
    rates = _rates(cases, settings)
    yield _ratio("2:4T exact, float32 / np.copyto", rates, "float32", wide, 0.40)
    for name in ("bfloat16", "float16"):
        floor = min(0.40 * rates[narrow], rates["float32"])
        note = (
            f"{rates[name] / rates[narrow]:.2f} × copy, {rates[name] / rates['float32']:.2f} × "
            "float32"
        )
        shown = {key: rates[key] for key in (name, narrow, "float32")}
        what = f"2:4T exact, {name} / the less of 0.40 × copy of 2 bytes and float32"
        yield Row(what, rates[name] / floor, "×", 1.0, rates=shown, note=note)


def _exact_against_flow(weights: Matrix, settings: Settings) -> Iterator[Row]:
    for pattern, target in (("4:8T", 150.0), ("8:16T", 50.0), ("16:32T", 34.0)):
        rates = _rates(
            [solve_case("exact", weights, pattern), rival_case(ORTOOLS, pattern)], settings
        )
        yield _ratio(
            f"{pattern} exact / OR-tools, one call a block", rates, "exact", ORTOOLS.name, target
        )


def _exact_against_greedy(weights: Matrix, settings: Settings) -> Iterator[Row]:
    small = instances.normal(1024, 1024)
    cases = [solve_case("exact", weights, "4:8T"), rival_case(KEEP_GREEDY, "4:8T")]
    rates = _rates([*cases, solve_case("nmsolve greedy", small, "4:8T", "greedy")], settings)
    yield _ratio("4:8T exact / keep-greedy", rates, "exact", KEEP_GREEDY.name, 1.0)
    yield _ratio(
        "4:8T exact / nmsolve's greedy",
        rates,
        "exact",
        "nmsolve greedy",
        None,
        "completed to n, with a bound",
    )


def _ties(settings: Settings) -> Iterator[Row]:
    names = ("normal", "bf16", "integers", "zeros")
    matrices = {name: instances.FAMILIES[name](settings.side, settings.side) for name in names}
    rates = _rates(
        [solve_case(name, matrix, "4:8T") for name, matrix in matrices.items()], settings
    )
    yield _ratio("4:8T exact, bf16-rounded / N(0, 1)", rates, "bf16", "normal", 0.95)
    yield _ratio("4:8T exact, integers 0..7 / N(0, 1)", rates, "integers", "normal", 0.5)
    yield _ratio("4:8T exact, 60 % zeros / N(0, 1)", rates, "zeros", "normal", 0.5)


def _rowwise_against_copy(weights: Matrix, settings: Settings) -> Iterator[Row]:
    targets = {"2:4": 0.5, "4:8": 0.4, "8:16": 0.3}
    rates = _rates(
        [
            copy_case("copy", weights),
            *(solve_case(pattern, weights, pattern) for pattern in targets),
        ],
        settings,
    )
    for pattern, target in targets.items():
        yield _ratio(f"{pattern} row-wise / np.copyto", rates, pattern, "copy", target)


def _tensors(weights: Matrix, settings: Settings) -> Iterator[Row]:
    """A tensor and an array on the same memory."""
    tensor = torch.from_numpy(weights)
    brain = tensor.bfloat16()
    bits = brain.view(torch.int16).numpy().view(np.uint16).view(nmsolve.bfloat16)
    pairs = {"float32": (tensor, weights), "bfloat16": (brain, bits)}
    for pattern, name in (("2:4T", "float32"), ("4:8T", "float32"), ("2:4T", "bfloat16")):
        given, array = pairs[name]
        rates = _rates(
            [_tensor_case(given, array, pattern), solve_case("nmsolve.solve", array, pattern)],
            settings,
        )
        what = f"{pattern} {name}, time of nmsolve.torch.solve / of nmsolve.solve"
        yield Row(
            what,
            rates["nmsolve.solve"] / rates["nmt.solve"],
            "×",
            1.05,
            at_least=False,
            rates=rates,
        )


def _tensor_case(tensor: torch.Tensor, array: Matrix, pattern: str) -> Case:
    def check(result: nmt.MaskResult) -> None:
        result.verify(tensor)
        if not np.array_equal(result.mask.numpy(), nmsolve.solve(array, pattern).mask):
            raise WrongResult(f"{pattern}: tensor and array have different masks")

    return Case("nmt.solve", tensor.numel(), lambda: nmt.solve(tensor, pattern, threads=1), check)


def _two_threads(
    weights: Matrix, pattern: str, target: float | None, settings: Settings
) -> Iterator[Row]:
    """Two threads of one solve, beside what this machine gives two Python threads that share
    nothing.
    """
    halves = np.array_split(weights, 2)

    def half(weights: Matrix) -> nmsolve.MaskResult:
        return nmsolve.solve(weights, pattern, method="exact", threads=1)

    def check(results: list[nmsolve.MaskResult]) -> None:
        for result, part in zip(results, halves, strict=True):
            check_result(result, part)

    with ThreadPoolExecutor(2) as pool:
        one, two = (
            solve_case("1 thread", weights, pattern),
            solve_case("2 threads", weights, pattern, threads=2),
        )
        apart = Case("2 solves", weights.size, lambda: list(pool.map(half, halves)), check)
        rates = _rates([one, two, apart], settings)
    yield _ratio(f"{pattern} exact, two threads / one", rates, "2 threads", "1 thread", target)
    note = "the machine's ceiling: each solves half the matrix"
    yield _ratio(
        f"{pattern} exact, two independent solves at once / one",
        rates,
        "2 solves",
        "1 thread",
        None,
        note,
    )


def _in_new_processes(settings: Settings) -> Iterator[Row]:
    seconds = processes.import_seconds()
    yield Row(
        "`import nmsolve`, NumPy included",
        seconds,
        "s",
        0.5,
        at_least=False,
        note=processes.REPEATED,
    )
    for pattern in ("4:8T", "2:4T"):
        compiling, cached = processes.first_solve_seconds(pattern)
        what = f"first {pattern} solve of a process"
        yield Row(
            f"{what}, kernels cached", cached, "s", 1.0, at_least=False, note=processes.REPEATED
        )
        yield Row(f"{what}, never compiled", compiling, "s", 20.0, at_least=False)
    for pattern in ("2:4T", "4:8T"):
        side = settings.memory_side
        megabytes = processes.extra_megabytes(pattern, side)
        what = f"memory over input and mask, {pattern}, {side} × {side}"
        yield Row(what, megabytes, "MB", 64.0, at_least=False, note="all processors")
