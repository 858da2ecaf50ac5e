"""SAD over training: how many mask entries change in every stretch of steps."""

from __future__ import annotations

from dataclasses import dataclass, field

import nmsolve.torch as nmt


@dataclass
class Churn:
    """Sparse architecture divergence between consecutive masks, summed over windows of steps, as a
    share of the masked weights.

    A weight that is dropped and comes back within a window counts twice: it is what changed, not
    what is different in the end.
    """

    sparse: nmt.SparseModel
    window: int
    steps: list[int] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    _flips: int = 0

    def record(self, step: int) -> None:
        """After `step` steps; does something at the end of a window."""
        if step % self.window:
            return
        stats = self.sparse.stats()
        self.steps.append(step)
        self.shares.append(round((stats.flips - self._flips) / stats.weights, 7))
        self._flips = stats.flips
