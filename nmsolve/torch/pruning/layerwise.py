"""Layer by layer through a model, all or nothing: gather what a layer is given, prune it, go on
with the pruned one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import nn

from nmsolve.errors import InputError, SolverError
from nmsolve.torch.calibration.activations import check_reached
from nmsolve.torch.calibration.inputs import LESS_MEMORY, Calibration, Item
from nmsolve.torch.calibration.padding import Padding
from nmsolve.torch.calibration.suspended import Inseparable
from nmsolve.torch.device.failures import explained
from nmsolve.torch.offload.lent_parameter import is_lent, settle
from nmsolve.torch.progress import progress_bar
from nmsolve.torch.pruning.batch_norm import (
    BatchNorm,
    Statistics,
    estimate_again,
    norms_of,
    put,
    statistics_of,
)
from nmsolve.torch.pruning.dense_copies import DenseCopies
from nmsolve.torch.pruning.gathered import Gathered, Gathering
from nmsolve.torch.pruning.layer_step import LayerStep, PlainMask, Prune
from nmsolve.torch.pruning.notes import notes_on
from nmsolve.torch.pruning.pruned_layer import PrunedLayer, layers_of
from nmsolve.torch.pruning.pruning_options import PruningOptions
from nmsolve.torch.pruning.reconstruction import Reconstruction
from nmsolve.torch.pruning.side_by_side import prune_side_by_side
from nmsolve.torch.pruning.stages import explore
from nmsolve.torch.pruning.unreached import masked_by_magnitude
from nmsolve.torch.pruning.whole_passes import prune_by_passes
from nmsolve.torch.running import device_of, undisturbed
from nmsolve.torch.verification import verify
from nmsolve.torch.weights.layer_plan import Plan


def prune_layers(
    model: nn.Module,
    plan: Plan,
    calibration: Iterable[Item],
    plain_mask: PlainMask,
    prune: Prune,
    options: PruningOptions,
    heads: Sequence[str] = (),
    *,
    keep_samples: bool = False,
) -> Reconstruction:
    """Replace the planned weights of a model by pruned ones, in place.

    Whatever happens, the model is either pruned and satisfies the plan, or is as it was.

    Parameters
    ----------
    model, plan, calibration
        As for `adaprune_`.
    plain_mask : function of a Problem
        Its mask before weights are adjusted.
    prune : function of a Problem and that mask
        Its Solution.
    options : PruningOptions
    heads : sequence of str
        Paths of heads that were left out, for the report.
    keep_samples : bool
        Keep the samples of the layer at work, for updates that draw from them.
    """
    items = Calibration(calibration)
    memory = partial(
        explained, f"a {type(model).__name__} that is pruned", device_of(model), LESS_MEMORY
    )
    with memory():
        layers = layers_of(model, plan)
    how = Gathering(
        sequential=options.sequential,
        targets=options.targets,
        bias=options.bias and any(layer.bias is not None for layer in layers),
        keep_samples=keep_samples,
        precise=options.moments == torch.float64,
        padding=Padding(model, options.weights),
    )
    with memory(), DenseCopies(options.offload) as copies, torch.no_grad():
        before = statistics_of(norms_of(model))
        step = LayerStep(
            plain_mask=plain_mask,
            prune=prune,
            bias=options.bias,
            precise=options.moments == torch.float64,
            copies=copies,
        )
        with _all_or_nothing(layers, copies, before):
            with undisturbed(model, training=False), _without_caches(model):
                way, norms = _prune_all(model, layers, items, step, options, how)
                _mask_unreached(layers, step, options)
                entries = [entry for layer in layers for entry in layer.entries]
                statistics = estimate_again(model, norms, entries, items, options.progress)
            settle(model)  # what is verified is what was written
            report = verify(model, plan)
            if not report:
                raise SolverError(f"pruned weights do not satisfy the plan\n{report}")
            put(statistics)
            # Warnings may be errors to the caller.
            notes = notes_on(step.layers, how.padding, heads)
    return Reconstruction(tuple(step.layers), len(statistics), way, notes, report.coverage)


def _prune_all(
    model: nn.Module,
    layers: Sequence[PrunedLayer],
    items: Calibration,
    step: LayerStep,
    options: PruningOptions,
    how: Gathering,
) -> tuple[str, list[BatchNorm]]:
    """Prune all layers that the calibration reaches; the way that it went, and the batch norms
    that may lie behind them.
    """
    with progress_bar(
        about="pruning", total=len(layers), unit="layer", progress=options.progress
    ) as bar:

        def counted(layer: PrunedLayer, gathered: Gathered, seconds: float) -> None:
            step(layer, gathered, seconds)
            bar.set_postfix_str(layer.entry.path)
            bar.update()

        try:
            norms = prune_side_by_side(model, layers, items, counted, how, options.offload)
        except Inseparable as reason:
            step.copies.put_back()
            if any(is_lent(layer.parameter) for layer in layers):
                raise InputError(
                    f"weights that are offloaded are pruned with all items side by side: {reason}; "
                    "prune the model in memory"
                ) from reason
            step.layers.clear()
            for layer in layers:
                layer.pruned = False
            bar.reset()
            order, norms = explore(model, layers, items, options.progress)
            prune_by_passes(model, order, items, counted, how)
            return f"whole passes for each stage of layers: {reason}", norms
        return "every item once through the model, all side by side", norms


def _mask_unreached(
    layers: Sequence[PrunedLayer], step: LayerStep, options: PruningOptions
) -> None:
    """Masks for layers without calibration, or the error that there are such."""
    missing = [layer for layer in layers if not layer.pruned]
    if len(missing) == len(layers) or (missing and options.unreached == "error"):
        reached = [layer.entry.owner for layer in layers if layer.pruned]
        check_reached([layer.entry for layer in layers], reached, "the calibration")
    for layer in missing:
        step.layers.append(masked_by_magnitude(layer, step.copies))


@contextlib.contextmanager
def _all_or_nothing(
    layers: Sequence[PrunedLayer], copies: DenseCopies, statistics: Statistics
) -> Iterator[None]:
    """Errors inside leave weights, biases and batch norms as they were."""
    try:
        yield
    except BaseException:
        for layer in layers:
            if not is_lent(layer.parameter):
                layer.parameter.data = layer.own
        copies.put_back()
        put(statistics)
        raise


@contextlib.contextmanager
def _without_caches(model: nn.Module) -> Iterator[None]:
    """Have transformers' models keep no keys and values, of which nothing is used."""
    configs = {
        id(config): config
        for module in model.modules()
        if (config := getattr(module, "config", None)) is not None
        and getattr(config, "use_cache", None) is True
    }
    try:
        for config in configs.values():
            config.use_cache = False
        yield
    finally:
        for config in configs.values():
            config.use_cache = True
