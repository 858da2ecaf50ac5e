"""The order in which a model comes to its planned layers, and the layers that are pruned at one
stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from torch import Tensor, nn

from nmsolve.torch.calibration.activations import Use, watched
from nmsolve.torch.calibration.inputs import Calibration, Item, check_finite, run, run_all
from nmsolve.torch.pruning.batch_norm import BatchNorm, check_normed, norms_of
from nmsolve.torch.pruning.pruned_layer import PrunedLayer

#: Bytes of moments that are collected in one run where layers do not wait for each other.
_AT_ONCE = 2**30


def explore(
    model: nn.Module, layers: Sequence[PrunedLayer], items: Calibration, progress: bool | None
) -> tuple[list[PrunedLayer], list[BatchNorm]]:
    """Return the layers that the model comes to, in that order, and the batch norms that come after
    any of them. How many items come to each layer is noted with it.

    Raises
    ------
    InputError
        If the input of a layer is not finite, or such a norm gets one value per channel, naming it;
        nothing has been changed yet.
    """
    by_owner = {layer.entry.owner: layer for layer in layers}
    owner_of = {entry.path: entry.owner for layer in layers for entry in layer.entries}
    order: list[str] = []
    called: set[str] = set()  # in this run
    after: set[BatchNorm] = set()
    at = 0
    # Kept, so that no other tensor can come to have their identity.
    last: list[tuple[Tensor, int]] = []

    def seen(path: str, use: Use) -> None:
        nonlocal last
        if not all(x.numel() for x in use.inputs):
            return
        layer = by_owner[owner_of[path]]
        if layer.entry.owner not in order:
            # A branch that earlier items did not take goes right behind the layers that lead to it.
            behind = max((order.index(owner) + 1 for owner in called), default=0)
            order.insert(behind, layer.entry.owner)
        for x in use.inputs:
            check_finite(x, f"the input of layer {path}", at)
        if not at:
            # Of inference tensors no version is known; x += layer(x) makes another input of the
            # same tensor.
            given = [(x, -1 if x.is_inference() else x._version) for x in use.inputs]
            same = [
                a is b and version == other >= 0
                for (a, version), (b, other) in zip(given, last, strict=False)
            ]
            layer.joins = layer.entry.owner not in called and len(given) == len(last) and all(same)
            last = given
        if not use.biased:
            layer.bias = None
        layer.items += layer.entry.owner not in called
        called.add(layer.entry.owner)

    def normed(norm: BatchNorm, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        x = args[0] if args else kwargs["input"]
        if called and x.numel():
            after.add(norm)
            check_normed(x, names[norm], at)

    def each(item: Item, index: int) -> None:
        nonlocal at
        at = index
        called.clear()
        run(model, item, index)
        last.clear()

    names = {module: name for name, module in model.named_modules()}
    norms = norms_of(model)
    with ExitStack() as hooks:
        for norm in norms:
            hooks.callback(norm.register_forward_pre_hook(normed, with_kwargs=True).remove)
        hooks.enter_context(
            watched(model, [entry for layer in layers for entry in layer.entries], seen)
        )
        run_all(items, each, "reaching layers", progress)
    return [by_owner[owner] for owner in order], [norm for norm in norms if norm in after]


def stages_of(order: Sequence[PrunedLayer], sequential: bool) -> list[list[PrunedLayer]]:
    """Return the layers by stage, whose moments are collected in one run: those with the same input
    (query, key, value), or as many as memory takes.
    """
    stages: list[list[PrunedLayer]] = []
    size = 0
    for layer in order:
        parts, rows, cols = layer.weight.shape
        needed = 8 * parts * cols * (cols + 2 * rows)  # the moments and the weight
        if stages and (layer.joins if sequential else size + needed <= _AT_ONCE):
            stages[-1].append(layer)
            size += needed
        else:
            stages.append([layer])
            size = needed
    return stages
