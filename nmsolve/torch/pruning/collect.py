"""Sums over the calibration for a stage of layers, from runs of the dense and the pruned model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from nmsolve.torch.calibration.activations import Use, watched
from nmsolve.torch.calibration.inputs import Calibration, Item, check_finite, run, run_all
from nmsolve.torch.calibration.padding import Counted
from nmsolve.torch.pruning.gathered import HELD_OUT, Gathered, Gathering
from nmsolve.torch.pruning.pruned_layer import PrunedLayer, dense_model


def collect(
    model: nn.Module,
    stage: Sequence[PrunedLayer],
    layers: Sequence[PrunedLayer],
    items: Calibration,
    how: Gathering,
) -> dict[str, Gathered]:
    """Return by owner what the calibration tells of a stage's layers.

    Their inputs are those of the pruned model if sequential, of the dense one otherwise; their
    targets belong to the dense model's inputs, or to their own.
    """
    entries = {entry.path: entry for layer in stage for entry in layer.entries}
    of_dense = how.sequential and how.targets == "dense" and any(layer.pruned for layer in layers)
    found = {layer.entry.owner: Gathered.nothing(layer, how, own=not of_dense) for layer in stage}
    kept = {layer.entry.owner: layer.weight if how.keep_samples else None for layer in stage}
    # Inputs in the dense model, of each call.
    dense: dict[str, list[list[tuple[int, Tensor]]]] = {owner: [] for owner in found}
    come: dict[str, list[int]] = {owner: [] for owner in found}  # items that have come to each
    coming = {layer.entry.owner: layer.items for layer in stage}
    asking, at = False, 0
    counted: Counted

    @torch.no_grad()  # which the model may have lifted
    def seen(path: str, use: Use) -> None:
        owner = entries[path].owner
        use = use.without_padding(path, counted)
        if asking:
            dense[owner].append(list(use.matrices()))
            return
        of_dense_model = dense[owner].pop(0) if dense[owner] else None
        if not all(x.numel() for x in use.inputs):
            return
        for x in use.inputs:
            check_finite(x, f"with the layers before pruned, the input of layer {path}", at)
        if at not in come[owner][-1:]:
            come[owner].append(at)
        with torch.autocast(use.inputs[0].device.type, enabled=False):  # the model may be under it
            found[owner].add(
                use,
                of_dense_model,
                index=len(come[owner]) - 1,
                items=coming[owner],
                keep_for=kept[owner],
            )

    def each(item: Item, index: int) -> None:
        nonlocal asking, at, counted
        at, counted = index, how.padding.of(item, index)
        if of_dense:
            asking = True
            # Both runs draw the same numbers, if they draw any.
            with torch.random.fork_rng(devices=devices), dense_model(layers):
                run(model, item, index)
            asking = False
        with nullcontext() if how.sequential else dense_model(layers):
            run(model, item, index)
        for calls in dense.values():
            calls.clear()

    devices = sorted(
        {layer.own.device.index for layer in layers if layer.own.device.type == "cuda"}
    )
    with watched(model, list(entries.values()), seen):
        run_all(items, each, "", progress=False)
    fewer = False
    for layer in stage:
        came = len(come[layer.entry.owner])
        if layer.items >= HELD_OUT > came > 0:  # none of these was the tenth
            layer.items, fewer = came, True
    if fewer:
        return collect(model, stage, layers, items, how)
    return {owner: gathered.finish() for owner, gathered in found.items()}
