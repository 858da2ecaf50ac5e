"""`nmsolve prune` and `report`: whole checkpoints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from nmsolve.cli.options import (
    FILE,
    Examples,
    choice_options,
    force_option,
    method_option,
    needed_patterns,
    padding_option,
    pattern_argument,
    threads_option,
)
from nmsolve.cli.printing import show, show_aside, stands
from nmsolve.cli.runs import run_and_show, speaks
from nmsolve.output import is_stdout

#: What a user of a language model must know before relying on `prune` alone (docs/checkpoints.md).
BY_MAGNITUDE = (
    "Every mask keeps the largest |W|, and no data were looked at. That alone ruins a language "
    "model: tens of times the\n"
    "perplexity at 2:4. Use nmsolve.torch.sparsegpt_ or adaprune_ with calibration inputs "
    "(docs/pruning.md), or train it\n"
    "under its masks (sparsify_, docs/training.md), and measure the model before it is used."
)


@click.command(
    cls=Examples,
    short_help="Write a copy of a checkpoint that holds a pattern, and its masks.",
    examples=[
        "nmsolve prune model.safetensors model-24.safetensors --pattern 2:4",
        "nmsolve prune Llama-3-8B/ Llama-3-8B-24T/ --pattern 2:4T --exclude lm_head",
        "nmsolve prune in/ out/ --pattern '*.mlp.*=4:8T' --pattern '*.k_proj=dense' --pattern 2:4",
        "nmsolve prune in/ out/ --pattern 2:4T --exclude lm_head --resume   # after a kill, Ctrl-C "
        "or a full disk",
        "torchrun --nproc-per-node 4 -m nmsolve prune in/ out/ --pattern 2:4T",
    ],
)
@click.argument("src", type=FILE)
@click.argument("dst", type=FILE)
@pattern_argument
@method_option
@choice_options
@padding_option(
    default="skip",
    show_default=True,
    help="For a weight whose shape the pattern does not divide: skip it, refuse, solve as if zeros "
    "followed, keep the rest.",
)
@threads_option
@click.option(
    "--resume", is_flag=True, help="Go on with an interrupted run; begin one if there is none."
)
@click.option("--json", "as_json", is_flag=True, help="Print report.json instead of a table.")
def prune(
    src: Path,
    dst: Path,
    pattern: str | None,
    patterns: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> int:
    """Write DST, a copy of the checkpoint SRC in which every weight holds its pattern, with masks
    and report.json beside it.

    SRC is a .safetensors file, a folder as Hugging Face lays it out, a .npy or a .npz file, and is
    never written to. Tensors are read, solved and written one at a time. PATTERN may be given as
    --pattern.

    Masks keep the largest |W|: the best mask of a weight, not of a model. Pruned like this a
    language model is ruined (tens of times the perplexity at 2:4) unless it is trained further;
    nmsolve.torch.sparsegpt_ and adaprune_ (docs/pruning.md) prune by calibration data instead.
    """
    options["include"] = options["include"] or None
    asked = needed_patterns(pattern, patterns)
    code = run_and_show("prune", src, dst, asked, options=options, as_json=as_json)
    if code == 0 and speaks():
        (show_aside if as_json else show)(BY_MAGNITUDE)
    return code


@click.command(
    cls=Examples,
    examples=[
        "nmsolve report pruned/ -o report.html",
        "nmsolve report pruned/ --against dense/ -o report.html",
    ],
)
@click.argument("checkpoint", type=FILE)
@click.option(
    "--against",
    metavar="DENSE",
    type=FILE,
    help="The dense checkpoint: kept |W| and gap are computed again from it.",
)
@click.option(
    "-o",
    "--out",
    metavar="PAGE",
    type=FILE,
    default="report.html",
    show_default=True,
    help="Where the page goes.",
)
@force_option
def report(checkpoint: Path, against: Path | None, out: Path, force: bool) -> None:
    """Write one page about a pruned checkpoint, which works offline.

    Kept |W|, gap, pattern, density and time by layer, masks to look at, and where sparsity is
    missing and why.
    """
    from nmsolve.checkpoint import report as write_report

    found = write_report(checkpoint, out, against=against, force=force)
    stands()
    tell = show_aside if out.exists() and is_stdout(os.stat(out)) else show
    tell(found.conclusion)
    for note in found.notes:
        tell(f"note: {note}")
    tell(f"written to {out}")
