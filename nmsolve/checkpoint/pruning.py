"""`prune` and `solve`: a checkpoint's tensors, one at a time, and this process's share of them."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsolve.bits import pack
from nmsolve.checkpoint.disk import naming
from nmsolve.checkpoint.job import Job, Outcomes, decide, publish
from nmsolve.checkpoint.journal import MASKS, WEIGHTS, Unfinished, Writer
from nmsolve.checkpoint.planning import TensorPlan
from nmsolve.checkpoint.ranks import Ranks, ranks
from nmsolve.checkpoint.resuming import begin
from nmsolve.checkpoint.solving import apply, outcome, report_of, solve_tensor, total
from nmsolve.checkpoint.stored import CHUNK, WeightFile, allocate, out_of_memory
from nmsolve.checkpoint.summary import PruneReport, TensorReport
from nmsolve.errors import NMSolveError
from nmsolve.selection import Patterns
from nmsolve.validate import thread_count

AnyPath = str | os.PathLike[str]
#: What a byte that is solved costs in time, where one that is copied costs 1: for shares of about
#: the same length.
SOLVED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far this process is with its share.

    name : of the tensor that it works on, or has finished: then `report` is what came of it, else
    None. done, of : tensors; done_bytes, of_bytes : the same in bytes. before : tensors that an
    interrupted run had done. weights : entries solved so far. seconds : since this call began its
    first tensor.
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


def prune(
    src: AnyPath,
    dst: AnyPath,
    pattern: Patterns,
    *,
    method: str = "auto",
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] = (),
    padding: str = "skip",
    threads: int | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> PruneReport:
    r"""Write a copy of a checkpoint in which every weight holds its pattern, and the masks beside
    it.

    .. math:: \max_X \sum_{ij} |W_{ij}| X_{ij}, \quad X \text{ of the pattern}

    is solved for each weight W on its own, as by `nmsolve.solve`, and W ∘ X is written.

    Parameters
    ----------
    src : path
        A .safetensors file, a folder as Hugging Face lays it out (shards and their index, or one
        file; config and tokenizer files are copied along; models in folders of their own are pruned
        too), a .npy or .npz file. Never written to.
    dst : path
        Where the copy goes: for a folder, one that is new or empty; for a file, a file of the same
        kind, or a folder that exists.
    pattern : Pattern, str, or mapping of globs to patterns
        One for all weights, or {"*.mlp.*": "2:4T", "*": "2:4"}: the first glob that matches a
        tensor decides; None leaves it dense.
    method : {"auto", "exact", "greedy", "cover", "min_cost_flow"}
        As for `nmsolve.solve`.
    include, exclude : glob or globs of tensor or module names
        Only these, and not these. A glob names a module and everything inside it. A tensor that
        `include` names without a wildcard is pruned even if its name looks like that of an
        embedding.
    padding : {"skip", "error", "pad", "dense"}
        What becomes of a weight whose shape the pattern does not divide: kept dense, with the
        reason; an error; or as `nmsolve.solve` pads.
    threads : int, optional
        For solving; all processors by default.
    resume : bool
        Go on with a run that was interrupted, killed included; begin one if there is none. Of one
        that is finished, the report, if options, version and source are the same, and what was
        written is there, byte for byte; an error that names what differs, if not.
    progress : callable, optional
        Called with a `Progress` before and after every tensor of this process.

    Returns
    -------
    PruneReport
        What is in report.json, with the seconds of times.json.

    Raises
    ------
    InputError, PatternError
        For a checkpoint that is damaged, incomplete or pickled; NaN or infinity in a weight;
        options that cannot be served; a destination that exists, or is the source. The message
        names file and tensor.
    OSError
        If the system refuses to read or write. What was done stays, for `resume=True`.
    MissingDependencyError
        If safetensors is not installed.

    Notes
    -----
    Memory is that of the largest weight: its bytes, a byte an entry for its mask, and an eighth.
    Names, dtypes, shapes, shards and metadata stay as they are. Files are made under temporary
    names and renamed once all are whole and synced, an index last. Under torchrun, tensors are
    split over the ranks, which must see one file system. Weights, masks and report.json are the
    same byte for byte for every number of threads and ranks, and however often a run is killed and
    resumed.

    Examples
    --------
    >>> import tempfile, numpy as np, nmsolve.checkpoint
    >>> folder = tempfile.TemporaryDirectory()
    >>> np.savez(f"{folder.name}/dense.npz", a=np.eye(8), b=np.ones((8, 12)), c=np.ones(3))
    >>> print(prune(f"{folder.name}/dense.npz", f"{folder.name}/sparse.npz", "2:4T"))
    tensor  dtype  shape  pattern  kept |W|      gap  status
    a       <f8    8×8    2:4T     100.00 %  4.4e-16  optimal
    b       <f8    8×12   2:4T      50.00 %  4.4e-16  optimal
    and 1 tensors with fewer than two axes, which stay dense
    2 of 3 tensors pruned, 98.2 % of 163 weights; density of the whole 0.5092
    where pruned, 53.85 % of |W| kept, certified gap 5.1e-16
    >>> nmsolve.checkpoint.verify(f"{folder.name}/sparse.npz", "2:4T").ok
    True
    >>> folder.cleanup()
    """
    options = {"method": method, "include": include, "exclude": exclude, "padding": padding}
    return _run(src, dst, pattern, options, True, threads, resume, progress)


def solve(
    src: AnyPath,
    dst: AnyPath,
    pattern: Patterns,
    *,
    method: str = "auto",
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] = (),
    padding: str = "skip",
    threads: int | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> PruneReport:
    """As `prune`, but write the masks alone: to a .safetensors file, or for a folder to a folder
    that is new or empty.

    `open_masks` opens either.
    """
    options = {"method": method, "include": include, "exclude": exclude, "padding": padding}
    return _run(src, dst, pattern, options, False, threads, resume, progress)


def _run(
    src: AnyPath,
    dst: AnyPath,
    pattern: Patterns,
    options: Mapping[str, Any],
    weights_too: bool,
    threads: int | None,
    resume: bool,
    progress: Callable[[Progress], None] | None,
) -> PruneReport:
    workers = thread_count(threads)
    with ranks() as among, ExitStack() as at_the_end:

        def prepare() -> tuple[Job, Outcomes, PruneReport | None]:
            job = decide(Path(src), Path(dst), pattern, weights_too=weights_too, **options)
            unfinished = Unfinished(job.target.work)
            at_the_end.callback(unfinished.release)
            return job, *begin(job, unfinished, resume)

        job, done, complete = among.from_first(prepare)
        if complete is not None:
            return complete
        left = [
            plan
            for plan in job.plans
            if plan.tensor.name not in done and (weights_too or plan.pattern)
        ]
        share = Share(job, _portion(left, among), among.rank, len(done), progress)
        for outcomes in among.gather(share.work(options["method"], workers)):
            done |= outcomes
        report = job.report(done)
        return among.from_first(lambda: publish(job, report, Unfinished(job.target.work)))


def _portion(plans: Sequence[TensorPlan], among: Ranks) -> list[TensorPlan]:
    """This rank's part: consecutive tensors, so that ranks write apart from each other, of about
    the same cost.
    """
    costs = [plan.tensor.size * (SOLVED if plan.pattern else 1) + 1 for plan in plans]
    ends = np.cumsum(costs, dtype=np.float64)
    middles = (ends - np.asarray(costs) / 2) / max(1.0, float(sum(costs)))
    return [
        plan
        for plan, middle in zip(plans, middles, strict=True)
        if int(middle * among.size) == among.rank
    ]


class Share:
    """The tensors that one process works through."""

    def __init__(
        self,
        job: Job,
        plans: Sequence[TensorPlan],
        rank: int,
        before: int,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.job, self.plans, self.rank, self.before, self.progress = (
            job,
            plans,
            rank,
            before,
            progress,
        )
        self.files = {file.name: file for file in job.source.files}

    def work(self, method: str, threads: int) -> Outcomes:
        """Solve, write and journal each; what came of them.

        What was finished is on the disk and journalled whatever ends this, short of a kill, which
        loses `SYNC_SECONDS`.
        """
        outcomes: Outcomes = {}
        began, weights, done_bytes = time.perf_counter(), 0, 0
        of_bytes = sum(plan.tensor.size for plan in self.plans)
        buffer = self._buffer()
        writer = Writer(Unfinished(self.job.target.work), self.rank)

        def tell(plan: TensorPlan, report: TensorReport | None) -> None:
            if self.progress is not None:
                spent = time.perf_counter() - began
                self.progress(
                    Progress(
                        name=plan.tensor.name,
                        report=report,
                        done=len(outcomes),
                        of=len(self.plans),
                        done_bytes=done_bytes,
                        of_bytes=of_bytes,
                        before=self.before,
                        weights=weights,
                        seconds=spent,
                    )
                )

        try:
            for plan in self.plans:
                tell(plan, None)
                found = self._tensor(plan, writer, buffer, method, threads)
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

    def _tensor(
        self, plan: TensorPlan, writer: Writer, buffer: NDArray[np.uint8], method: str, threads: int
    ) -> dict[str, Any]:
        began = time.perf_counter()
        file, tensor = self.files[plan.file], plan.tensor
        try:
            with naming(
                f"writing tensor {tensor.name!r} of {file.path} to {self.job.target.work}; "
                "resume=True (--resume) goes on"
            ):
                if plan.pattern is None:
                    return self._copy(file, plan, writer, buffer, began)
                return self._prune(file, plan, writer, buffer, method, threads, began)
        except MemoryError as error:
            raise out_of_memory(tensor.size, file.path, tensor.name) from error

    def _buffer(self) -> NDArray[np.uint8]:
        """Memory for any tensor of the share: the largest that is solved, or what is copied at a
        time.
        """
        largest = max(
            (plan for plan in self.plans if plan.pattern),
            key=lambda plan: plan.tensor.size,
            default=None,
        )
        if largest is None:
            return np.empty(CHUNK, np.uint8)
        return allocate(
            max(CHUNK, largest.tensor.size), self.files[largest.file].path, largest.tensor.name
        )

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
        plan: TensorPlan,
        writer: Writer,
        buffer: NDArray[np.uint8],
        method: str,
        threads: int,
        began: float,
    ) -> dict[str, Any]:
        tensor = plan.tensor
        file.read(tensor, buffer)
        array = tensor.view(buffer)
        try:
            mask, result = solve_tensor(array, plan, method, threads)
            weight_sum = total(array)
        except NMSolveError as error:
            raise type(error)(f"{file.path}: tensor {tensor.name!r}: {error}") from error
        apply(array, mask)
        pruned, packed = buffer.data[: tensor.size], pack(mask).data
        hashed = hashlib.sha256()
        if self.job.target.weights_too:
            writer.write(WEIGHTS, file.name, tensor.start, pruned, hashed)
        else:
            hashed.update(pruned)
        mask_hashed = hashlib.sha256()
        writer.write(
            MASKS,
            file.name,
            self.job.mask_files[file.name].places[tensor.name],
            packed,
            mask_hashed,
        )
        return outcome(
            result, mask, weight_sum, (hashed.hexdigest(), mask_hashed.hexdigest()), began
        )
