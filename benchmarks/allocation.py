"""`python -m benchmarks.allocation`, from the root: how long exact allocation takes, hundreds of
layers × tens of candidates.

--layers, --candidates   of every instance; 300 and 20 by default
--seeds                  instances of each family and budget
--rival                  seconds that OR-tools' CP-SAT and SciPy's HiGHS get for the whole problem;
                         0, the default, leaves them out
--out                    a file for the table
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import describe
from nmsolve.torch.allocation.knapsack import choose

Rows = NDArray[np.float64]
Instance = tuple[Rows, Rows]
#: Shares of the way from the cheapest plan to the dearest.
BUDGETS = (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98)
PROMISED = 5.0


def masks(rng: np.random.Generator, sizes: Rows, candidates: int) -> Instance:
    """Magnitude lost by masks of Gaussian weights, layers of different scale, 1 % of noise; n of
    every `candidates` kept.
    """
    kept = np.arange(1, candidates + 1) / candidates
    edges = np.array([NormalDist().inv_cdf(1 - share / 2) for share in kept[:-1]] + [0.0])
    lost = math.sqrt(2 / math.pi) * (1 - np.exp(-(edges**2) / 2))
    scale = rng.lognormal(-3, 0.5, (len(sizes), 1))
    noise = 1 + 0.01 * rng.standard_normal((len(sizes), candidates))
    return sizes[:, None] * scale * lost * noise, np.rint(sizes[:, None] * kept)


def convolutions(rng: np.random.Generator, layers: int, candidates: int) -> Instance:
    """Every layer of another size, as in convolutional networks."""
    return masks(
        rng,
        (16 * rng.integers(2, 64, layers) * 16 * rng.integers(2, 64, layers)).astype(float),
        candidates,
    )


def language_model(rng: np.random.Generator, layers: int, candidates: int) -> Instance:
    """Two sizes of layers, seven a block, hundreds of millions of weights: sums of costs take few
    values.
    """
    block = np.array([4096.0 * 4096] * 4 + [11008.0 * 4096] * 3)
    return masks(rng, np.resize(block, layers), candidates)


def latencies(rng: np.random.Generator, layers: int, candidates: int) -> Instance:
    """The convolutions' losses, with times measured with 10 % of noise, some of which grow where
    less is kept.
    """
    losses, costs = convolutions(rng, layers, candidates)
    return losses, 5e-6 + 1e-12 * costs * (1 + 0.1 * rng.random(costs.shape))


def mixed(rng: np.random.Generator, layers: int, candidates: int) -> Instance:
    """Row-wise and transposable candidates: the same cost twice, with other losses; half of the
    candidates are dominated.
    """
    losses, costs = convolutions(rng, layers, (candidates + 1) // 2)
    twice = np.concatenate([losses, losses * (1.05 + 0.1 * rng.random(losses.shape))], axis=1)
    return twice[:, :candidates], np.concatenate([costs, costs], axis=1)[:, :candidates]


def unrelated(rng: np.random.Generator, layers: int, candidates: int) -> Instance:
    """Losses and costs that have nothing to do with each other."""
    return rng.random((layers, candidates)), rng.integers(1, 10**6, (layers, candidates)).astype(
        float
    )


def correlated(rng: np.random.Generator, layers: int, candidates: int) -> Instance:
    """Losses that are costs saved but for a thousandth: prices tell candidates hardly apart."""
    costs = np.sort(rng.integers(1, 10**6, (layers, candidates)), axis=1).astype(float)
    return 2 - costs / 1e6 + 1e-3 * rng.random(costs.shape), costs


def proportional(rng: np.random.Generator, layers: int, candidates: int) -> Instance:
    """Losses that are costs saved: which sum comes closest to the limit."""
    costs = np.sort(rng.integers(1, 10**9, (layers, candidates)), axis=1).astype(float)
    return 2 - costs / 1e9, costs


def ties(rng: np.random.Generator, layers: int, candidates: int) -> Instance:
    """One layer, again and again."""
    losses, costs = masks(rng, np.array([4096.0 * 4096]), candidates)
    return np.repeat(losses, layers, axis=0), np.repeat(costs, layers, axis=0)


FAMILIES: tuple[Callable[[np.random.Generator, int, int], Instance], ...] = (
    convolutions, language_model, latencies, mixed, unrelated, correlated, proportional, ties,
)  # fmt: skip


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.allocation", description="Time exact allocation."
    )
    parser.add_argument("--layers", type=int, default=300)
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--rival",
        type=float,
        default=0.0,
        help="seconds for CP-SAT and HiGHS on the whole problem (default: none)",
    )
    parser.add_argument("--out", type=Path, help="a file for the table")
    options = parser.parse_args()
    machine = describe()
    rivals = (cp_sat, highs) if options.rival else ()
    head = [
        "family",
        "optimal",
        "median s",
        "longest s",
        "largest gap",
        *(f"{rival.__name__}: optimal, median s" for rival in rivals),
    ]
    versions = machine["versions"]
    lines = [
        f"Exact allocation, {options.layers} layers × {options.candidates} candidates, "
        f"{options.seeds} instances × {len(BUDGETS)} budgets a family: {machine['cpu']}, "
        f"{machine['cpus']} CPUs (one used), OR-tools {versions['ortools']}, NumPy "
        f"{versions['numpy']}, {machine['date']}. Promised: {PROMISED:g} s.",
        "",
        f"| {' | '.join(head)} |",
        f"| --- |{' ---: |' * (len(head) - 1)}",
    ]
    print("\n".join(lines), flush=True)
    for family in FAMILIES:
        lines.append(
            measure(
                family, options.layers, options.candidates, options.seeds, rivals, options.rival
            )
        )
        print(lines[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


Rival = Callable[[Rows, Rows, float, float], bool]


def measure(
    family: Callable[[np.random.Generator, int, int], Instance], layers: int, candidates: int,
    seeds: int,
    rivals: tuple[Rival, ...], rival_seconds: float,
) -> str:  # fmt: skip
    """A family's row of the table."""
    seconds, gaps, proven = [], [], 0
    theirs: list[list[tuple[bool, float]]] = [[] for _ in rivals]
    for seed, share in itertools.product(range(seeds), BUDGETS):
        losses, costs = family(np.random.default_rng(seed), layers, candidates)
        low, high = (math.fsum(pick(costs, axis=1).tolist()) for pick in (np.min, np.max))
        limit = low + share * (high - low)
        began = time.perf_counter()
        found = choose(losses.tolist(), costs.tolist(), limit)
        seconds.append(time.perf_counter() - began)
        if math.fsum(costs[range(layers), list(found.choices)].tolist()) > limit:
            raise AssertionError(f"{family.__name__}, seed {seed}: the limit is exceeded")
        gaps.append((found.objective - found.bound) / abs(found.objective))
        proven += found.status.value == "optimal"
        for rival, times in zip(rivals, theirs, strict=True):
            began = time.perf_counter()
            times.append((rival(losses, costs, limit, rival_seconds), time.perf_counter() - began))
    cells = [
        family.__doc__.partition(":")[0].rstrip(".") if family.__doc__ else family.__name__,
        f"{proven} of {len(seconds)}",
        f"{np.median(seconds):.3f}",
        f"{max(seconds):.2f}",
        f"{max(gaps):.0e}",
        *(
            f"{sum(done for done, _ in times)}, {np.median([s for _, s in times]):.2f}"
            for times in theirs
        ),
    ]
    return f"| {' | '.join(cells)} |"


