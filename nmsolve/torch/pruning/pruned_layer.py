"""A planned weight while its model is pruned: checked, copied, and swapped for the dense one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from nmsolve.errors import InputError
from nmsolve.geometry import Geometry
from nmsolve.torch.tensors import check_weight
from nmsolve.torch.weights.layer_kinds import reduction_axis
from nmsolve.torch.weights.layer_plan import Plan, PlannedWeight
from nmsolve.torch.weights.parameters import parameters_of
from nmsolve.torch.weights.planned import layout_of, planned_modules
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
        The parameter's storage, which holds the pruned weight once there is one.
    dense : Tensor
        A copy of the weight as it was.
    joins : bool
        Whether it is given the very tensors that the one before is.
    pruned : bool
    """

    entries: list[PlannedWeight]
    layout: Geometry
    parameter: Tensor
    own: Tensor
    dense: Tensor
    joins: bool = False
    pruned: bool = False

    @property
    def entry(self) -> PlannedWeight:
        """Its plan."""
        return self.entries[0]

    @property
    def weight(self) -> Tensor:
        """The weight as it was, (parts, rows, cols), float64."""
        return self.layout.matrices(self.dense).double()


def layers_of(model: nn.Module, plan: Plan) -> list[PrunedLayer]:
    """Return the planned weights, each once.

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
            span = (
                sum(
                    (size - 1) * stride
                    for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
                )
                + 1
            )
            found[id(tensor)] = (
                str(tensor.device),
                tensor.data_ptr(),
                tensor.data_ptr() + span * tensor.element_size(),
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
def dense_model(layers: Sequence[PrunedLayer]) -> Iterator[None]:
    """Give the model its dense weights for a while."""
    pruned = [layer for layer in layers if layer.pruned]
    try:
        for layer in pruned:
            layer.parameter.data = layer.dense
        yield
    finally:
        for layer in pruned:
            layer.parameter.data = layer.own
