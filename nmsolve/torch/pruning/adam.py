"""Kept weights as the paper on transposable masks adjusts them: Adam on batches of the layer's
inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nmsolve.errors import InputError
from nmsolve.torch.options import is_integer, is_number
from nmsolve.torch.pruning.problem import Problem, Solution


@dataclass(frozen=True, slots=True, kw_only=True)
class Adam:
    r"""Adam on the mean squared error of a layer's outputs, kept weights only.

    .. math:: \min_V \lVert Y - X V^T \rVert^2, \quad V = M \circ V

    Attributes
    ----------
    steps : int
        1000 in the released code.
    batch : int
        Samples of a step, 50 in the released code; drawn from those of the calibration (entries of
        the inputs' first axis).
    lr : float
        Learning rate, 1e-3 in the released code.

    Raises
    ------
    InputError
        For settings that are not positive numbers.

    Notes
    -----
    Batches are drawn by a generator of their own: results repeat, and torch's random numbers are
    left alone. The released code spreads the mean of the dropped weights over the kept ones first,
    which is not done here, and trains the bias too (at 1e-2): here weights are trained on inputs
    and outputs about their means, which the bias takes up.

    References
    ----------
    Hubara et al., Accelerated sparse neural training: a provable and efficient method to find N:M
    transposable masks, NeurIPS 2021, section 5 (AdaPrune).

    Examples
    --------
    >>> Adam(steps=200).lr
    0.001
    """

    steps: int = 1000
    batch: int = 50
    lr: float = 1e-3

    def __post_init__(self) -> None:
        for name, value in (("steps", self.steps), ("batch", self.batch)):
            if not is_integer(value):
                raise InputError(f"{name} must be a positive integer, got {value!r}")
        if not (is_number(self.lr) and self.lr > 0):
            raise InputError(f"lr must be a positive number, got {self.lr!r}")

    def solve(self, problem: Problem, mask: Tensor) -> Solution:
        """Return the weights on a mask after all steps."""
        kind = problem.samples[0][1].dtype
        weight = torch.where(mask, problem.weight, 0).to(kind)
        for part in range(len(weight)):
            inputs = [x for p, x, _ in problem.samples if p == part]
            outputs = [y for p, _, y in problem.samples if p == part]
            # What a bias will take up.
            means: tuple[Tensor | float, Tensor | float] = 0.0, 0.0
            if problem.about is not None:
                mean, of_dense = (one[part].to(kind) for one in problem.about)
                means = mean, problem.weight[part].to(kind) @ of_dense
            weight[part] = self._train(weight[part], mask[part], inputs, outputs, means)
        return Solution(
            weight=weight.to(problem.weight.dtype),
            mask=mask,
            method="Adam",
            iterations=self.steps,
            residual=None,
            damping=0.0,
        )

    def _train(
        self,
        start: Tensor,
        mask: Tensor,
        inputs: list[Tensor],
        outputs: list[Tensor],
        means: tuple[Tensor | float, Tensor | float],
    ) -> Tensor:
        # Positions of every sample.
        lengths = torch.tensor([x.shape[1] for x in inputs for _ in x], device="cpu")
        first = torch.cumsum(lengths, 0) - lengths
        places = torch.arange(int(lengths.max()), device="cpu")
        all_inputs, all_outputs = (
            torch.cat([t.flatten(0, 1) for t in tensors]) - mean
            for tensors, mean in zip((inputs, outputs), means, strict=True)
        )
        generator = torch.Generator("cpu").manual_seed(0)
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(start.device.type, enabled=False),
        ):
            # Copies that are none of the user's inference mode.
            all_inputs, all_outputs, mask = (t.clone() for t in (all_inputs, all_outputs, mask))
            weight = start.clone().requires_grad_()
            optimizer = torch.optim.Adam([weight], lr=self.lr)
            for _ in range(self.steps):
                order = torch.randperm(len(lengths), generator=generator, device="cpu")
                drawn = order[: self.batch]
                rows = first[drawn].unsqueeze(1) + places
                rows = rows[places < lengths[drawn].unsqueeze(1)].to(weight.device)
                optimizer.zero_grad()
                loss = torch.nn.functional.mse_loss(all_inputs[rows] @ weight.T, all_outputs[rows])
                loss.backward()
                optimizer.step()
                with torch.no_grad():
                    weight.mul_(mask)
        return weight.detach()
