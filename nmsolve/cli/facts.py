"""`nmsolve demo`, `diversity`, `methods` and `completion`: what needs no weights of the user's."""

from __future__ import annotations

from pathlib import Path

import click

import nmsolve
from nmsolve.cli.options import Examples, force_option, read_shape
from nmsolve.cli.printing import stands
from nmsolve.errors import InputError
from nmsolve.table import table

#: The variable by which a shell asks for completions; click knows its name by the command's.
COMPLETE = "_NMSOLVE_COMPLETE"
SHELLS = ("bash", "zsh", "fish")


@click.command(
    cls=Examples, short_help="Every method on a small trained network.", examples=["nmsolve demo"]
)
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default="nmsolve-demo",
    show_default=True,
    help="Where masks and picture go.",
)
@force_option
def demo(out: Path, force: bool) -> None:
    """Every method on a small trained network: a table, masks and a picture."""
    from nmsolve.demo import demo as run

    run(out, force=force)
    stands()


@click.command(cls=Examples, examples=["nmsolve diversity 4:8T --shape 4096x4096"])
@click.argument("pattern")
@click.argument("sizes", nargs=-1, type=int, metavar="[ROWS COLS]")
@click.option("--shape", metavar="ROWSxCOLS", help="Of the matrix, such as 4096x4096.")
def diversity(pattern: str, sizes: tuple[int, ...], shape: str | None) -> None:
    """The number of masks that a pattern allows."""
    if (shape is None) == (len(sizes) != 2):
        raise InputError("a matrix has rows and columns: --shape 4096x4096")
    print(nmsolve.diversity(pattern, shape=sizes if shape is None else read_shape(shape)))


@click.command(cls=Examples, examples=["nmsolve methods", "nmsolve methods 4:8T"])
@click.argument("pattern", required=False)
def methods(pattern: str | None) -> None:
    """The methods that serve a pattern, each with its guarantee."""
    kinds = {pattern: pattern} if pattern else {"row-wise": "2:4", "transposable": "2:4T"}
    rows = [
        (kind, method, guarantee)
        for kind, example in kinds.items()
        for method, guarantee in nmsolve.methods(example).items()
    ]
    print(table(("pattern", "method", "guarantee"), rows))


@click.command(
    cls=Examples,
    examples=[
        'eval "$(nmsolve completion bash)"   # in ~/.bashrc',
        'eval "$(nmsolve completion zsh)"    # in ~/.zshrc',
        "nmsolve completion fish > ~/.config/fish/completions/nmsolve.fish",
    ],
)
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print what a shell needs to complete nmsolve's commands and options."""
    from click.shell_completion import BashComplete, FishComplete, ZshComplete

    completers = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}
    command = click.get_current_context().find_root().command
    print(completers[shell](command, {}, "nmsolve", COMPLETE).source())
