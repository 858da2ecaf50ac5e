"""A run begun, or gone on with: what is at its destination already.

That is nothing, a run to go on with (`journal`), or one that is finished and must be this very one
(`finished`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nmsolve.bits import packed_size
from nmsolve.checkpoint.finished import check_finished
from nmsolve.checkpoint.job import Job, Outcomes
from nmsolve.checkpoint.journal import MASKS, WEIGHTS, Unfinished
from nmsolve.checkpoint.planning import PlannedTensor, TensorPlan
from nmsolve.checkpoint.publishing import moves_of
from nmsolve.checkpoint.solving import is_outcome
from nmsolve.checkpoint.summary import PruneReport
from nmsolve.checkpoint.target import check_vacant
from nmsolve.errors import InputError


def begin(job: Job, unfinished: Unfinished, resume: bool) -> tuple[Outcomes, PruneReport | None]:
    """Begin a run, or go on with one: return what has been done before; or the report, if
    everything has.

    Raises
    ------
    InputError
        If something is in the way, or the run that is there is another one, or is damaged.
    """
    if not unfinished.begun and not unfinished.publishing:
        if resume and job.target.report.exists():
            complete = check_finished(job)
            unfinished.discard()
            return {}, replace(complete, reused=True)
        check_vacant(job.source, job.target)
    elif not resume:
        raise InputError(
            f"an unfinished run is in {unfinished.path}: go on with it by resume=True, or remove "
            "that folder"
        )
    unfinished.hold()
    run = job.run()
    if unfinished.begun:
        differences = unfinished.differences(run)
        if differences:
            raise InputError(
                f"the unfinished run in {unfinished.path} is another one "
                f"({'; '.join(differences)}): repeat it as it was begun, or remove that folder"
            )
    if unfinished.publishing:
        unfinished.go_on_publishing(moves_of(job, unfinished))
        return {}, check_finished(job)
    if not unfinished.begun:
        unfinished.begin(run)
    found, plans = unfinished.done(), {plan.tensor.name: plan for plan in job.plans}
    before = {
        name: entry
        for name, entry in found.items()
        if name in plans and is_outcome(entry, plans[name])
    }
    for file in job.source.files:
        if job.target.weights_too:
            unfinished.prepare(WEIGHTS, file.name, file.size, file.pieces)
        layout = job.mask_files.get(file.name)
        if layout is not None:
            unfinished.prepare(MASKS, file.name, layout.size, [(0, layout.header)])
    return {
        name: entry
        for name, entry in before.items()
        if _is_there(job, unfinished, plans[name], entry)
    }, None


def _is_there(job: Job, unfinished: Unfinished, plan: TensorPlan, entry: Mapping[str, Any]) -> bool:
    """Return whether a run's folder still holds what its journal says of a tensor; if not, the
    tensor is done again.
    """
    tensor = plan.tensor
    if job.target.weights_too and not unfinished.holds(
        WEIGHTS, plan.file, tensor.start, tensor.size, entry["digest"]
    ):
        return False
    if not isinstance(plan, PlannedTensor):
        return True
    place = job.mask_files[plan.file].places[tensor.name]
    size = packed_size(math.prod(tensor.shape))
    return unfinished.holds(MASKS, plan.file, place, size, entry["mask_digest"])
