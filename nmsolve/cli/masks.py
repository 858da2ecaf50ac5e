"""`nmsolve solve` and `verify`: masks of one array, or of a checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from nmsolve.cli import arrays
from nmsolve.cli.options import (
    FILE,
    Examples,
    choice_options,
    force_option,
    method_option,
    patterns_option,
    read_patterns,
    threads_option,
)
from nmsolve.cli.printing import show, stands
from nmsolve.errors import InputError
from nmsolve.pattern import Pattern
from nmsolve.validate import PADDINGS

CHOICES = click.Choice(["skip", *PADDINGS])
AT_MOST = click.option("--at-most", is_flag=True, default=None, help="Allow fewer than n.")
PADDING = click.option(
    "--padding",
    type=CHOICES,
    help="For a shape that does not divide; default: error for an array, skip for a checkpoint.",
)


def _one_pattern(
    positional: str | None, patterns: tuple[str, ...], at_most: bool | None
) -> Pattern:
    chosen = read_patterns([*([positional] if positional else []), *patterns], at_most)
    if not isinstance(chosen, Pattern):
        raise InputError("an array has one pattern, such as --pattern 2:4T")
    return chosen


@click.command(
    cls=Examples,
    examples=[
        "nmsolve solve weights.npy 2:4T --out mask.npy",
        "nmsolve solve model.safetensors --pattern 2:4 --exclude lm_head   # writes "
        "model.masks.safetensors",
        "nmsolve solve meta-llama/ --pattern '*.mlp.*=2:4T' --pattern 2:4 --out masks/",
    ],
)
@click.argument("file", type=FILE)
@click.argument("pattern", required=False)
@patterns_option
@click.option(
    "--scores",
    metavar="SCORES.npy",
    type=FILE,
    help="What to maximise instead of |W|, of an array's shape.",
)
@method_option
@AT_MOST
@threads_option
@PADDING
@choice_options
@click.option(
    "--out",
    metavar="MASKS",
    type=FILE,
    help="For an array: MASK.npy (bool) or MASK.safetensors (bit-packed). For a checkpoint: "
    "NAME.masks.safetensors beside it by default, for a folder NAME-masks.",
)
@click.option("--resume", is_flag=True, help="Go on with an interrupted run.")
@force_option
def solve(
    file: Path,
    pattern: str | None,
    patterns: tuple[str, ...],
    scores: Path | None,
    method: str,
    at_most: bool | None,
    threads: int | None,
    padding: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    out: Path | None,
    resume: bool,
    force: bool,
) -> int:
    """Find the masks of FILE, and write them alone.

    FILE is a checkpoint (.safetensors, .npz, or a folder), or an array (.npy; groups run along its
    last axis, so a convolution's as (kernel ..., out, in)). PATTERN may be given as --pattern.
    """
    if arrays.is_array(file) and (out is None or out.suffix.lower() != ".safetensors"):
        given = {
            "--include": include,
            "--exclude": exclude,
            "--resume": resume,
            "--padding skip": padding == "skip",
        }
        wrong = [option for option, value in given.items() if value]
        if wrong:
            raise InputError(f"{file} is one array, for which {wrong[0]} has no meaning")
        options: dict[str, Any] = {
            "method": method,
            "threads": threads,
            "padding": padding or "error",
        }
        return arrays.solve(
            file, _one_pattern(pattern, patterns, at_most), scores, options, out, force
        )
    if scores is not None:
        raise InputError(f"--scores are for one array, and {file} is a checkpoint")
    if force:
        raise InputError(
            "--force is for the mask of an array: masks of a checkpoint replace nothing, so name a "
            "new place by --out"
        )
    from nmsolve.cli.checkpoints import run_and_show

    whole = (
        Path(os.path.realpath(file)) if file.is_dir() else file
    )  # "." has no name to put another beside
    beside = whole.with_name(
        f"{whole.name}-masks" if file.is_dir() else f"{file.stem}.masks.safetensors"
    )
    choice = {
        "include": include or None,
        "exclude": exclude,
        "padding": padding or "skip",
        "threads": threads,
        "resume": resume,
    }
    asked = read_patterns([*([pattern] if pattern else []), *patterns], at_most)
    return run_and_show(
        "solve", file, out or beside, asked, {"method": method, **choice}, as_json=False
    )


@click.command(
    cls=Examples,
    short_help="Check a checkpoint, masks or an array; exits with 1 for a violation.",
    examples=[
        "nmsolve verify pruned/ --pattern 2:4T --exclude lm_head",
        "nmsolve verify pruned/   # against the masks beside the weights",
        "nmsolve verify mask.npy 2:4T --weights weights.npy",
    ],
)
@click.argument("file", metavar="CHECKPOINT", type=FILE)
@click.argument("pattern", required=False)
@patterns_option
@click.option(
    "--weights",
    metavar="W.npy",
    type=FILE,
    help="Also compare the |W| that a mask (.npy) keeps with the optimum's.",
)
@AT_MOST
@PADDING
@choice_options
def verify(
    file: Path,
    pattern: str | None,
    patterns: tuple[str, ...],
    weights: Path | None,
    at_most: bool | None,
    padding: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
) -> int:
    """Check a checkpoint, a file of masks, or an array (.npy: bool is a mask, numbers are weights),
    tensor by tensor.

    Exits with 1 if any group violates its pattern. Without a pattern, the masks beside the weights
    say which. PATTERN may be given as --pattern.
    """
    given = {"--include": include, "--exclude": exclude, "--padding": padding, "--at-most": at_most}
    if arrays.is_array(file) and (pattern or patterns):
        wrong = [
            option
            for option, value in given.items()
            if value and (option in ("--include", "--exclude") or value == "skip")
        ]
        if wrong:
            raise InputError(
                f"{file} is one array, for which {wrong[0]}{' skip' * (wrong[0] == '--padding')} "
                "has no meaning"
            )
        return arrays.verify(
            file, _one_pattern(pattern, patterns, at_most), padding or "error", weights
        )
    if weights is not None:
        raise InputError("--weights are for a mask in a .npy file and a pattern")
    from nmsolve.checkpoint import verify as verify_checkpoint

    texts = [*([pattern] if pattern else []), *patterns]
    if not texts and any(given.values()):
        wrong = [option for option, value in given.items() if value]
        raise InputError(
            f"{wrong[0]} is about the pattern that weights are to hold: name it, or let the masks "
            "beside them say all"
        )
    asked = read_patterns(texts, at_most) if texts else None
    found = verify_checkpoint(
        file, asked, include=include or None, exclude=exclude, padding=padding or "skip"
    )
    stands()
    show(found)
    return 0 if found else 1
