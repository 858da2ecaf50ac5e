"""What solving masks should take on an H200, from counted instructions and bytes.

`python -m benchmarks.gpu.model`.

A model, not a measurement; it needs no GPU. tests/tensors/compile_kernels.py compiles the kernels
for sm_90 and counts the instructions of each unit; the share of blocks that the first level leaves,
and how far the others have to go, come from solving N(0, 1) matrices on this CPU. A scheduler
issues an instruction per cycle, and a unit that has fewer lanes than a warp takes several cycles.
Left out: latencies that two warps per scheduler do not hide, and instruction fetches. Within ± 25 %
at best.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.processes import ROOT
from nmsolve.pattern import Pattern
from nmsolve.torch.device import torch_engine as plain
from nmsolve.torch.device.problem import Problem

#: An H200: multiprocessors × schedulers, cycles a second, and bytes a second of a copy, read and
#: written, as device copies showed.
SCHEDULERS, CLOCK, COPY = 132 * 4, 1.755e9, 4.3e12
#: Cycles in which a unit takes an instruction of a warp: 32 lanes over those that a scheduler's
#: share of it has.
CYCLES = {"fma": 1, "integer": 2, "fp64": 2, "conversion": 8, "memory": 4}
#: Seconds of a launch whose sums the host waits for.
LAUNCH = 20e-6
SIDE = 8192
CASES = (
    ("2:4", "bfloat16"),
    ("2:4T", "bfloat16"),
    ("4:8T", "float32"),
    ("8:16T", "float32"),
    ("16:32T", "float32"),
)


@dataclass(frozen=True, slots=True)
class Left:
    """How many blocks the first level leaves, as a share, and which share of them is proven by each
    level of the second call.
    """

    share: float
    levels: list[float]


def cycles(pipes: dict[str, int]) -> float:
    """Of a scheduler, for a warp: what issuing takes, or the busiest unit."""
    return float(
        max(sum(pipes.values()), *(CYCLES.get(name, 0) * count for name, count in pipes.items()))
    )


def compiled(case: tuple[str, str]) -> dict[str, dict[str, Any]]:
    """Counts by kernel: in all, and in the innermost loop."""
    command = [sys.executable, str(ROOT / "tests" / "compile_kernels.py"), "/".join(case)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {
        row["kernel"]: row for row in reversed(rows)
    }  # the first of a kernel is the one without options


def left_by_first(pattern: Pattern, side: int = 2048) -> Left:
    """Measured on a float32 N(0, 1) matrix, by torch operations."""
    X = torch.randn((1, side, side), generator=torch.Generator().manual_seed(0))
    problem = Problem(pattern, True, torch.float32, 2.5e-7)
    mask = torch.empty(X.shape, dtype=torch.bool)
    blocks, sums = plain.ascend_first(X, mask, problem, False)
    unproven = blocks.open.numel() - int(sums[3])
    _, rest = plain.ascend_rest(X, mask, problem, blocks, unproven, False)
    return Left(unproven / blocks.open.numel(), (rest[2:] / max(1, unproven)).tolist())


def seconds(case: tuple[str, str]) -> dict[str, float]:
    """Of a solve of SIDE × SIDE: bytes / bandwidth, the first call's cycles, the second's, and all
    of it.
    """
    pattern, size = Pattern.parse(case[0]), 2 if case[1] == "bfloat16" else 4
    kernels, m = compiled(case), pattern.m
    memory = SIDE * SIDE * (size + 1) / COPY
    if not pattern.transposable or m == 4:
        kernel, weights = (
            (kernels["enumerate_blocks"], 16)
            if pattern.transposable
            else (kernels["keep_groups"], m)
        )
        whole, loop = kernel["pipes"]
        warps = SIDE * SIDE / weights / kernel["solves"] / 32
        compute = warps / SCHEDULERS / CLOCK * cycles(loop or whole)
        total = max(memory, compute)
        return {
            "bytes": memory,
            "first": compute,
            "rest": 0.0,
            "left": 0.0,
            "all": total + LAUNCH,
            "kernel": total,
        }
    problem = Problem(pattern, True, torch.float32, 2.5e-7)
    together = 32 // kernels["ascend_first"]["shares"]
    blocks = SIDE * SIDE / m**2
    whole, loop = kernels["ascend_first"]["pipes"]
    warp = cycles(whole) + (problem.rounds[0] - 1) * cycles(loop)
    first = blocks / together / SCHEDULERS * warp / CLOCK
    left = left_by_first(pattern)
    # A warp goes on until the last of its blocks is proven; each level reads scores anew, relaxes
    # and certifies.
    body = cycles(kernels["ascend_rest"]["pipes"][0])
    done, going = 0.0, 0.0
    for rounds, share in zip(problem.rounds, left.levels, strict=True):
        going += (1 - done**together) * (rounds * cycles(loop) + body)
        done += share
    waves = max(1.0, left.share * blocks / together / SCHEDULERS)
    rest = waves * going / CLOCK
    total = max(memory, first) + rest
    return {
        "bytes": memory,
        "first": first,
        "rest": rest,
        "left": left.share,
        "all": total + 2 * LAUNCH,
        "kernel": total,
    }


def refresh(
    solve: float, rows: int = 4096, cols: int = 16384, tokens: int = 16384, rate: float = 0.75e15
) -> tuple[float, float]:
    """Seconds of a new mask and both packings of a bfloat16 layer, by bytes, and of its dense
    forward and backward, by operations.

    Masking reads a weight and its mask and writes the weight; its transpose is written once more;
    each packing reads one and writes 9/16 of it. rate : FLOP/s of a dense bfloat16 product on an
    H200.
    """
    weights = rows * cols
    moved = weights * (2 + 1 + 2) + weights * (2 + 2) + 2 * weights * (2 + 9 / 8)
    return solve * weights / SIDE**2 + moved / COPY, 6 * weights * tokens / rate


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.model", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, help="a file for the table as well")
    options = parser.parse_args()
    head = [
        "pattern",
        "left by the first level",
        "copy µs",
        "first µs",
        "rest µs",
        "solve µs",
        "Gw/s",
        "× copy",
    ]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for case in CASES:
        found = seconds(case)
        us = {name: f"{1e6 * found[name]:.0f}" for name in ("bytes", "first", "rest", "all")}
        rate = f"{SIDE * SIDE / found['all'] / 1e9:.0f}"
        ratio = f"{found['bytes'] / found['kernel']:.2f}"
        lines.append(
            [
                f"{case[0]} {case[1]}",
                f"{100 * found['left']:.2f} %",
                us["bytes"],
                us["first"],
                us["rest"],
                us["all"],
                rate,
                ratio,
            ]
        )
        if case[0] == "2:4T":
            new, dense = refresh(found["all"])
    text = "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n\n"
    text += f"New 2:4T mask and both packings of a 4096 × 16384 layer: {1e6 * new:.0f} µs, "
    text += (
        f"{100 * new / dense:.1f} % of its dense forward and backward at 16,384 tokens "
        f"({1e3 * dense:.1f} ms).\n"
    )
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
