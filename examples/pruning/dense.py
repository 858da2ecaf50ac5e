"""Dense models to prune, and what they are calibrated with."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from examples.study.tasks import Task
from examples.study.training import fit

#: As in the transposable-masks paper: 200 samples in batches of 50.
SAMPLES, BATCH = 200, 50
#: Added to seeds where other samples are wanted than training began with.
_OTHER = 10_000

_last: tuple[Task, int, nn.Module] | None = None


def dense(task: Task, seed: int) -> nn.Module:
    """A trained model; the seed draws initial weights and the order of the data. The last one is
    kept: runs ask for it in turn.
    """
    global _last
    if _last is None or _last[:2] != (task, seed):
        torch.manual_seed(seed)
        model = task.model()
        fit(task, model, task.steps, torch.Generator().manual_seed(seed))
        _last = task, seed, model
    return deepcopy(_last[2]).eval()


def calibration_batches(task: Task, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Inputs and targets from the training part."""
    order = torch.Generator().manual_seed(_OTHER + seed)
    return [task.data().sample(BATCH, order) for _ in range(SAMPLES // BATCH)]


def calibration(task: Task, seed: int) -> list[Tensor]:
    """The inputs alone."""
    return [inputs for inputs, _ in calibration_batches(task, seed)]


def retrain_order(seed: int) -> torch.Generator:
    """The order of the data when a pruned model is trained on."""
    return torch.Generator().manual_seed(2 * _OTHER + seed)
