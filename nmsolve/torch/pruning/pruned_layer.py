"""A planned weight while its model is pruned: checked, copied, and swapped for the dense one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nmsolve.errors import InputError
from nmsolve.geometry import Geometry
from nmsolve.torch.calibration.inputs import LESS_MEMORY
from nmsolve.torch.device.failures import explained
from nmsolve.torch.offload.lent_parameter import is_lent
from nmsolve.torch.tensors import check_weight
from nmsolve.torch.weights.apart import is_apart, overlapping
from nmsolve.torch.weights.layer_kinds import CONVOLUTIONS, base_of, reduction_axis
from nmsolve.torch.weights.layer_plan import Plan, PlannedWeight
from nmsolve.torch.weights.parameters import parameters_of
from nmsolve.torch.weights.planned import check_ties, layout_of, planned_modules
from nmsolve.torch.weights.sharding import is_sharded


@dataclass(slots=True, eq=False)
class PrunedLayer:
    """A planned weight while its model is pruned.

    Attributes
    ----------
    entries : list of PlannedWeight
        Its own first, then those of layers that share it.
    layout : Geometry
    parameter : Tensor
        The model's.
    own : Tensor
        The parameter's storage, which holds the pruned weight once there is one; the parameter
        itself where its values are lent.
    bias : Tensor or None
        What the layer adds to its outputs, in the order of the weight's rows, part after part; None
        where it adds nothing, or more than one layer uses the weight or the bias.
    dense, dense_bias : Tensor or None
        Copies of the weight and the bias as they were, where `keep_dense` has made some.
    joins : bool
        Whether it is given the very tensors that the one before is.
    items : int
        Number of calibration items that come to it, as far as that has been counted.
    pruned : bool
    """

    entries: list[PlannedWeight]
    layout: Geometry
    parameter: Tensor
    own: Tensor
    bias: Tensor | None = None
    dense: Tensor | None = None
    dense_bias: Tensor | None = None
    joins: bool = False
    items: int = 0
    pruned: bool = False

    @property
    def entry(self) -> PlannedWeight:
        """Its plan."""
        return self.entries[0]

    @property
    def weight(self) -> Tensor:
        """The weight as it was, (parts, rows, cols), float64; without a copy, as it is."""
        return self.layout.matrices(self.own if self.dense is None else self.dense).double()

    def keep_dense(self) -> None:
        """Copy the weight and the bias as they are."""
        self.dense = self.own.clone()
        self.dense_bias = None if self.bias is None else self.bias.clone()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Compute with it in the dtypes that are asked for; memory that runs out is said to have
        run out here.
        """
        device = self.own.device
        with (
            explained(f"layer {self.entry.path}, of shape {self.entry.shape}", device, LESS_MEMORY),
            torch.autocast(device.type, enabled=False),
        ):
            yield


def layers_of(model: nn.Module, plan: Plan) -> list[PrunedLayer]:
    """Return the planned weights, each once.

    Raises
    ------
    InputError
        If the plan is another model's, or a weight cannot be replaced, naming the layer.
    """
    layers: dict[str, PrunedLayer] = {}
    owners: dict[int, str] = {}
    uses = Counter(id(p) for module in model.modules() for p in parameters_of(module).values())
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
        # Of others than plain ones, what is wrong is said below.
        plain = parameter.layout == torch.strided and not (parameter.is_meta or is_lent(parameter))
        if plain and not is_apart(parameter):
            raise InputError(
                f"the weight of layer {entry.path} has entries that share memory (strides "
                f"{parameter.stride()}), so that they cannot differ: give it one of its own "
                "(.clone())"
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
        known = layers.get(entry.owner)
        if owners.setdefault(id(parameter), entry.owner) != entry.owner or (
            known is not None and known.parameter is not parameter
        ):
            raise InputError(
                f"layer {entry.path} shares its weight with other layers than when it was planned: "
                "make a new plan"
            )
        if entry.owner in layers:
            layers[entry.owner].entries.append(entry)
            layers[entry.owner].bias = None
        else:
            layout = layout_of(entry, module)
            bias = _bias_of(module, entry, layout, uses)
            layers[entry.owner] = PrunedLayer([entry], layout, parameter, _own(parameter), bias)
    check_ties(model, plan)
    _check_overlaps(model, layers.values())
    return list(layers.values())


def _own(parameter: Tensor) -> Tensor:
    """A parameter's storage, or the parameter where that comes and goes."""
    return parameter if is_lent(parameter) else parameter.data


def _bias_of(
    module: nn.Module, entry: PlannedWeight, layout: Geometry, uses: Mapping[int, int]
) -> Tensor | None:
    """The bias that a layer of the ordinary kinds, and no other module, adds to the outputs of its
    weight.
    """
    bias = parameters_of(module).get("bias")
    ordinary = base_of(module) in (nn.Linear, *CONVOLUTIONS) or base_of(module).__name__ == "Conv1D"
    rows = layout.parts * layout.part_rows
    if not ordinary or entry.parameter != "weight" or bias is None or bias.shape != (rows,):
        return None
    alone = uses[id(bias)] == 1
    return _own(bias) if alone and not (is_sharded(bias) or bias.is_inference()) else None


def _check_overlaps(model: nn.Module, layers: Iterable[PrunedLayer]) -> None:
    """InputError if a planned weight's memory is another tensor's too, which would change with
    it.
    """
    planned = {id(layer.parameter) for layer in layers}
    held = [
        named
        for named in (*model.named_parameters(), *model.named_buffers())
        if not is_lent(named[1])
    ]
    for (first, one), (second, other) in overlapping(held):
        if id(one) in planned or id(other) in planned:
            raise InputError(
                f"{first} and {second} share memory without being one parameter, so that pruning "
                "one may change the other: tie them (b.weight = a.weight), or give one memory of "
                "its own (.clone())"
            )


@contextmanager
def dense_model(layers: Sequence[PrunedLayer]) -> Iterator[None]:
    """Give the model its dense weights and their biases for a while."""
    pruned = [layer for layer in layers if layer.pruned]
    biases = [
        (layer.bias, layer.bias.clone(), layer.dense_bias)
        for layer in pruned
        if layer.bias is not None and layer.dense_bias is not None
    ]
    try:
        for bias, _, dense in biases:
            bias.copy_(dense)
        for layer in pruned:
            if layer.dense is not None:
                layer.parameter.data = layer.dense
        yield
    finally:
        for layer in pruned:
            layer.parameter.data = layer.own
        for bias, fitted, _ in biases:
            bias.copy_(fitted)
