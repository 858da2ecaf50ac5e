"""`python -m benchmarks.pruning_settings`, from the root: what pruning by second order and least
squares would gain by other settings, on block 10 of SmolLM2-135M with 16,384 tokens.

--out  a file for the tables

For every layer, in turn: ADMM with other schedules of ρ, conjugate gradients with other tolerances,
and exchanges of kept and dropped weights afterwards (`reference/swaps.py`), each with least squares
on the mask that comes out. Errors are those on held-out tokens, over what the settings of the
library have; each layer is given what the ones before give with these. Geometric means over the
seven layers.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import nmsolve
import nmsolve.torch as nmt
from benchmarks.machine import describe
from benchmarks.pruning_on_real_weights import block_of_smollm2
from nmsolve.torch.pruning.admm import ROW_WISE, TRANSPOSABLE, Schedule, admm_mask
from nmsolve.torch.pruning.layerwise import prune_layers
from nmsolve.torch.pruning.least_squares import LeastSquares
from nmsolve.torch.pruning.objective import Hessian
from nmsolve.torch.pruning.problem import Problem, Solution
from nmsolve.torch.pruning.pruning_options import PruningOptions
from reference.swaps import cycles_of_four, single_swaps

_TOKENS = 16_384
_DAMPING = 1e-2
_USUAL = "**as the library has it**"
_TOLERANCES = (0.3, 0.1, 0.03, 0.01, 0.001)
_OPTIONS = PruningOptions(
    sequential=True,
    targets="dense",
    bias=True,
    unreached="magnitude",
    moments=torch.float32,
    weights=None,
    offload=None,
    progress=False,
)


def _schedules(usual: Schedule) -> dict[str, Schedule]:
    others = [
        usual._replace(first=0.1),
        usual._replace(first=1.0),
        usual._replace(growth=1.3),
        usual._replace(growth=2.5),
        usual._replace(every=1),
        usual._replace(most=usual.most // 2),
        usual._replace(most=2 * usual.most),
        Schedule(0.3, 1.5, 2, 14),
        Schedule(0.1, 1.3, 2, 30),
    ]
    return {
        f"ρ from {one.first}, × {one.growth} every {one.every}, at most {one.most}": one
        for one in others
        if one != usual
    }


class _Trial:
    """Every layer's problem solved in several ways; the library's is what goes on."""

    def __init__(self, pattern: str) -> None:
        self.pattern = nmsolve.Pattern.parse(pattern)
        self.usual = TRANSPOSABLE if self.pattern.transposable else ROW_WISE
        #: Of every way, over the layers: held-out error, seconds, iterations.
        self.found: dict[str, list[tuple[float, float, int]]] = defaultdict(list)

    def __call__(self, problem: Problem, plain: Tensor, masked: Tensor) -> Solution:
        """Solve a layer."""
        shared = problem.hessian(_DAMPING)

        def hessian() -> Hessian:  # without inverses, so that every schedule pays for its own
            return Hessian(matrix=shared.matrix, scale=shared.scale, delta=shared.delta)

        side = problem.right_hand_side(shared)

        def with_schedule(schedule: Schedule, tolerance: float = 0.03) -> Solution:
            mask, weight, done = admm_mask(problem, hessian(), side, schedule)
            solver = LeastSquares(tolerance=tolerance)
            solution = solver.solve(problem, mask, _DAMPING, weight, side)
            self.iterations = done
            return solution

        usual = self._measure(problem, _USUAL, lambda: with_schedule(self.usual))
        for name, schedule in _schedules(self.usual).items():
            self._measure(problem, name, lambda schedule=schedule: with_schedule(schedule))
        for tolerance in _TOLERANCES:
            self._measure(
                problem,
                f"least squares to {tolerance:g}",
                lambda tolerance=tolerance: with_schedule(self.usual, tolerance),
            )
        self._exchange(problem, "ADMM, exchanges", usual, shared, side, usual=True)
        norms = problem.norms()
        wanda = problem.best_mask(problem.weight.abs() * norms)
        on_wanda = self._measure(
            problem,
            "Wanda's masks, least squares",
            lambda: LeastSquares().solve(problem, wanda, _DAMPING, None, side),
        )
        self._exchange(problem, "Wanda's masks, exchanges", on_wanda, shared, side)
        return usual

    def _exchange(
        self,
        problem: Problem,
        name: str,
        solution: Solution,
        hessian: Hessian,
        side: Tensor,
        usual: bool = False,
    ) -> None:
        swap = cycles_of_four if self.pattern.transposable else single_swaps

        def run() -> Solution:
            start = (solution.weight * hessian.scale)[0]
            target = torch.linalg.solve(hessian.matrix[0], side[0].T).T
            weight, self.iterations = swap(start, target, hessian.matrix[0], self.pattern.m)
            found = (weight / hessian.scale[0]).unsqueeze(0)
            return LeastSquares().solve(problem, found != 0, _DAMPING, found, side)

        before = self.found[_USUAL if usual else "Wanda's masks, least squares"][-1][1]
        self._measure(problem, name, run, before)

    def _measure(
        self, problem: Problem, name: str, run: Callable[[], Solution], before: float = 0.0
    ) -> Solution:
        """Run a way, and keep its figures; `before` are seconds of what it starts from."""
        self.iterations = 0
        began = time.process_time()
        solution = run()
        took = before + time.process_time() - began
        error = problem.errors(solution.weight).held_out
        assert error is not None
        self.found[name].append((error, took, self.iterations))
        return solution

    def table(self) -> list[str]:
        """Return the rows, relative to the library's own."""
        usual = self.found[_USUAL]
        lines = [
            f"**{self.pattern}** (ρ from {self.usual.first}, × {self.usual.growth} every "
            f"{self.usual.every}, at most {self.usual.most}; least squares to 0.03)",
            "",
            "| | held-out error | CPU time | iterations, or exchanges, of a layer |",
            "| --- | ---: | ---: | ---: |",
        ]
        for name, figures in self.found.items():
            logs = [math.log(a[0] / b[0]) for a, b in zip(figures, usual, strict=True)]
            seconds = sum(f[1] for f in figures) / sum(f[1] for f in usual)
            counts = [f[2] for f in figures]
            shown = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else counts[0]
            lines.append(
                f"| {name} | {math.exp(sum(logs) / len(logs)):.3f} × | {seconds:.2f} × | "
                f"{shown or '-'} |"
            )
        return [*lines, ""]


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pruning_settings",
        description="Settings of pruning by second order: held-out errors and times.",
    )
    parser.add_argument("--out", type=Path, help="a file for the tables")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    machine = describe()
    lines = [
        f"Block 10 of SmolLM2-135M, {_TOKENS:,} tokens, damping {_DAMPING}, a tenth of the tokens "
        f"held out: {machine['cpu']}, one thread, torch {machine['versions']['torch']}, "
        f"{machine['date']}. CPU time is that of masks and least squares alone, without moments "
        "and forwards, and here without inverses that layers share. Exchanges are an "
        "implementation in plain torch: their time is what it takes, not what they need.",
        "",
    ]
    for pattern in ("2:4", "4:8", "2:4T"):
        subject = block_of_smollm2(_TOKENS)
        model = subject.model
        trial = _Trial(pattern)
        block = {module: path for path, module in model.named_modules()}[subject.blocks(model)[0]]
        prune_layers(
            model,
            nmt.plan(model, pattern, include=[block]),
            subject.items,
            lambda problem: problem.best_mask(problem.weight.abs()),
            trial,
            _OPTIONS,
        )
        lines += trial.table()
        print("\n".join(lines if pattern == "2:4" else trial.table()), flush=True)
    if options.out is not None:
        options.out.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
