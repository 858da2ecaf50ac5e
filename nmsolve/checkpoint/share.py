"""The tensors that one process works through: each is read, solved, written and journalled before
the next.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsolve.bits import pack
from nmsolve.checkpoint.job import Job, Outcomes
from nmsolve.checkpoint.journal import MASKS, WEIGHTS, Unfinished
from nmsolve.checkpoint.planning import PlannedTensor, TensorPlan
from nmsolve.checkpoint.solving import apply, outcome, report_of, solve_tensor, total
from nmsolve.checkpoint.stored import CHUNK, WeightFile, allocate, out_of_memory
from nmsolve.checkpoint.summary import TensorReport
from nmsolve.checkpoint.writer import Writer
from nmsolve.disk import naming
from nmsolve.errors import NMSolveError

#: Time that a byte to be solved costs, where one that is copied costs 1: for shares of about the
#: same length.
SOLVED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The state of this process's share of a run.

    Attributes
    ----------
    name : str
        The tensor that it works on, or has finished.
    report : TensorReport, optional
        Of the tensor, once it is finished; None before.
    done, of : int
        Tensors.
    done_bytes, of_bytes : int
        The same in bytes.
    before : int
        Tensors that an interrupted run had done.
    weights : int
        Entries solved so far.
    seconds : float
        Since this call began its first tensor.
    """

    name: str
    report: TensorReport | None
    done: int
    of: int
    done_bytes: int
    of_bytes: int
    before: int
    weights: int
    seconds: float


def portion(plans: Sequence[TensorPlan], rank: int, size: int) -> list[TensorPlan]:
    """Return one rank's part of all plans: consecutive tensors, so that ranks write apart from each
    other, of about the same cost.
    """
    costs = [plan.tensor.size * (SOLVED if plan.pattern else 1) + 1 for plan in plans]
    ends = np.cumsum(costs, dtype=np.float64)
    middles = (ends - np.asarray(costs) / 2) / max(1.0, float(sum(costs)))
    return [plan for plan, middle in zip(plans, middles, strict=True) if int(middle * size) == rank]


class Share:
    """The work of one process.

    Parameters
    ----------
    job : Job
    plans : sequence of TensorPlan
        Its tensors.
    rank : int
        Its number among the processes.
    before : int
        Tensors that an interrupted run had done, for `Progress`.
    threads : int
        For solving.
    progress : callable, optional
        Called with a `Progress` before and after every tensor.
    """

    def __init__(
        self,
        job: Job,
        plans: Sequence[TensorPlan],
        *,
        rank: int,
        before: int,
        threads: int,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self._job, self._plans = job, plans
        self._rank, self._before, self._threads = rank, before, threads
        self._progress = progress
        self._files = {file.name: file for file in job.source.files}

    def work(self) -> Outcomes:
        """Solve, write and journal each tensor; return the outcomes.

        What was finished is on the disk and journalled whatever ends this, short of a kill, which
        loses `SYNC_SECONDS`.
        """
        outcomes: Outcomes = {}
        began, weights, done_bytes = time.perf_counter(), 0, 0
        of_bytes = sum(plan.tensor.size for plan in self._plans)
        buffer = self._buffer()
        writer = Writer(Unfinished(self._job.target.work), self._rank)

        def tell(plan: TensorPlan, report: TensorReport | None) -> None:
            if self._progress is not None:
                self._progress(
                    Progress(
                        name=plan.tensor.name,
                        report=report,
                        done=len(outcomes),
                        of=len(self._plans),
                        done_bytes=done_bytes,
                        of_bytes=of_bytes,
                        before=self._before,
                        weights=weights,
                        seconds=time.perf_counter() - began,
                    )
                )

        try:
            for plan in self._plans:
                tell(plan, None)
                found = self._tensor(plan, writer, buffer)
                writer.finished(plan.tensor.name, found)
                outcomes[plan.tensor.name] = found
                done_bytes += plan.tensor.size
                weights += math.prod(plan.tensor.shape) if plan.pattern else 0
                tell(plan, replace(report_of(plan), **found))
            writer.sync()
        except BaseException:
            with suppress(OSError):
                writer.sync()
            raise
        finally:
            writer.close()
        return outcomes

    def _buffer(self) -> NDArray[np.uint8]:
        """Memory for any tensor of the share: the largest that is solved, or what is copied at a
        time.
        """
        largest = max(
            (plan for plan in self._plans if plan.pattern),
            key=lambda plan: plan.tensor.size,
            default=None,
        )
        if largest is None:
            return np.empty(CHUNK, np.uint8)
        return allocate(
            max(CHUNK, largest.tensor.size), self._files[largest.file].path, largest.tensor.name
        )

    def _tensor(
        self, plan: TensorPlan, writer: Writer, buffer: NDArray[np.uint8]
    ) -> dict[str, Any]:
        began = time.perf_counter()
        file, tensor = self._files[plan.file], plan.tensor
        try:
            with naming(
                f"writing tensor {tensor.name!r} of {file.path} to {self._job.target.work}; "
                "resume=True goes on"
            ):
                if isinstance(plan, PlannedTensor):
                    return self._prune(file, plan, writer, buffer, began)
                return self._copy(file, plan, writer, buffer, began)
        except MemoryError as error:
            raise out_of_memory(tensor.size, file.path, tensor.name) from error

    def _copy(
        self,
        file: WeightFile,
        plan: TensorPlan,
        writer: Writer,
        buffer: NDArray[np.uint8],
        began: float,
    ) -> dict[str, Any]:
        start, hashed = plan.tensor.start, hashlib.sha256()
        for part in file.chunks(plan.tensor, buffer[:CHUNK]):
            writer.write(WEIGHTS, file.name, start, part, hashed)
            start += len(part)
        return {"digest": hashed.hexdigest(), "seconds": time.perf_counter() - began}

    def _prune(
        self,
        file: WeightFile,
        plan: PlannedTensor,
        writer: Writer,
        buffer: NDArray[np.uint8],
        began: float,
    ) -> dict[str, Any]:
        tensor = plan.tensor
        file.read(tensor, buffer)
        array = tensor.view(buffer)
        try:
            mask, result = solve_tensor(array, plan, self._job.method, self._threads)
            weight_sum = total(array)
        except NMSolveError as error:
            raise type(error)(f"{file.path}: tensor {tensor.name!r}: {error}") from error
        apply(array, mask)
        pruned, packed = buffer.data[: tensor.size], pack(mask).data
        hashed, mask_hashed = hashlib.sha256(), hashlib.sha256()
        if self._job.target.weights_too:
            writer.write(WEIGHTS, file.name, tensor.start, pruned, hashed)
        else:
            hashed.update(pruned)
        place = self._job.mask_files[file.name].places[tensor.name]
        writer.write(MASKS, file.name, place, packed, mask_hashed)
        digests = hashed.hexdigest(), mask_hashed.hexdigest()
        return outcome(result, mask, weight_sum, digests, began)