def cp_sat(losses: Rows, costs: Rows, limit: float, seconds: float) -> bool:
    """Whether OR-tools' CP-SAT alone, on one worker, proves an optimum in time."""
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    grid, scale = 2.0**40 / limit, 2.0**50 / float(losses.max(axis=1).sum())
    x = [[model.new_bool_var("") for _ in row] for row in losses]
    for row in x:
        model.add_exactly_one(row)
    flat = [one for row in x for one in row]
    model.add(
        cp_model.LinearExpr.weighted_sum(
            flat, np.ceil(costs.ravel() * grid).astype(np.int64).tolist()
        )
        <= 2**40
    )
    model.minimize(
        cp_model.LinearExpr.weighted_sum(
            flat, np.rint(losses.ravel() * scale).astype(np.int64).tolist()
        )
    )
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_time_in_seconds = seconds
    solver.parameters.relative_gap_limit = 1e-9
    return bool(solver.solve(model) == cp_model.OPTIMAL)


def highs(losses: Rows, costs: Rows, limit: float, seconds: float) -> bool:
    """Whether SciPy's HiGHS proves an optimum in time."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import block_diag, csr_array

    count, each = losses.shape
    solution = milp(
        losses.ravel() / losses.max(),
        constraints=[
            LinearConstraint(block_diag([np.ones((1, each))] * count, format="csr"), 1, 1),
            LinearConstraint(
                csr_array(costs.reshape(1, -1) / costs.max()), -np.inf, limit / costs.max()
            ),
        ],
        bounds=Bounds(0, 1),
        integrality=np.ones(count * each),
        options={"mip_rel_gap": 1e-9, "time_limit": seconds},
    )
    return bool(solution.status == 0)


if __name__ == "__main__":
    main()
