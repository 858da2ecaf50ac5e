"""The transposable-masks paper's way of adjusting kept weights: Adam on batches of the layer's
inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nmsolve.errors import InputError
from nmsolve.torch.pruning.problem import Problem, Solution


@dataclass(frozen=True, slots=True, kw_only=True)
class Adam:
    """Adam on the mean squared error of a layer's outputs, kept weights only.

    Parameters
    ----------
    steps, batch, lr : int, int, float
        1000, 50 and 1e-3 in the released code. A batch is drawn from the samples (entries of the
        inputs' first axis) of the calibration.

    Notes
    -----
    Batches are drawn by a generator of their own: results repeat, and torch's random numbers are
    left alone. The released code spreads the mean of the dropped weights over the kept ones first,
    and trains the bias too (at 1e-2); neither is done here.
    """

    steps: int = 1000
    batch: int = 50
    lr: float = 1e-3

    def __post_init__(self) -> None:
        for name, value in (("steps", self.steps), ("batch", self.batch)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"{name} must be a positive integer, got {value!r}")
        if not isinstance(self.lr, int | float) or not 0 < self.lr < math.inf:
            raise InputError(f"lr must be a positive number, got {self.lr!r}")

    def solve(self, problem: Problem, mask: Tensor) -> Solution:
        """The weights on a mask after all steps."""
        kind = problem.samples[0][1].dtype
        weight = torch.where(mask, problem.weight, 0).to(kind)
        for part in range(len(weight)):
            inputs = [x for p, x, _ in problem.samples if p == part]
            outputs = [y for p, _, y in problem.samples if p == part]
            weight[part] = self._train(weight[part], mask[part], inputs, outputs)
        return Solution(weight.double(), mask, self.steps, None, 0.0)

    def _train(
        self, start: Tensor, mask: Tensor, inputs: list[Tensor], outputs: list[Tensor]
    ) -> Tensor:
        lengths = torch.tensor(
            [x.shape[1] for x in inputs for _ in x], device="cpu"
        )  # positions of every sample
        first = torch.cumsum(lengths, 0) - lengths
        places = torch.arange(int(lengths.max()), device="cpu")
        all_inputs, all_outputs = (
            torch.cat([t.flatten(0, 1) for t in tensors]) for tensors in (inputs, outputs)
        )
        generator = torch.Generator("cpu").manual_seed(0)
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(start.device.type, enabled=False),
        ):
            all_inputs, all_outputs, mask = (
                all_inputs.clone(),
                all_outputs.clone(),
                mask.clone(),
            )  # of the user's inference mode
            weight = start.clone().requires_grad_()
            optimizer = torch.optim.Adam([weight], lr=self.lr)
            for _ in range(self.steps):
                drawn = torch.randperm(len(lengths), generator=generator, device="cpu")[
                    : self.batch
                ]
                rows = (first[drawn].unsqueeze(1) + places)[
                    places < lengths[drawn].unsqueeze(1)
                ].to(weight.device)
                optimizer.zero_grad()
                torch.nn.functional.mse_loss(
                    all_inputs[rows] @ weight.T, all_outputs[rows]
                ).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                with torch.no_grad():
                    weight.mul_(mask)
        return weight.detach()
