"""What a layer is given and should give, gathered from runs of the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from nmsolve.errors import InputError
from nmsolve.torch.calibration.activations import Use, unreached, watched
from nmsolve.torch.calibration.inputs import Calibration, Item, check_finite, run, run_all
from nmsolve.torch.calibration.layout import Layout, layout_of
from nmsolve.torch.calibration.moments import Moments
from nmsolve.torch.pruning.batch_norm import BatchNorm, norms_of
from nmsolve.torch.tensors import check_weight
from nmsolve.torch.verification import planned_modules
from nmsolve.torch.weights.layer_kinds import reduction_axis
from nmsolve.torch.weights.planning import LayerPlan, Plan, parameters_of
from nmsolve.torch.weights.sharding import is_sharded

#: Bytes of moments that are gathered in one run where layers do not wait for each other.
_AT_ONCE = 2**30


@dataclass(slots=True, eq=False)
class PrunedLayer:
    """A planned weight while its model is pruned.

    entries : its own first, then those of layers that share it. own : its storage, which holds what
    it is pruned to. dense : a copy of what it was. joins : whether it is given the very tensors
    that the one before is.
    """

    entries: list[LayerPlan]
    layout: Layout
    parameter: Tensor
    own: Tensor
    dense: Tensor
    joins: bool = False
    pruned: bool = False

    @property
    def entry(self) -> LayerPlan:
        """Its plan."""
        return self.entries[0]

    @property
    def weight(self) -> Tensor:
        """What it was, (parts, rows, cols), float64."""
        return self.layout.matrices(self.dense).double()


@dataclass(slots=True)
class Gathered:
    """What runs add up to for a layer. samples : as in `Problem`."""

    moments: Moments
    samples: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)


def layers_of(model: nn.Module, plan: Plan) -> list[PrunedLayer]:
    """The planned weights, each once.

    Raises
    ------
    InputError
        If the plan is another model's, or a weight cannot be replaced, naming the layer.
    """
    layers: dict[str, PrunedLayer] = {}
    for entry, module in zip(plan.planned, planned_modules(model, plan), strict=True):
        parameter = parameters_of(module)[entry.parameter]
        if parametrize.is_parametrized(module):
            raise InputError(
                f"layer {entry.path} has a mask or another parametrization on it: finalize_() the "
                "SparseModel first, then prune what it leaves (masks that are baked in as zeros "
                "are converted)"
            )
        if is_sharded(parameter):
            raise InputError(
                f"layer {entry.path} is sharded: prune the model first, then fully_shard it"
            )
        if reduction_axis(module, entry.parameter) != entry.axis:
            raise InputError(
                f"layer {entry.path} is a {type(module).__name__}, planned was a {entry.kind}: "
                "make a new plan"
            )
        if parameter.is_inference():
            raise InputError(
                f"the weight of layer {entry.path} was made under torch.inference_mode: make the "
                "model outside of it"
            )
        weight = check_weight(
            parameter, f"the weight of layer {entry.path}", f"pattern {entry.pattern}"
        )
        bad = (~torch.isfinite(weight)).nonzero()
        if len(bad):
            first = tuple(bad[0].tolist())
            raise InputError(
                f"the weight of layer {entry.path} is {weight[first].item()} at {list(first)}; "
                "masks need finite weights"
            )
        if entry.owner in layers:
            layers[entry.owner].entries.append(entry)
        else:
            layers[entry.owner] = PrunedLayer(
                [entry], layout_of(entry, module), parameter, parameter.data, weight.clone()
            )
    _check_overlaps(model, layers.values())
    return list(layers.values())


def _check_overlaps(model: nn.Module, layers: Iterable[PrunedLayer]) -> None:
    """InputError if a planned weight's memory is another tensor's too, which would change with
    it.
    """
    planned = {id(layer.parameter): layer.entry.path for layer in layers}
    found = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if (
            tensor.layout == torch.strided
            and not is_lazy(tensor)
            and tensor.numel()
            and tensor.device.type != "meta"
        ):
            extent = (
                sum(
                    (size - 1) * stride
                    for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
                )
                + 1
            )
            found[id(tensor)] = (
                str(tensor.device),
                tensor.data_ptr(),
                tensor.data_ptr() + extent * tensor.element_size(),
                name,
            )
    widest: tuple[str, int, str, int] | None = None  # of those so far, the one that ends last
    for key, (device, start, end, name) in sorted(found.items(), key=lambda item: item[1][:2]):
        if (
            widest
            and widest[0] == device
            and start < widest[1]
            and (key in planned or widest[3] in planned)
        ):
            raise InputError(
                f"{widest[2]} and {name} share memory without being one parameter, so that pruning "
                "one may change the other: tie them (b.weight = a.weight), or give one memory of "
                "its own (.clone())"
            )
        if widest is None or widest[0] != device or end > widest[1]:
            widest = device, end, name, key


@contextmanager
def _dense(layers: Sequence[PrunedLayer]) -> Iterator[None]:
    """The dense model for a while."""
    pruned = [layer for layer in layers if layer.pruned]
    try:
        for layer in pruned:
            layer.parameter.data = layer.dense
        yield
    finally:
        for layer in pruned:
            layer.parameter.data = layer.own


def explore(
    model: nn.Module, layers: Sequence[PrunedLayer], items: Calibration, progress: bool | None
) -> tuple[list[PrunedLayer], list[BatchNorm]]:
    """The layers in the order in which the model comes to them, and the batch norms that come after
    any of them.

    Raises
    ------
    InputError
        If one is never reached or is given what is not finite, or such a norm what has no
        statistics, naming it; nothing has been changed yet.
    """
    by_owner = {layer.entry.owner: layer for layer in layers}
    owner_of = {entry.path: entry.owner for layer in layers for entry in layer.entries}
    order: list[str] = []
    called: set[str] = set()  # in this run
    after: set[BatchNorm] = set()
    at = 0
    last: list[
        tuple[Tensor, int]
    ] = []  # kept, so that no other tensor can come to have their identity

    def seen(path: str, use: Use) -> None:
        nonlocal last
        if not all(x.numel() for x in use.inputs):
            return
        layer = by_owner[owner_of[path]]
        if (
            layer.entry.owner not in order
        ):  # a branch that earlier items did not take goes right behind what leads to it
            order.insert(
                max((order.index(owner) + 1 for owner in called), default=0), layer.entry.owner
            )
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
        called.add(layer.entry.owner)

    def normed(norm: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        assert isinstance(norm, BatchNorm)
        x = args[0] if args else kwargs["input"]
        if called and x.numel():
            after.add(norm)
            if x.numel() == x.shape[1]:
                raise InputError(
                    f"batch norm {names[norm]} is given one value a channel by calibration item "
                    f"{at}, which has no variance to estimate its statistics anew with: give "
                    "larger batches"
                )

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
    unused = [layer.entry.path for layer in layers if layer.entry.owner not in order]
    if unused:
        raise InputError(unreached(unused, "the calibration"))
    return [by_owner[owner] for owner in order], [norm for norm in norms if norm in after]


def stages_of(order: Sequence[PrunedLayer], sequential: bool) -> list[list[PrunedLayer]]:
    """Layers whose moments are gathered in one run: those with the same input (query, key, value),
    or as many as memory takes.
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


