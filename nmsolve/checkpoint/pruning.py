"""`prune` and `solve`: a run from its decision to its last file, on all of its processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

from nmsolve.checkpoint.job import Job, Outcomes, decide
from nmsolve.checkpoint.journal import Unfinished
from nmsolve.checkpoint.publishing import publish
from nmsolve.checkpoint.ranks import ranks
from nmsolve.checkpoint.resuming import begin
from nmsolve.checkpoint.share import Progress, Share, portion
from nmsolve.checkpoint.summary import PruneReport
from nmsolve.selection import Patterns
from nmsolve.validate import thread_count

AnyPath = str | os.PathLike[str]


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
    pattern : Pattern, str, or mapping of str to Pattern or str
        One for all weights, or {"*.mlp.*": "2:4T", "*": "2:4"}: the first glob that matches a
        tensor decides; None leaves it dense.
    method : {"auto", "exact", "greedy", "cover", "min_cost_flow"}
        As for `nmsolve.solve`.
    include, exclude : str or iterable of str
        Globs of tensor or module names: only these, and not these. A glob names a module and
        everything inside it. A tensor that `include` names without a wildcard is pruned even if its
        name looks like that of an embedding.
    padding : {"skip", "error", "pad", "dense"}
        For a weight whose shape the pattern does not divide: kept dense, with the reason; an error;
        or as `nmsolve.solve` pads.
    threads : int, optional
        For solving; all processors by default.
    resume : bool
        Go on with a run that was interrupted, killed included; begin one if there is none. If one
        has finished, return its report (`.reused`), provided that options, version and source are
        the same, and what was written is there, byte for byte; else raise an error that names what
        differs.
    progress : callable, optional
        Called with a `Progress` before and after every tensor of this process.

    Returns
    -------
    PruneReport
        As in report.json, with the seconds of times.json.

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
    Memory is that of the largest weight: its bytes, a byte per entry for its mask, and an eighth.
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

    def job() -> Job:
        return decide(
            Path(src),
            Path(dst),
            pattern,
            method=method,
            include=include,
            exclude=exclude,
            padding=padding,
            weights_too=True,
        )

    return _run(job, threads, resume, progress)


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
    """Write the masks of a checkpoint alone, as `prune` would find them.

    Parameters
    ----------
    src : path
        As for `prune`.
    dst : path
        Where the masks go: a .safetensors file, or a folder that exists, to put it in; for a
        folder, a folder that is new or empty.
    pattern, method, include, exclude, padding, threads, resume, progress
        As for `prune`.

    Returns
    -------
    PruneReport
        As in report.json, which lies beside the masks; digests are of the weights as `prune` would
        write them.

    Raises
    ------
    InputError, PatternError, OSError, MissingDependencyError
        As for `prune`.

    Examples
    --------
    >>> import tempfile, numpy as np, nmsolve.checkpoint
    >>> folder = tempfile.TemporaryDirectory()
    >>> np.savez(f"{folder.name}/dense.npz", a=np.eye(8))
    >>> found = solve(f"{folder.name}/dense.npz", f"{folder.name}/masks.safetensors", "2:4T")
    >>> masks = nmsolve.checkpoint.open_masks(f"{folder.name}/masks.safetensors")
    >>> nmsolve.verify(masks["a"], "2:4T").ok, found.share
    (True, 1.0)
    >>> folder.cleanup()
    """

    def job() -> Job:
        return decide(
            Path(src),
            Path(dst),
            pattern,
            method=method,
            include=include,
            exclude=exclude,
            padding=padding,
            weights_too=False,
        )

    return _run(job, threads, resume, progress)


def _run(
    make_job: Callable[[], Job],
    threads: int | None,
    resume: bool,
    progress: Callable[[Progress], None] | None,
) -> PruneReport:
    """Decide on the first process, work on all, publish on the first."""
    workers = thread_count(threads)
    with ranks() as among, ExitStack() as at_the_end:

        def prepare() -> tuple[Job, Outcomes, PruneReport | None]:
            job = make_job()
            unfinished = Unfinished(job.target.work)
            at_the_end.callback(unfinished.release)
            return job, *begin(job, unfinished, resume)

        job, done, complete = among.from_first(prepare)
        if complete is not None:
            return complete
        left = [plan for plan in job.to_do if plan.tensor.name not in done]
        share = Share(
            job,
            portion(left, among.rank, among.size),
            rank=among.rank,
            before=len(done),
            threads=workers,
            progress=progress,
        )
        for outcomes in among.gather(share.work()):
            done |= outcomes
        report = job.report(done)
        return among.from_first(lambda: publish(job, report, Unfinished(job.target.work)))
