"""A row's run, measured. As a program, `python -m examples.language_model.measuring FOLDER ROW
SEED`, with a folder that `prepared.prepare` wrote and a row as JSON: in a process of its own, whose
peak of memory is the row's too. Prints JSON.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model
from transformers import LlamaConfig, LlamaForCausalLM

import nmsolve.torch as nmt
from examples.language_model.calls import Calls
from examples.language_model.memory import Extra
from examples.language_model.methods import prune
from examples.language_model.prepared import Prepared
from examples.language_model.rows import DENSE, Row
from examples.study.rounding import rounded


@dataclass(frozen=True)
class Measured:
    """held_out, other : perplexity on either text. seconds, cpu_seconds : of pruning, scores
    included; CPU seconds are of all threads. mebibytes : the most that pruning held beyond the
    model, if that is in memory, its tokens and Python. runs : of a block for each calibration item,
    the most of any block. kept : share of the pruned layers' weights. load : of the machine before,
    1 a busy core. sizes : `Prepared.sizes`, with the dense model alone.
    """

    held_out: float
    other: float
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    mebibytes: float = 0.0
    runs: float = 0.0
    kept: float = 1.0
    load: float = 0.0
    sizes: dict[str, float] | None = None

    def as_json(self) -> dict[str, Any]:
        """As it is kept on disk."""
        return rounded(self)

    @property
    def summary(self) -> str:
        """For the terminal."""
        return (
            f"perplexity {self.held_out:.2f}, {self.other:.2f} on the other text; "
            f"{self.seconds:.0f} s, {self.mebibytes:.0f} MiB"
        )


def measure(folder: Path, row: Row, seed: int) -> Measured:
    """Prune the dense model by a row's method and pattern."""
    prepared = Prepared(folder)
    if row == DENSE:
        return Measured(**_perplexities(prepared.model(), prepared), sizes=prepared.sizes())
    load = os.getloadavg()[0]
    items = prepared.items(seed)
    on_disk = row.method.endswith("-disk")
    model = prepared.model_without_weights() if on_disk else prepared.model()
    calls = Calls(model.model.layers)
    with tempfile.TemporaryDirectory() as name:
        scratch, pruned = Path(name), Path(name, "pruned.safetensors")
        _warm_up(row, scratch)
        memory = Extra()
        began, cpu_began = time.perf_counter(), time.process_time()
        with nmt.offloaded(model, prepared.weights, out=pruned) if on_disk else nullcontext():
            report = prune(row, model, items, prepared.settings.blocks, scratch)
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
        mebibytes = memory.mebibytes()
        calls.remove()
        if on_disk:
            model = prepared.model()
            load_model(model, pruned)
    if not report:
        raise RuntimeError(f"{row.name} left a model that is not {row.pattern}:\n{report}")
    return Measured(
        **_perplexities(model, prepared),
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        mebibytes=mebibytes,
        runs=max(calls.runs) / len(items),
        kept=report.density,
        load=load,
    )


def _perplexities(model: LlamaForCausalLM, prepared: Prepared) -> dict[str, float]:
    """On both texts, windows of which no token is context for another window's."""
    return {
        key: nmt.perplexity(
            model, prepared.windows[text], window=prepared.settings.window, progress=False
        ).value
        for key, text in (("held_out", "held-out"), ("other", "other"))
    }


def _warm_up(row: Row, scratch: Path) -> None:
    """The same on a tiny model: kernels are compiled and loaded, threads are there."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        use_cache=False,
    )
    prune(row, LlamaForCausalLM(config).eval(), [torch.arange(64)[None]] * 8, 1, scratch)


def _main(folder: str, row: str, seed: str) -> None:
    print(json.dumps(measure(Path(folder), Row(**json.loads(row)), int(seed)).as_json()))


if __name__ == "__main__":
    _main(*sys.argv[1:])
