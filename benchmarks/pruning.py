"""`python -m benchmarks.pruning`, from the root: how long pruning by calibration takes, and how
much memory; and both by the depth of a model.

--side     of the square layers (1024)
--layers   how many, one behind the other (6)
--out      a file for the table

Every row is a process of its own, so that the most it ever held is its own too.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.machine import describe
from benchmarks.processes import ROOT

#: What is run, at which pattern, with how many samples.
PROBES = (
    ("scores.activation", "2:4", 2048),
    ("scores.activation", "2:4", 32768),
    ("adaprune_, least squares", "2:4", 2048),
    ("adaprune_, least squares", "2:4", 8192),
    ("adaprune_, least squares", "2:4T", 2048),
    ("adaprune_, not sequential", "2:4", 2048),
    ("adaprune_, Adam", "2:4", 2048),
    ("sparsegpt_", "2:4", 2048),
    ("sparsegpt_", "2:4T", 2048),
)
BATCH = 256
#: Blocks of the models that are pruned to see what depth costs, their width, and the calibration.
DEPTHS, WIDTH, ITEMS, TOKENS = (4, 8, 16, 32), 256, 10, 128


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pruning",
        description="Time and memory of pruning by calibration.",
    )
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--out", type=Path, help="a file for the table")
    parser.add_argument(
        "--probe", nargs=3, metavar=("WHAT", "PATTERN", "SAMPLES"), help=argparse.SUPPRESS
    )
    parser.add_argument("--depth", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.depth:
        print(json.dumps(_depth(options.depth)))
        return
    if options.probe:
        what, pattern, samples = options.probe
        print(json.dumps(_probe(what, pattern, int(samples), options.side, options.layers)))
        return
    machine = describe()
    weights = 4 * options.layers * options.side**2 / 2**20
    lines = [
        f"{options.layers} linear layers of {options.side} × {options.side}, {weights:.0f} MiB of "
        f"weights in float32, with ReLU between them: {machine['cpu']}, {machine['cpus']} CPUs, "
        f"torch {machine['versions']['torch']}, {machine['date']}. Memory is the most that the "
        "process held beyond what it held before; errors are ‖Y − XVᵀ‖² / ‖Y‖², summed over "
        "layers.",
        "",
        "| | pattern | samples | seconds | MiB | error before | after |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    print("\n".join(lines), flush=True)
    for what, pattern, samples in PROBES:
        command = [
            sys.executable,
            "-m",
            "benchmarks.pruning",
            "--side",
            str(options.side),
            "--layers",
            str(options.layers),
        ]
        done = subprocess.run(
            [*command, "--probe", what, pattern, str(samples)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        found = json.loads(done.stdout)
        errors = (f"{found[key]:.3f}" if key in found else "" for key in ("before", "after"))
        cells = (
            what,
            pattern,
            f"{samples:,}",
            f"{found['seconds']:.1f}",
            f"{found['mib']:.0f}",
            *errors,
        )
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    lines += _depths()
    if options.out:
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _depths() -> list[str]:
    """The table of what depth costs, printed row by row."""
    lines = [
        "",
        f"`sparsegpt_` 2:4 on transformer encoders of width {WIDTH}, {ITEMS} items of {TOKENS} "
        "tokens: how often a block is called per item, and seconds.",
        "",
        "| blocks | calls of a block per item | seconds | over half the blocks |",
        "| ---: | ---: | ---: | ---: |",
    ]
    print("\n".join(lines), flush=True)
    before = None
    for depth in DEPTHS:
        command = [sys.executable, "-m", "benchmarks.pruning", "--depth", str(depth)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        found = json.loads(done.stdout)
        ratio = "" if before is None else f"{found['seconds'] / before:.2f} ×"
        before = found["seconds"]
        lines.append(f"| {depth} | {found['calls']:.2f} | {found['seconds']:.2f} | {ratio} |")
        print(lines[-1], flush=True)
    return lines


def _depth(depth: int) -> dict[str, float]:
    import torch
    from torch import nn

    import nmsolve.torch as nmt

    def encoder(depth: int) -> nn.TransformerEncoder:
        torch.manual_seed(0)
        block = nn.TransformerEncoderLayer(
            WIDTH, 4, 4 * WIDTH, batch_first=True, norm_first=True, dropout=0.0
        )
        return nn.TransformerEncoder(block, depth, enable_nested_tensor=False)

    generator = torch.Generator().manual_seed(1)
    items = [torch.randn(1, TOKENS, WIDTH, generator=generator) for _ in range(ITEMS)]
    nmt.sparsegpt_(encoder(1), "2:4", items)  # kernels are loaded, threads are there
    model, calls = encoder(depth), 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    for block in model.layers:
        block.register_forward_pre_hook(count)
    began = time.perf_counter()
    found = nmt.sparsegpt_(model, "2:4", items)
    seconds = time.perf_counter() - began
    if "side by side" not in found.way:
        raise RuntimeError(found.way)
    return {"calls": calls / depth / ITEMS, "seconds": seconds}


def _probe(what: str, pattern: str, samples: int, side: int, layers: int) -> dict[str, float]:
    import torch
    from torch import nn

    import nmsolve.torch as nmt

    def stack(side: int, layers: int) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            *(part for _ in range(layers) for part in (nn.Linear(side, side), nn.ReLU()))
        )

    class Stream:
        """Batches of correlated inputs, made when they are asked for."""

        def __init__(self, side: int, samples: int) -> None:
            generator = torch.Generator().manual_seed(1)
            self.side, self.samples = side, samples
            self.mix = (
                torch.randn(side, side, generator=generator)
                * torch.logspace(0, -1.5, side)
                / side**0.5
            )

        def __iter__(self) -> Iterator[torch.Tensor]:
            generator = torch.Generator().manual_seed(2)
            for _ in range(self.samples // BATCH):
                yield torch.randn(BATCH, self.side, generator=generator) @ self.mix.T

    def run(side: int, layers: int, samples: int) -> dict[str, float]:
        model, inputs = stack(side, layers), Stream(side, samples)
        if what == "scores.activation":
            nmt.scores.activation(model, inputs)
            return {}
        if what == "sparsegpt_":
            found = nmt.sparsegpt_(model, pattern, inputs)
        elif what == "adaprune_, Adam":
            found = nmt.adaprune_(model, pattern, inputs, update="adam", sequential=False)
        else:
            found = nmt.adaprune_(model, pattern, inputs, sequential="not" not in what)
        return {
            "before": sum(layer.before for layer in found),
            "after": sum(layer.after for layer in found),
        }

    run(64, 2, BATCH)  # kernels are loaded, threads are there
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    found = run(side, layers, samples)
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10,
        **found,
    }


if __name__ == "__main__":
    main()
