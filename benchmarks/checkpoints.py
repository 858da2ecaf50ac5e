"""`python -m benchmarks.checkpoints`, from the root: time and memory of pruning a checkpoint on
disk, against rewriting it.

--gigabytes   of the synthetic checkpoint, 4 by default: bfloat16, Llama-2-7B's shapes, two shards
--rounds      in each of which everything is timed once, in turn
--folder      where it is made, with three times as much room; a temporary folder by default
--out         a file for the table
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from safetensors.torch import save_file
from torch import Tensor, frombuffer
from torch import bfloat16 as bf16

from benchmarks.machine import describe

WIDTH, INNER, VOCABULARY = 4096, 11008, 32000
#: What reading and writing alone take: each shard whole, as the safetensors package does it.
#: Imports are not counted.
REWRITE = """
import sys, time
from pathlib import Path
from safetensors.torch import load_file, save_file
source, target = map(Path, sys.argv[1:])
target.mkdir()
began = time.perf_counter()
for shard in sorted(source.glob("*.safetensors")):
    save_file(load_file(shard), target / shard.name, {"format": "pt"})
print(time.perf_counter() - began)
"""
PROMISED = 3.0
REWRITING = "rewrite with safetensors"


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoints")
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    here = describe()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        text = measure(Path(folder), options.gigabytes, options.rounds)
    machine = f"{here['cpu']}, {here['cpus']} CPUs, {here['memory_gib']} GiB; " + ", ".join(
        f"{name} {version}" for name, version in here["versions"].items()
    )
    text = (
        f"# Checkpoints\n\n{machine}.\n{here['date']}, load average before "
        f"{here['load_before']}.\n\n{text}"
    )
    print(text)
    if options.out:
        options.out.write_text(text)


def measure(folder: Path, gigabytes: float, rounds: int) -> str:
    """The report: every command once a round, each in a process of its own on one core."""
    whole, part = folder / "whole", folder / "part"
    layers = make(whole, gigabytes)
    make(part, gigabytes / 4)
    size = sum(file.stat().st_size for file in whole.glob("*.safetensors"))
    prune = [sys.executable, "-m", "nmsolve", "prune"]
    commands = {
        REWRITING: [sys.executable, "-c", REWRITE, str(whole), "OUT"],
        "prune to 2:4T": [*prune, str(whole), "OUT", "--pattern", "2:4T", "--threads", "1"],
        "prune to 2:4": [*prune, str(whole), "OUT", "--pattern", "2:4", "--threads", "1"],
        "prune to 4:8T": [*prune, str(whole), "OUT", "--pattern", "4:8T", "--threads", "1"],
        "a quarter of it to 2:4T": [
            *prune,
            str(part),
            "OUT",
            "--pattern",
            "2:4T",
            "--threads",
            "1",
        ],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    memory: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(-1, rounds):  # the first compiles kernels and fills the page cache
        for name, command in commands.items():
            print(
                f"{time.strftime('%H:%M:%S')}  round {number}: {name}", file=sys.stderr, flush=True
            )
            spent, peak, printed = timed(
                [str(folder / "out") if word == "OUT" else word for word in command]
            )
            if name == REWRITING:
                spent = float(printed)
            shutil.rmtree(folder / "out")
            if number >= 0:
                seconds[name].append(spent)
                memory[name].append(peak)
    base = seconds[REWRITING]
    ratio = {
        name: [a / b for a, b in zip(spent, base, strict=True)] for name, spent in seconds.items()
    }
    rows = [
        f"| {name} | {median(seconds[name]):.1f} s | {median(ratio[name]):.2f} "
        f"({min(ratio[name]):.2f}–{max(ratio[name]):.2f}) | {median(memory[name]):,.0f} MB |"
        for name in commands
    ]
    largest = VOCABULARY * WIDTH * 2 / 1e6
    verdict = "pass" if median(ratio["prune to 2:4T"]) <= PROMISED else "**miss**"
    return "\n".join(
        [
            f"{size / 1e9:.2f} GB of bfloat16 weights, N(0, 1), {layers} layers of Llama-2-7B's "
            f"shapes in 2 shards; the largest tensor has {largest:.0f} MB. One core, one thread, "
            f"{rounds} rounds after one that does not count;",
            "whole processes, but for rewriting, whose imports are not counted; dirty pages are "
            "synced before each.",
            "nmsolve syncs what it writes before it names it, safetensors does not. Ratios are "
            "taken within a round: median (least–greatest). Memory is the peak resident set.",
            "",
            "| | time | against rewriting | memory |",
            "| --- | ---: | ---: | ---: |",
            *rows,
            "",
            f"Promised for 2:4T: at most {PROMISED:g} × rewriting: {verdict}.",
            "",
        ]
    )


def timed(command: list[str]) -> tuple[float, float, str]:
    """Seconds and peak megabytes of a process on one core, and what it printed."""
    core = {max(os.sched_getaffinity(0))}
    os.sync()
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, core),
    )
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    spent = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed")
    return spent, usage.ru_maxrss / 1e3, printed


def make(folder: Path, gigabytes: float) -> int:
    """Write a checkpoint of about that size, and return its number of layers."""
    folder.mkdir()
    layer = 4 * WIDTH * WIDTH + 3 * WIDTH * INNER + 2 * WIDTH
    layers = max(2, round((gigabytes * 1e9 / 2 - 2 * VOCABULARY * WIDTH) / layer))
    rng = np.random.default_rng(0)
    index: dict[str, str] = {}
    for shard in range(2):
        tensors = (
            {"model.embed_tokens.weight": (VOCABULARY, WIDTH)}
            if shard == 0
            else {"lm_head.weight": (VOCABULARY, WIDTH)}
        )
        for number in range(shard * layers // 2, (shard + 1) * layers // 2):
            name = f"model.layers.{number}"
            tensors |= {f"{name}.self_attn.{part}_proj.weight": (WIDTH, WIDTH) for part in "qkvo"}
            tensors |= {f"{name}.mlp.{part}_proj.weight": (INNER, WIDTH) for part in ("gate", "up")}
            tensors[f"{name}.mlp.down_proj.weight"] = (WIDTH, INNER)
        file = f"model-{shard + 1:05}-of-00002.safetensors"
        save_file(
            {name: normal(rng, shape) for name, shape in tensors.items()},
            folder / file,
            {"format": "pt"},
        )
        index |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return layers


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    """N(0, 1) as bfloat16: the upper half of float32's bits."""
    bits = rng.standard_normal(shape, np.float32).view(np.uint32) >> 16
    return frombuffer(bytearray(bits.astype(np.uint16).tobytes()), dtype=bf16).view(shape)


if __name__ == "__main__":
    main()
