"""`python -m benchmarks.pruning_a_head`, from the root: time and memory of pruning the head of a
large language model by calibration, 2:4 by `adaprune_`, with random weights and correlated inputs.
One thread, unless OMP_NUM_THREADS and MKL_NUM_THREADS say otherwise.

--rows, --cols   of the head (128,256 × 4,096, Llama 3's: 525 million weights), in bfloat16
--tokens         of calibration (16,384)
--out            a file for the figures
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import torch
from torch import nn

import nmsolve.torch as nmt
from benchmarks.machine import describe

#: Tokens of an item.
_ITEM = 512


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pruning_a_head",
        description="Time and memory of pruning the head of a language model.",
    )
    parser.add_argument("--rows", type=int, default=128_256)
    parser.add_argument("--cols", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--out", type=Path, help="a file for the figures")
    options = parser.parse_args()
    head, items = _head(options.rows, options.cols), _items(options.tokens, options.cols)
    nmt.adaprune_(_head(64, 64), "2:4", _items(10 * _ITEM, 64))  # kernels are loaded
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, cpu_began = time.perf_counter(), time.process_time()
    found = nmt.adaprune_(head, "2:4", items)[0]
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if not nmt.verify(head.weight, "2:4"):
        raise RuntimeError("the head is not 2:4")
    machine = describe()
    text = (
        f"A head of {options.rows:,} × {options.cols:,} in bfloat16, "
        f"{head.weight.nbytes / 2**30:.2f} GiB, 2:4 by `adaprune_` with {options.tokens:,} tokens: "
        f"{seconds:.0f} s, {cpu_seconds:.0f} of CPU; at most {peak / 2**20:.2f} GiB in memory, of "
        f"which {before / 2**20:.2f} were there before, the head among them. Error ‖Y − XVᵀ‖² / "
        f"‖Y‖², held out: {found.held_out_before:.4f} masked, {found.held_out_after:.4f} after. "
        f"{machine['cpu']}, {machine['cpus']} CPUs, threads: {torch.get_num_threads()}, torch "
        f"{machine['versions']['torch']}, {machine['date']}."
    )
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


def _head(rows: int, cols: int) -> nn.Linear:
    torch.manual_seed(0)
    head = nn.Linear(cols, rows, bias=False, dtype=torch.bfloat16)
    with torch.no_grad():
        head.weight.normal_(std=cols**-0.5)
    return head


def _items(tokens: int, cols: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(cols, cols, generator=generator) * torch.logspace(0, -1.5, cols)
    return [
        (torch.randn(_ITEM, cols, generator=generator) @ mix.T / cols**0.5).to(torch.bfloat16)
        for _ in range(tokens // _ITEM)
    ]


if __name__ == "__main__":
    main()
