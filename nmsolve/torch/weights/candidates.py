"""LBC's knowledge of a weight: the candidates of every group that are alive, and the scores that
order them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor

from nmsolve.lbc import combinations, remove_lowest, survivor_mask
from nmsolve.pattern import Pattern

#: Candidates whose scores are written out at a time.
CHUNK = 2**22


class Candidates:
    """The C(m, n) candidates of every group of a weight, on this rank's part of it.

    Attributes
    ----------
    alive : (…, C) bool tensor
        Candidates that are left: what is removed stays removed. Leading axes are those of
        `geometry.as_groups`.
    scores : tensor of the weight's shape, or None
        A candidate's score is the sum over its weights. None where a criterion needs none, as are
        the two below.
    momentum : tensor of the weight's shape, or None
        Of the SGD that learns the scores.
    saliency : tensor of the weight's shape, or None
        Σ |W ∂L/∂W̃| since the last removal.
    left : int
        How many candidates are alive in every group.
    checked : bool
        Whether they are known to be those of the layer and its criterion.
    """

    PARTS = ("alive", "scores", "momentum", "saliency")

    def __init__(
        self,
        alive: Tensor,
        scores: Tensor | None = None,
        momentum: Tensor | None = None,
        saliency: Tensor | None = None,
    ) -> None:
        self.alive = alive
        self.scores = scores
        self.momentum = momentum
        self.saliency = saliency
        self.left = (
            int(alive.reshape(-1, alive.shape[-1])[0].sum()) if alive.numel() else alive.shape[-1]
        )
        self.checked = False

    @classmethod
    def fresh(cls, groups: Tensor, weight: Tensor, pattern: Pattern, parts: Sequence[str]) -> Self:
        """Return all of them alive and with equal scores (Alg. 1, line 1), for a weight and its
        groups (…, m), with the parts that are needed.
        """
        shape = (*groups.shape[:-1], math.comb(pattern.m, pattern.n))
        dtype = torch.promote_types(torch.float32, weight.dtype)
        with torch.inference_mode(False):  # they are to be changed outside of it
            alive = torch.ones(shape, dtype=torch.bool, device=weight.device)
            return cls(alive, **{part: torch.zeros_like(weight, dtype=dtype) for part in parts[1:]})

    @classmethod
    def loaded(cls, parts: dict[str, Tensor]) -> Self:
        """Return those of the parts of a state dict, which has "alive"."""
        with torch.inference_mode(False):
            return cls(**{name: tensor.clone() for name, tensor in parts.items()})

    def state(self) -> dict[str, Tensor]:
        """Return the parts for a state dict."""
        return {name: getattr(self, name) for name in self.PARTS if getattr(self, name) is not None}

    def to(self, device: torch.device) -> None:
        """Follow a weight that was moved."""
        if self.alive.device == device:
            return
        for name, tensor in self.state().items():
            setattr(self, name, tensor.to(device))

    def learn(self, weight: Tensor, gradient: Tensor, rate: float, momentum: float) -> None:
        """Take a step of SGD on the scores, whose gradient is W ∂L/∂W̃.

        Eq. 10's gradient of a candidate's score is the sum of that over its weights. SGD is linear
        and all scores begin equal, so a candidate's score stays the sum over its weights of what is
        learned here: two numbers per weight stand for all C(m, n).
        """
        assert self.scores is not None
        dtype = self.scores.dtype
        weight, gradient = weight.to(dtype), gradient.to(dtype)
        if self.momentum is None:
            self.scores.addcmul_(weight, gradient, value=-rate)
        else:
            self.momentum.mul_(momentum).addcmul_(weight, gradient)
            self.scores.sub_(self.momentum, alpha=rate)

    def gather(self, weight: Tensor, gradient: Tensor) -> None:
        """Add |W ∂L/∂W̃| to the saliencies."""
        assert self.saliency is not None
        dtype = self.saliency.dtype
        self.saliency.add_((weight.to(dtype) * gradient.to(dtype)).abs())

    def remove(self, worth: Tensor, pattern: Pattern, gone: int) -> None:
        """Remove the candidates of the lowest Σ worth until `gone` are gone in every group (Alg. 1,
        lines 7 and 8).

        worth : (…, m), finite. Sums are taken in float64, in which those of float32 numbers tie
        when they are equal.
        """
        table = combinations(pattern).astype(np.float64).T
        flat = worth.reshape(-1, pattern.m)
        self.left = self.alive.shape[-1] - gone
        if not self.alive.numel():
            return
        alive = self.alive.cpu().reshape(-1, self.alive.shape[-1]).numpy()
        step = max(1, CHUNK // alive.shape[1])
        for start in range(0, len(alive), step):
            part = slice(start, start + step)
            remove_lowest(flat[part].double().cpu().numpy() @ table, alive[part], gone)
        self.alive = torch.from_numpy(alive).reshape(self.alive.shape).to(self.alive.device)

    def kept(self, pattern: Pattern) -> Tensor:
        """Return (…, m): the weights that some candidate alive contains (Eq. 8)."""
        if not self.alive.numel():
            return torch.ones(
                (*self.alive.shape[:-1], pattern.m), dtype=torch.bool, device=self.alive.device
            )
        alive = self.alive.cpu().reshape(-1, self.alive.shape[-1]).numpy()
        mask = torch.from_numpy(survivor_mask(alive, combinations(pattern)))
        return mask.reshape(*self.alive.shape[:-1], pattern.m).to(self.alive.device)


def bytes_a_weight(pattern: Pattern, parts: Sequence[str]) -> float:
    """Return the memory that `Candidates` take, in bytes per float32 weight."""
    return math.comb(pattern.m, pattern.n) / pattern.m + 4 * (len(parts) - 1)
