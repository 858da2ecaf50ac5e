"""The methods, each on a model of transformers whose blocks are `model.model.layers`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

import nmsolve
import nmsolve.torch as nmt
from examples.language_model.rows import Row
from reference.sparsegpt import prune_decoder

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


def prune(
    row: Row, model: LlamaForCausalLM, items: Sequence[Tensor], blocks: int, scratch: Path
) -> nmt.ModelReport:
    """Prune the first blocks of a model in place, by a row's method and pattern; the check of what
    came out. `scratch` is a folder for what is not in memory.
    """
    assert row.pattern is not None
    layers = [f"model.layers.{index}" for index in range(blocks)]
    plan = nmt.plan(model, row.pattern, include=layers)
    if row.method == "magnitude":
        nmt.mask_(model, plan)
    elif row.method == "Wanda":
        scores = nmt.scores.activation(model, items, include=layers)
        nmt.mask_(model, nmt.plan(model, row.pattern, include=layers, scores=scores))
    elif row.method == "SparseGPT":
        pattern = nmsolve.Pattern.parse(row.pattern)
        prune_decoder(model, model.model.layers[:blocks], items, pattern.n, pattern.m)
    elif row.method == "adaprune_":
        nmt.adaprune_(model, plan, items)
    elif row.method == "adaprune_-own":
        nmt.adaprune_(model, plan, items, targets="own")
    elif row.method == "sparsegpt_":
        nmt.sparsegpt_(model, plan, items)
    elif row.method == "sparsegpt_-disk":
        nmt.sparsegpt_(model, plan, items, offload=scratch)
    else:
        raise ValueError(f"{row.method} prunes nothing")
    return nmt.verify(model, plan)
