"""Progress of a run on stderr: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nmsolve.cli.printing import printable
from nmsolve.cli.stopping import STOPPING
from nmsolve.errors import MissingDependencyError
from nmsolve.table import shortened
from nmsolve.torchrun import one_of_several, rank_given

if TYPE_CHECKING:
    from nmsolve.checkpoint import Progress


class Lines:
    """Progress as a line for every tensor that was solved.

    Attributes
    ----------
    state : str
        How far the run is, in words.
    """

    def __init__(self) -> None:
        self.state = "no tensor done"
        self._prefix = f"[rank {rank_given()}] " if one_of_several() else ""

    def __call__(self, event: Progress) -> None:
        self.state = f"{event.done + event.before} of {event.of + event.before} tensors done"
        self._show(event)

    def _show(self, event: Progress) -> None:
        if event.report is None:
            if event.done == 0 and event.before:
                self._print(f"going on: {event.before} tensors were done before")
            return
        if event.report.pattern is not None:
            self._print(
                f"{event.done}/{event.of}  {event.name}  {event.report.pattern}  {speed(event)}  "
                f"{left(event)}"
            )

    def _print(self, text: str) -> None:
        # in one piece, which Ctrl-C does not part from its line end
        sys.stderr.write(f"{self._prefix}{printable(text)}\n")
        sys.stderr.flush()

    def stop(self) -> None:
        """Leave the terminal as it was."""


class Bar(Lines):
    """Progress as a live bar: the tensor at work, Mw/s and time left."""

    def __init__(self, console: Any) -> None:
        super().__init__()
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[speed]}  {task.fields[left]}", markup=False),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None, speed="", left="")
        STOPPING.bar = True
        try:
            self._bar.start()
        except BaseException:
            # Ctrl-C: half of the bar is on the terminal, and in the place of stdout and stderr
            self.stop()
            raise

    def _show(self, event: Progress) -> None:
        name = printable(shortened(event.name, 36))
        self._bar.update(
            self._task,
            total=max(1, event.of_bytes),
            completed=event.done_bytes,
            description=f"{event.done + event.before}/{event.of + event.before} {name}",
            speed=speed(event),
            left=left(event),
        )

    def stop(self) -> None:
        self._bar.stop()
        STOPPING.bar = False


def speed(event: Progress) -> str:
    """Return million weights solved per second, reading and writing included."""
    return f"{event.weights / event.seconds / 1e6:.3g} Mw/s" if event.weights else "- Mw/s"


def left(event: Progress) -> str:
    """Return the time that the rest will take if it goes on like this."""
    if not event.weights:  # copies say nothing about how long solving takes
        return "- left"
    seconds = round(event.seconds * (event.of_bytes - event.done_bytes) / event.done_bytes)
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return (
        f"{hours} h {minutes:02} min"
        if hours
        else f"{minutes} min {seconds % 60:02} s"
        if minutes
        else f"{seconds} s"
    ) + " left"


@contextmanager
def shown_progress() -> Iterator[Lines]:
    """Yield what to pass as `progress`: a bar if stderr is a terminal that can show one."""
    shown: Lines = Lines()
    if sys.stderr.isatty() and not one_of_several():
        try:
            from rich.console import Console
        except ImportError as error:
            raise MissingDependencyError(
                "checkpoints need rich for their progress bar, which is not installed; run: pip "
                "install 'nmsolve[checkpoint]'"
            ) from error
        console = Console(stderr=True)
        if not console.is_dumb_terminal:
            shown = Bar(console)
    try:
        yield shown
    finally:
        shown.stop()
