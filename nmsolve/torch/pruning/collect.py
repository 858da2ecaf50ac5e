"""Moments of a stage of layers, from runs of the dense and the pruned model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nmsolve.torch.calibration.activations import Use, watched
from nmsolve.torch.calibration.inputs import Calibration, Item, check_finite, run, run_all
from nmsolve.torch.calibration.moments import Moments
from nmsolve.torch.pruning.pruned_layer import PrunedLayer, dense_model


@dataclass(slots=True)
class Collected:
    """Sums over the calibration for a layer.

    Attributes
    ----------
    moments : Moments
        Of its inputs and wanted outputs.
    samples : list of (int, Tensor, Tensor)
        As in `Problem`; empty unless asked for.
    """

    moments: Moments
    samples: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)


def collect_moments(
    model: nn.Module,
    stage: Sequence[PrunedLayer],
    layers: Sequence[PrunedLayer],
    items: Calibration,
    sequential: bool,
    keep_samples: bool,
) -> dict[str, Collected]:
    """Return by owner the moments of a stage's layers: of the pruned model's inputs and the dense
    one's outputs if sequential, of the dense model's both otherwise.
    """
    entries = {entry.path: entry for layer in stage for entry in layer.entries}
    weights = {layer.entry.owner: layer.weight for layer in stage}
    kinds = {
        layer.entry.owner: torch.promote_types(layer.dense.dtype, torch.float32) for layer in stage
    }
    collected = {owner: Collected(Moments.empty(weight)) for owner, weight in weights.items()}
    wanted: dict[str, list[list[Tensor]]] = {owner: [] for owner in weights}  # of each call
    prefix_differs = sequential and any(layer.pruned for layer in layers)
    asking, at = False, 0

    def seen(path: str, use: Use) -> None:
        owner = entries[path].owner
        mine = collected[owner]
        outputs: list[Tensor] = []
        if asking:
            wanted[owner].append(outputs)
        elif wanted[owner]:
            outputs = wanted[owner].pop(0)
        for part, x in use.matrices():
            check_finite(x, f"with the layers before pruned, the input of layer {path}", at)
            x = x.double()
            y = x @ weights[owner][part].T
            if asking:
                outputs.append(y)
                continue
            of_dense = outputs.pop(0) if outputs else y
            y = of_dense if _belongs(of_dense, y) else y
            mine.moments.add(part, x, y)
            if keep_samples:
                given, should = (
                    t.to(kinds[owner]).reshape(-1, use.positions_of_sample(part), t.shape[1])
                    for t in (x, y)
                )
                mine.samples.append((part, given, should))

    def each(item: Item, index: int) -> None:
        nonlocal asking, at
        at = index
        if prefix_differs:
            asking = True
            # Both runs draw the same numbers, if they draw any.
            with torch.random.fork_rng(devices=devices), dense_model(layers):
                run(model, item, index)
            asking = False
        with nullcontext() if sequential else dense_model(layers):
            run(model, item, index)
        for calls in wanted.values():
            calls.clear()

    devices = sorted(
        {layer.dense.device.index for layer in layers if layer.dense.device.type == "cuda"}
    )
    with watched(model, list(entries.values()), seen):
        run_all(items, each, "", progress=False)
    return collected


def _belongs(wanted: Tensor, given: Tensor) -> bool:
    """Return whether outputs of the dense model are for the inputs of which the dense layer makes
    `given`.

    A model that routes tokens may route others here once it is pruned. Then their number differs,
    or they are further from the dense layer's outputs for these inputs than from zero.
    """
    return wanted.shape == given.shape and bool(
        (wanted - given).square().sum() <= wanted.square().sum()
    )
