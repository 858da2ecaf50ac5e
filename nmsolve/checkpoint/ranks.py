"""The processes of one run: torch.distributed over gloo if there is more than one, nothing at all
otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from nmsolve.errors import ElsewhereError, MissingDependencyError, NMSolveError, SolverError
from nmsolve.torchrun import one_of_several

T = TypeVar("T")
#: For how long ranks wait for the slowest: work is split evenly by bytes, so hours mean that one is
#: lost without a trace.
PATIENCE = timedelta(hours=12)


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of the run.

    Attributes
    ----------
    rank, size : int
        Its number, and how many there are.
    group : process group of torch.distributed, optional
        Over which they talk; None for the one that torch.distributed has by default.
    """

    rank: int
    size: int
    group: Any = None

    @property
    def first(self) -> bool:
        """True for the rank that prepares and publishes."""
        return self.rank == 0

    def from_first(self, make: Callable[[], T]) -> T:
        """Return what the first rank makes, on every rank.

        Raises
        ------
        ElsewhereError
            On the others, if the first fails, which raises its own error.
        """
        if self.size == 1:
            return make()
        failure: BaseException | None = None
        box: list[Any] = [None, None]
        if self.first:
            try:
                box[0] = make()
            except Exception as error:
                failure, box[1] = error, f"{type(error).__name__}: {error}"
        self._collectively(
            lambda distributed: distributed.broadcast_object_list(
                box, src=self._global(distributed), group=self.group
            )
        )
        if failure is not None:
            raise failure
        if box[1] is not None:
            raise ElsewhereError(f"rank 0 failed: {box[1]}")
        made: T = box[0]
        return made

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in their order, on every rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        self._collectively(
            lambda distributed: distributed.all_gather_object(found, value, group=self.group)
        )
        return found

    def _global(self, distributed: Any) -> int:
        return int(distributed.get_global_rank(self.group, 0)) if self.group is not None else 0

    def _collectively(self, call: Callable[[Any], None]) -> None:
        import torch.distributed

        try:
            call(torch.distributed)
        except RuntimeError as error:  # what gloo raises when a connection breaks or stays silent
            raise SolverError(
                f"a process of this run is gone ({str(error).splitlines()[0]}); resume=True goes on"
            ) from error


@contextmanager
def ranks() -> Iterator[Ranks]:
    """Yield the processes that torchrun started together, or the caller's process group, or this
    process alone.

    Raises
    ------
    MissingDependencyError
        If there are several and torch is not installed.
    NMSolveError
        If they cannot find each other.
    """
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        group = distributed.new_group(backend="gloo", timeout=PATIENCE)
        yield Ranks(distributed.get_rank(), distributed.get_world_size(), group)
        return
    if not one_of_several():
        yield Ranks(0, 1)
        return
    try:
        import torch.distributed as started
    except ImportError as error:
        raise MissingDependencyError(
            "WORLD_SIZE asks for several processes, which talk over torch.distributed, and torch "
            "is not installed; run: pip install 'nmsolve[torch]'"
        ) from error
    try:
        started.init_process_group("gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise NMSolveError(f"the processes of this run cannot find each other: {error}") from error
    try:
        yield Ranks(started.get_rank(), started.get_world_size())
    finally:
        started.destroy_process_group()
