"""A planned weight in a DominoSearch: the weight that is trained, the masked one that the model
holds, and its way from m down to smaller n.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nmsolve.errors import InputError
from nmsolve.geometry import as_groups, from_groups
from nmsolve.torch.tensors import check_weight
from nmsolve.torch.weights.layer_plan import PlannedWeight

#: Where no layer is further than this above its target sparsity, redundancy says nothing any more.
_NEAR = 0.01


class SearchedWeight:
    """A weight that is searched.

    The model's own tensor holds the entries that the mask keeps, and zeros. No module is replaced
    or parametrized, so whatever reads the weight reads the masked one.

    Attributes
    ----------
    entries : tuple of PlannedWeight
        Of all layers that share the weight.
    path : str
        The layer, the first of them where several share the weight.
    weight : Tensor
        The model's.
    dense : Tensor
        All of the weight, with dropped entries as they last were, in float32 at least.
    m : int
        Length of a group.
    walk : int
        The mask's n.
    n : int
        The plan's, the last candidate that `walk` has passed.
    positions : float
        Products per entry, in a run of the model.
    eta : float
        Its share of the penalty.
    """

    def __init__(self, entries: Sequence[PlannedWeight], weight: Tensor, m: int) -> None:
        self.entries = tuple(entries)
        self.path = entries[0].path
        self.weight = weight
        self.m = self.n = self.walk = m
        self.positions = 0.0
        self.eta = 1.0
        self._axis = entries[0].axis
        values = check_weight(weight, f"the weight of layer {self.path}", "domino_search")
        self.dense = values.to(torch.promote_types(values.dtype, torch.float32), copy=True)
        if not self.finite:
            raise InputError(
                f"the weight of layer {self.path} is not finite: NaN or infinity cannot be ranked"
            )
        self._thresholds = self._magnitudes().sort(-1).values[..., : m // 2].mean(-1, keepdim=True)
        stuck = (self._thresholds.squeeze(-1) == 0) & (self._magnitudes().count_nonzero(-1) > 1)
        if bool(stuck.float().mean() > 0.5):
            raise InputError(
                f"layer {self.path} is sparse already: in most groups half of the weights are "
                "zero, and so is the threshold, below which none can fall: search the dense model, "
                "or exclude the layer"
            )
        self._mask = torch.ones_like(self.dense, dtype=torch.bool)

    @property
    def kept_weights(self) -> int:
        """Weights that the plan keeps."""
        return self.weight.numel() // self.m * self.n

    @property
    def multiply_adds(self) -> float:
        """Multiply-adds of the weights that the plan keeps."""
        return self.kept_weights * self.positions

    @property
    def finite(self) -> bool:
        """True if all of the weight is finite."""
        return bool(torch.isfinite(self.dense).all())

    @property
    def below(self) -> float:
        """The share of groups in which fewer weights than the mask keeps are above the
        threshold.
        """
        short = (self._magnitudes() > self._thresholds).sum(-1) < self.walk
        return int(short.sum()) / short.numel()

    def mask_(self) -> None:
        """Have the model hold the largest `walk` of every m; among equals the first."""
        if self.walk < self.m:
            order = self._magnitudes().argsort(dim=-1, descending=True, stable=True)
            kept = torch.zeros_like(order, dtype=torch.bool).scatter_(
                -1, order[..., : self.walk], True
            )
            self._mask = from_groups(kept, self._axis)
        self.weight.copy_(torch.where(self._mask, self.dense, 0))
        self._version = self.weight._version

    def touched(self) -> bool:
        """Return whether someone else has changed the weight, or called backward, since `mask_`."""
        return self.weight._version != self._version or self.weight.grad is not None

    def update(self, lr: float, decay: float) -> None:
        """Update W ← W − lr M∘(∇ + λ η W)."""
        gradient = self.weight.grad
        gradient = (
            torch.zeros_like(self.dense) if gradient is None else gradient.to(self.dense.dtype)
        )
        if decay:
            gradient = gradient.add(self.dense, alpha=decay * self.eta)
        self.dense.sub_(torch.where(self._mask, gradient, 0), alpha=lr)

    def _magnitudes(self) -> Tensor:
        return as_groups(self.dense, self._axis, self.m).abs()


def penalty_factors(
    multiply_adds: Sequence[float],
    n: Sequence[int],
    m: int,
    targets: Sequence[float],
    betas: tuple[float, float],
) -> list[float]:
    r"""Return η of each layer, from its dense multiply-adds, its n and its target sparsity.

    .. math:: \eta_i = \beta_1 \frac{a_i n_i}{\max_j a_j n_j}
        + \beta_2 \frac{s_i - (1 - n_i / m)}{\max_j |s_j - (1 - n_j / m)|}

    Parameters
    ----------
    multiply_adds : sequence of float
        a, of the dense layers.
    n : sequence of int
    m : int
    targets : sequence of float
        s, the sparsities that layers should come to.
    betas : (float, float)

    References
    ----------
    Sun et al., DominoSearch, NeurIPS 2021, section 3.

    Examples
    --------
    >>> # Equal work; 0.25 and 0.5 to go.
    >>> penalty_factors([100.0, 50.0], [8, 16], 16, [0.75, 0.5], (0.5, 0.5))
    [0.75, 1.0]
    """
    work = [a * k for a, k in zip(multiply_adds, n, strict=True)]
    gaps = [target - (1 - k / m) for target, k in zip(targets, n, strict=True)]
    widest = max(map(abs, gaps))
    redundancy = [0.0 if max(gaps) < _NEAR else gap / widest for gap in gaps]
    return [betas[0] * a / max(work) + betas[1] * r for a, r in zip(work, redundancy, strict=True)]