def _belongs(wanted: Tensor, given: Tensor) -> bool:
    """Whether outputs of the dense model are for these inputs, of which the dense layer makes
    `given`.

    A model that routes tokens may route others here once it is pruned. Then their number differs,
    or they are further from what the dense layer makes of these than from nothing.
    """
    return wanted.shape == given.shape and bool(
        (wanted - given).square().sum() <= wanted.square().sum()
    )


def gather(
    model: nn.Module,
    stage: Sequence[PrunedLayer],
    layers: Sequence[PrunedLayer],
    items: Calibration,
    sequential: bool,
    keep_samples: bool,
) -> dict[str, Gathered]:
    """For a stage's layers, by owner: the pruned model's inputs and the dense one's outputs if
    sequential, both of the dense model otherwise.
    """
    entries = {entry.path: entry for layer in stage for entry in layer.entries}
    weights = {layer.entry.owner: layer.weight for layer in stage}
    kinds = {
        layer.entry.owner: torch.promote_types(layer.dense.dtype, torch.float32) for layer in stage
    }
    gathered = {owner: Gathered(Moments.empty(weight)) for owner, weight in weights.items()}
    wanted: dict[str, list[list[Tensor]]] = {owner: [] for owner in weights}  # of each call
    prefix_differs = sequential and any(layer.pruned for layer in layers)
    asking, at = False, 0

    def seen(path: str, use: Use) -> None:
        owner = entries[path].owner
        mine = gathered[owner]
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
            dense = outputs.pop(0) if outputs else y
            y = dense if _belongs(dense, y) else y
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
            with (
                torch.random.fork_rng(devices=devices),
                _dense(layers),
            ):  # both runs draw the same numbers, if they draw any
                run(model, item, index)
            asking = False
        with nullcontext() if sequential else _dense(layers):
            run(model, item, index)
        for calls in wanted.values():
            calls.clear()

    devices = sorted(
        {layer.dense.device.index for layer in layers if layer.dense.device.type == "cuda"}
    )
    with watched(model, list(entries.values()), seen):
        run_all(items, each, "", progress=False)
    return gathered
