"""`nmsolve solve` and `verify`: masks of one array, or of a checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from nmsolve.cli.arrays import is_array, solve_array, verify_array
from nmsolve.cli.options import (
    FILE,
    Examples,
    at_most_option,
    choice_options,
    force_option,
    method_option,
    needed_patterns,
    one_pattern,
    padding_option,
    pattern_argument,
    read_patterns,
    threads_option,
)
from nmsolve.cli.printing import show, stands
from nmsolve.cli.runs import run_and_show
from nmsolve.errors import InputError

#: What becomes of a shape that does not divide, unless the user says it.
PADDING = "For a shape that does not divide; default: error for an array, skip for a checkpoint."


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
@pattern_argument
@click.option(
    "--scores",
    metavar="SCORES.npy",
    type=FILE,
    help="What to maximise instead of |W|, of an array's shape.",
)
@method_option
@at_most_option
@threads_option
@padding_option(help=PADDING)
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
    if is_array(file) and (out is None or out.suffix.lower() != ".safetensors"):
        given = {
            "--include": include,
            "--exclude": exclude,
            "--resume": resume,
            "--padding skip": padding == "skip",
        }
        wrong = [option for option, value in given.items() if value]
        if wrong:
            raise InputError(f"{file} is one array, for which {wrong[0]} has no meaning")
        return solve_array(
            file,
            one_pattern(pattern, patterns, at_most),
            scores,
            options={"method": method, "threads": threads, "padding": padding or "error"},
            out=out,
            force=force,
        )
    if is_array(file) and (scores is not None or force):
        raise InputError(
            f"{'--scores are' if scores is not None else '--force is'} for a mask that is written "
            f"as .npy: {out} is written as the masks of a checkpoint are, which are of |W| and "
            "replace nothing; name a .npy, or a new place, by --out"
        )
    if scores is not None:
        raise InputError(f"--scores are for one array, and {file} is a checkpoint")
    if force:
        raise InputError(
            "--force is for the mask of an array: masks of a checkpoint replace nothing, so name a "
            "new place by --out"
        )
    options: dict[str, Any] = {
        "method": method,
        "include": include or None,
        "exclude": exclude,
        "padding": padding or "skip",
        "threads": threads,
        "resume": resume,
    }
    asked = needed_patterns(pattern, patterns, at_most)
    return run_and_show("solve", file, out or _beside(file), asked, options=options)


def _beside(file: Path) -> Path:
    """Return where the masks of a checkpoint go unless the user says it."""
    if not file.is_dir():
        return file.with_name(f"{file.stem}.masks.safetensors")
    whole = Path(os.path.realpath(file))  # "." has no name to put another beside
    return whole.with_name(f"{whole.name}-masks")


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
@pattern_argument
@click.option(
    "--weights",
    metavar="W.npy",
    type=FILE,
    help="Also compare the |W| that a mask (.npy) keeps with the optimum's.",
)
@at_most_option
@padding_option(help=PADDING)
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
    asked = read_patterns(pattern, patterns, at_most)
    if is_array(file) and asked is not None:
        given = {
            "--include": include,
            "--exclude": exclude,
            "--padding skip": padding == "skip",
        }
        wrong = [option for option, value in given.items() if value]
        if wrong:
            raise InputError(f"{file} is one array, for which {wrong[0]} has no meaning")
        one = one_pattern(pattern, patterns, at_most)
        return verify_array(file, one, padding=padding or "error", compared=weights)
    if weights is not None:
        raise InputError("--weights are for a mask in a .npy file and a pattern")
    from nmsolve.checkpoint import verify as verify_checkpoint

    given = {"--include": include, "--exclude": exclude, "--padding": padding, "--at-most": at_most}
    wrong = [option for option, value in given.items() if value]
    if asked is None and wrong:
        raise InputError(
            f"{wrong[0]} is about the pattern that weights are to hold: name it, or let the masks "
            "beside them say all"
        )
    found = verify_checkpoint(
        file, asked, include=include or None, exclude=exclude, padding=padding or "skip"
    )
    stands()
    show(found)
    return 0 if found else 1
