"""The first item's way through the dense model: the order of its planned layers, the batch norms
behind them, and what each layer is given.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nmsolve.torch.calibration.activations import Use, watched
from nmsolve.torch.calibration.inputs import Item, check_finite, run
from nmsolve.torch.calibration.suspended import Inseparable
from nmsolve.torch.pruning.batch_norm import BatchNorm, norms_of
from nmsolve.torch.pruning.pruned_layer import PrunedLayer

#: Share of the sum of magnitudes by which sums of the same inputs may differ, where rounding does.
_ROUNDING = 1e-3


@dataclass(frozen=True, slots=True)
class Signature:
    """Sums that tell the inputs of a layer from others.

    Attributes
    ----------
    shapes : tuple of tuples of int
    sums, magnitudes : tuple of float
        Σ x and Σ |x| of each input.
    """

    shapes: tuple[tuple[int, ...], ...]
    sums: tuple[float, ...]
    magnitudes: tuple[float, ...]

    def matches(self, other: Signature) -> bool:
        """Return whether the inputs may be the same but for rounding."""
        return self.shapes == other.shapes and all(
            abs(a - b) <= _ROUNDING * max(m, n) and abs(m - n) <= _ROUNDING * max(m, n)
            for a, b, m, n in zip(
                self.sums, other.sums, self.magnitudes, other.magnitudes, strict=True
            )
        )


def signature(use: Use) -> Signature:
    """Return the signature of what a layer is given."""
    wide = [x.detach().to(torch.float64) for x in use.inputs]
    return Signature(
        tuple(tuple(x.shape) for x in wide),
        tuple(float(x.sum()) for x in wide),
        tuple(float(x.abs().sum()) for x in wide),
    )


@dataclass(frozen=True, slots=True)
class FirstRun:
    """A model as one item goes through it.

    Attributes
    ----------
    order : list of str
        Owners of the planned weights, as the item comes to them.
    norms : list of BatchNorm
        That come after any of them, or that it does not come to.
    signatures : dict of str to Signature
        Of the inputs of each.
    """

    order: list[str]
    norms: list[BatchNorm]
    signatures: dict[str, Signature]

    def others_given(self, owner: str) -> bool:
        """Return whether other layers may be given what an owner's is."""
        own = self.signatures.get(owner)
        return own is None or any(
            other.matches(own) for name, other in self.signatures.items() if name != owner
        )


def first_run(model: nn.Module, layers: Sequence[PrunedLayer], item: Item) -> FirstRun:
    """Run the first item through the model.

    Raises
    ------
    Inseparable
        If it uses a weight more than once, past its module or in another thread: it then cannot
        stop at each planned layer once.
    InputError
        If the model fails, or an input of a layer is not finite.
    """
    owner_of = {entry.path: entry.owner for layer in layers for entry in layer.entries}
    signatures: dict[str, Signature] = {}
    before: set[BatchNorm] = set()
    reasons: list[str] = []
    own_thread = threading.get_ident()

    def seen(path: str, use: Use) -> None:
        if not all(x.numel() for x in use.inputs):
            return
        for x in use.inputs:
            check_finite(x, f"the input of layer {path}", 0)
        if threading.get_ident() != own_thread:
            reasons.append(f"layer {path} is called in a thread that the model starts")
        if use.past_module:
            reasons.append(f"the weight of layer {path} is multiplied past its module")
        if owner_of[path] in signatures:
            reasons.append(f"the weight of layer {path} is used more than once by a forward")
        signatures[owner_of[path]] = signature(use)

    def normed(norm: BatchNorm, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        if not signatures:
            before.add(norm)

    norms = norms_of(model)
    with ExitStack() as hooks:
        for norm in norms:
            hooks.callback(norm.register_forward_pre_hook(normed, with_kwargs=True).remove)
        entries = [entry for layer in layers for entry in layer.entries]
        hooks.enter_context(watched(model, entries, seen))
        run(model, item, 0)
    if reasons:
        raise Inseparable(reasons[0])
    return FirstRun(list(signatures), [norm for norm in norms if norm not in before], signatures)
