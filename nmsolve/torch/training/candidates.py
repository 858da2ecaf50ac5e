"""What LBC knows of a weight: of every group, which candidates are alive and how they score."""

from __future__ import annotations

import math
from typing import Self

import numpy as np
import torch
from torch import Tensor

from nmsolve.errors import InputError
from nmsolve.lbc import combinations, remove_lowest, survivor_mask
from nmsolve.pattern import Pattern
from nmsolve.torch.shards import local


class Candidates:
    """The C(m, n) candidates of every group of a weight, on this rank's part of it.

    alive : (…, C) bool, what is removed stays removed. scores, momentum : (…, C) float32, of the learned criteria. saliency : (…,
    m) float32, Σ |W ∂L/∂W̃| since the last removal, of the gradient criterion. None where a criterion needs none. left : how many
    are alive in every group. The leading axes are those of `modules.groups_of`.
    """

    PARTS = ("alive", "scores", "momentum", "saliency")

    def __init__(
        self, alive: Tensor, scores: Tensor | None = None, momentum: Tensor | None = None, saliency: Tensor | None = None
    ) -> None:
        self.alive = alive
        self.scores = scores
        self.momentum = momentum
        self.saliency = saliency
        self.left = int(alive.reshape(-1, alive.shape[-1])[0].sum())

    @classmethod
    def fresh(cls, groups: Tensor, pattern: Pattern, criterion: str) -> Self:
        """All alive and, if they are learned, with equal scores (Alg. 1, line 1), for groups (…, m)."""
        shape, device = (*groups.shape[:-1], math.comb(pattern.m, pattern.n)), groups.device
        alive = torch.ones(shape, dtype=torch.bool, device=device)
        if criterion in ("learned", "inverse"):
            return cls(alive, torch.ones(shape, device=device), torch.zeros(shape, device=device))
        return cls(alive, saliency=torch.zeros(groups.shape, device=device) if criterion == "gradient" else None)

    @classmethod
    def loaded(cls, parts: dict[str, Tensor]) -> Self:
        """From the parts of a state dict."""
        if "alive" not in parts:
            raise InputError("the checkpoint has LBC's scores but not which candidates are alive")
        return cls(**{name: local(tensor).clone() for name, tensor in parts.items()})

    def state(self) -> dict[str, Tensor]:
        """For a state dict."""
        return {name: getattr(self, name) for name in self.PARTS if getattr(self, name) is not None}

    def to(self, device: torch.device) -> None:
        """Follow a weight that was moved."""
        for name, tensor in self.state().items():
            setattr(self, name, tensor.to(device))

    def learn(self, saliency: Tensor, table: Tensor, rate: float, momentum: float) -> None:
        """A step of SGD on the scores, with the gradient Σ_{i ∈ Θ_j} W_i ∂L/∂W̃_i (Eq. 10), never held as a tensor of its own.

        saliency : (…, m), W ∂L/∂W̃. table : (m, C) float32, the candidates.
        """
        assert self.scores is not None
        assert self.momentum is not None
        flat = self.momentum.view(-1, self.momentum.shape[-1])
        flat.addmm_(saliency.reshape(-1, saliency.shape[-1]).float(), table, beta=momentum)
        self.scores.sub_(self.momentum, alpha=rate)

    def remove(self, scores: Tensor, gone: int) -> None:
        """Remove the lowest of (…, C) scores until `gone` are gone in every group (Alg. 1, lines 7 and 8)."""
        alive = self.alive.cpu().reshape(-1, self.alive.shape[-1]).numpy()
        remove_lowest(scores.cpu().reshape(alive.shape).float().numpy(), alive, gone)
        self.alive = torch.from_numpy(alive).reshape(self.alive.shape).to(self.alive.device)
        self.left = alive.shape[1] - gone
        if self.saliency is not None:
            self.saliency.zero_()

    def kept(self, pattern: Pattern) -> Tensor:
        """(…, m): the weights that some candidate alive contains (Eq. 8)."""
        alive = self.alive.cpu().reshape(-1, self.alive.shape[-1]).numpy()
        mask = survivor_mask(alive, combinations(pattern))
        return torch.from_numpy(mask).reshape(*self.alive.shape[:-1], pattern.m).to(self.alive.device)


def bytes_a_weight(pattern: Pattern, criterion: str) -> float:
    """What `Candidates` take."""
    count = math.comb(pattern.m, pattern.n) / pattern.m
    return {"magnitude": count, "gradient": count + 4}.get(criterion, 9 * count)


def candidate_table(pattern: Pattern, device: torch.device) -> Tensor:
    """(m, C) float32: which weights each candidate holds."""
    return torch.from_numpy(combinations(pattern).astype(np.float32).T.copy()).to(device)
