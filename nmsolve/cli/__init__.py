"""The command line: `nmsolve demo | solve | prune | verify | report | diversity | methods | completion`. Parses, calls, prints.

Exit codes: 0; 1 for a mask or weights that violate their pattern; 2 for input that cannot be worked with; 130 for Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from io import TextIOWrapper

import click

import nmsolve
from nmsolve.cli.checkpoints import prune, report
from nmsolve.cli.facts import completion, demo, diversity, methods
from nmsolve.cli.masks import solve, verify
from nmsolve.cli.printing import show_error
from nmsolve.errors import NMSolveError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}, no_args_is_help=False)
@click.version_option(nmsolve.__version__, prog_name="nmsolve", message="%(prog)s %(version)s")
def nmsolve_command() -> None:
    """The best N:M sparsity mask of a weight matrix, with a proof that it is the best."""


for _command in (demo, solve, prune, verify, report, diversity, methods, completion):
    nmsolve_command.add_command(_command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    from nmsolve.checkpoint.ranks import ElsewhereError

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # × and | on a terminal that knows ASCII only must not end a finished run
            stream.reconfigure(errors="backslashreplace")
    try:
        code = nmsolve_command.main(args=None if argv is None else list(argv), prog_name="nmsolve", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.exceptions.Abort:  # Ctrl-C
        print("nmsolve: stopped", file=sys.stderr)
        return 130
    except ElsewhereError:  # another process of this run has said why
        return 2
    except (NMSolveError, OSError) as error:
        show_error(error)
        return 2
    return code or 0
