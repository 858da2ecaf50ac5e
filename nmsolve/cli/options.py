"""Options that commands share, and how their texts are read.

What values they may have, the library checks; only lists that shells complete are given here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from nmsolve.errors import InputError, PatternError
from nmsolve.pattern import Pattern
from nmsolve.selection import PLAN_PADDINGS, Patterns
from nmsolve.solvers import METHODS

FILE = click.Path(path_type=Path)
PATTERN = "2:4 (row-wise), 2:4T (transposable), '<=2:4T' (at most 2)"


class Examples(click.Command):
    """A command whose help ends in examples.

    Attributes
    ----------
    examples : sequence of str
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Examples"):
            for line in self.examples:  # unwrapped, to be copied
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")


def pattern_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """[PATTERN] and --pattern, for one pattern or several by glob: `read_patterns` takes both."""
    command = click.option(
        "--pattern",
        "patterns",
        multiple=True,
        metavar="PATTERN",
        help=f"{PATTERN}. Several times as 'GLOB=PATTERN' for some tensors by name (the first that "
        "matches decides; GLOB=dense keeps them dense), with or without one PATTERN for all "
        "others.",
    )(command)
    return click.argument("pattern", required=False)(command)


def choice_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--include and --exclude."""
    for name, text in (
        ("exclude", "Not the tensors of these names or modules"),
        (
            "include",
            "Only the tensors of these names or modules; a full name also takes one that its name "
            "leaves dense",
        ),
    ):
        command = click.option(
            f"--{name}", multiple=True, metavar="GLOB", help=f"{text}; may be given several times."
        )(command)
    return command


def method_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--method."""
    return click.option(
        "--method",
        type=click.Choice(METHODS),
        default="auto",
        show_default=True,
        help="auto is exact; see `nmsolve methods`.",
    )(command)


def threads_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--threads."""
    return click.option("--threads", type=int, help="For solving; all processors by default.")(
        command
    )


def at_most_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--at-most."""
    return click.option("--at-most", is_flag=True, default=None, help="Allow fewer than n.")(
        command
    )


def padding_option(**settings: Any) -> Callable[..., Any]:
    """--padding; `settings` are click's."""
    return click.option("--padding", type=click.Choice(PLAN_PADDINGS), **settings)


def force_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--force."""
    return click.option(
        "--force", is_flag=True, help="Replace a file that is there, whatever it is but an input."
    )(command)


def read_patterns(
    positional: str | None, named: Sequence[str], at_most: bool | None = None
) -> Patterns | None:
    """Return what PATTERN and --pattern say: one pattern, or globs and a pattern each; None if they
    say nothing.

    Raises
    ------
    PatternError, InputError
        For a text that is no pattern, or two for all tensors.
    """
    found: dict[str, Pattern | str | None] = {}
    for text in ([positional] if positional else []) + list(named):
        glob, pattern = _read_pattern(text, at_most)
        if glob in found:
            raise InputError(
                f"--pattern names two patterns for {'all tensors' if glob == '*' else repr(glob)}: "
                f"{found[glob]} and {pattern}"
            )
        found[glob] = pattern
    if "*" in found:
        found["*"] = found.pop("*")  # for all others: last, wherever it was written
    if set(found) == {"*"} and found["*"] is not None:
        return found["*"]
    return found or None


def needed_patterns(
    positional: str | None, named: Sequence[str], at_most: bool | None = None
) -> Patterns:
    """Return as `read_patterns` does, where there must be a pattern.

    Raises
    ------
    PatternError, InputError
        As `read_patterns`, and for none.
    """
    found = read_patterns(positional, named, at_most)
    if found is None:
        raise InputError("name a pattern, such as --pattern 2:4 or --pattern 2:4T")
    return found


def one_pattern(positional: str | None, named: Sequence[str], at_most: bool | None) -> Pattern:
    """Return the pattern of an array, which has one.

    Raises
    ------
    PatternError, InputError
        As `needed_patterns`, and for several.
    """
    found = needed_patterns(positional, named, at_most)
    if not isinstance(found, Pattern):
        raise InputError("an array has one pattern, such as --pattern 2:4T")
    return found


def _read_pattern(text: str, at_most: bool | None) -> tuple[str, Pattern | None]:
    try:
        return "*", Pattern.of(text, at_most)
    except PatternError:
        glob, equals, pattern = text.partition("=")
        if not equals or glob.strip() in ("", "<"):
            raise
        return glob, None if pattern.strip() == "dense" else Pattern.of(pattern, at_most)


def read_shape(text: str) -> tuple[int, ...]:
    """Return a shape such as 4096x4096; InputError for anything else."""
    if not re.fullmatch(r"\s*\d{1,18}(\s*[x×,]\s*\d{1,18})+\s*", text):
        raise InputError(f"cannot read the shape {text!r}; write rows and columns as 4096x4096")
    return tuple(int(size) for size in re.findall(r"\d+", text))
