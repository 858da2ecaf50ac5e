"""The command line: `nmsolve demo | solve | prune | verify | report | diversity | methods |
completion`. Parses, calls, prints.

Exit codes: 0; 1 for a mask or weights that violate their pattern; 2 for input that cannot be worked
with, or a result that is nowhere because stdout could not be written; 3 for an error of nmsolve's
own, with a traceback; 130 for Ctrl-C. What a command has written to files, or found to hold, stands
whatever becomes of stdout and stderr, and a reader that goes away early (`| head`) is no failure.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import click

import nmsolve
from nmsolve import starting
from nmsolve.cli.checkpoints import prune, report
from nmsolve.cli.facts import COMPLETE, completion, demo, diversity, methods
from nmsolve.cli.masks import solve, verify
from nmsolve.cli.printing import has_stood, show_error
from nmsolve.cli.stopping import STOPPING, interruptible
from nmsolve.cli.streams import Stream, guarded_streams
from nmsolve.errors import ElsewhereError, NMSolveError
from nmsolve.starting import INTERRUPTED


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    no_args_is_help=False,
)
@click.version_option(nmsolve.__version__, prog_name="nmsolve", message="%(prog)s %(version)s")
def nmsolve_command() -> None:
    """The best N:M sparsity mask of a weight matrix, with a proof that it is the best."""


for _command in (demo, solve, prune, verify, report, diversity, methods, completion):
    nmsolve_command.add_command(_command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        The command's arguments. Without them this process is the command: then Ctrl-C and closed
        streams too are answered as a command should, until it has ended.
    """
    if argv is not None:
        with guarded_streams(own=False) as streams:
            return _run(argv, *streams)
    try:
        with interruptible(), guarded_streams(own=True) as streams:
            try:
                code = _run(sys.argv[1:], *streams)
            except Exception:  # Python's exit code would be 1, which is a verdict here
                traceback.print_exc()
                code = 3
    except KeyboardInterrupt:  # between two lines of what answers it
        code = INTERRUPTED
    starting.interrupted = code == INTERRUPTED
    return code


def _run(argv: Sequence[str], out: Stream, err: Stream) -> int:
    """Return a command's exit code, once all that it printed is written, or known not to be."""
    try:
        code, done = _answer(argv)
        lost = out.lost
        if code or lost is None:
            return code
        if done:
            print(
                f"nmsolve: stdout cannot be written ({lost}), but all else is done", file=sys.stderr
            )
            return 0
        show_error(f"stdout cannot be written: {lost}")
        return 2
    except KeyboardInterrupt:
        return _stopped(err)
    except Exception:
        if STOPPING.pressed:  # Ctrl-C inside an import, which made another error of it
            return _stopped(err)
        raise


def _stopped(err: Stream) -> int:
    # stderr may still be a live bar's, which lets no escapes pass
    print(f"{STOPPING.clear}nmsolve: stopped", file=err)
    return INTERRUPTED


def _answer(argv: Sequence[str]) -> tuple[int, bool]:
    """Return a command's exit code, and whether what it did stands without its text.

    click's own `main` would make exit code 1 of a pipe that is closed.
    """
    try:
        if instruction := os.environ.get(COMPLETE):
            from click.shell_completion import shell_complete

            return shell_complete(nmsolve_command, {}, "nmsolve", COMPLETE, instruction), False
        with nmsolve_command.make_context("nmsolve", list(argv)) as context:
            return nmsolve_command.invoke(context) or 0, has_stood(context)
    except click.exceptions.Exit as done:  # --help and --version
        return done.exit_code, False
    except click.ClickException as error:
        error.show()
        return error.exit_code, False
    except ElsewhereError:  # another process of this run has said why
        return 2, False
    except (NMSolveError, OSError, MemoryError) as error:
        if STOPPING.pressed:
            raise
        show_error(
            f"out of memory: {error}".removesuffix(": ")
            if isinstance(error, MemoryError)
            else error
        )
        return 2, False
