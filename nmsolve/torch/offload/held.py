"""A model's tensors, each once, with everywhere it is; and whether they can be offloaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from nmsolve.errors import InputError
from nmsolve.torch.offload.lent_parameter import is_lent
from nmsolve.torch.offload.shards import Shard
from nmsolve.torch.tensors import FLOATS
from nmsolve.torch.weights.apart import is_apart, overlapping


class Held:
    """A parameter or buffer of a model, and everywhere it is.

    Attributes
    ----------
    tensor : Tensor
    names : list of str
    places : list of (nn.Module, str)
    persistent : bool
        Whether it belongs in a checkpoint.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.names: list[str] = []
        self.places: list[tuple[nn.Module, str]] = []
        self.persistent = False

    @property
    def is_parameter(self) -> bool:
        return isinstance(self.tensor, nn.Parameter)


def held_in(model: nn.Module) -> list[Held]:
    """The tensors of a model, each once."""
    found: dict[int, Held] = {}
    for path, module in model.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None:
                continue
            held = found.setdefault(id(tensor), Held(tensor))
            held.names.append(f"{path}.{name}" if path else name)
            held.places.append((module, name))
            held.persistent |= name not in module._non_persistent_buffers_set
    return list(found.values())


def check_in_one_place(model: nn.Module, held: Sequence[Held], source: Path | None) -> None:
    """InputError unless all values are in one place."""
    scripted = [name for name, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule)]
    if scripted:
        raise InputError(
            f"{scripted[0] or 'the model'} is a ScriptModule, which reads its weights where "
            "nothing can be put in their place: offload the model that it was made from"
        )
    if any(map(parametrize.is_parametrized, model.modules())):
        raise InputError(
            "the model has masks or other parametrizations on it: finalize_() the SparseModel first"
        )
    parameters = [one for one in held if one.is_parameter]
    for one in parameters:
        if is_lent(one.tensor):
            raise InputError("the model is inside of offloaded already")
        if (
            is_lazy(one.tensor)
            or type(one.tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__
            or one.tensor.layout != torch.strided
        ):
            raise InputError(
                f"{one.names[0]} is a {type(one.tensor).__name__}, and not a plain parameter"
            )
    meta = [one.names[0] for one in parameters if one.tensor.is_meta]
    with_values = [one.names[0] for one in parameters if not one.tensor.is_meta]
    if source is None and meta:
        raise InputError(
            f"{some(meta)} on the meta device, without values: say where these are (source=…)"
        )
    if source is not None and with_values:
        raise InputError(
            f"{some(with_values)} in memory already: make the model with its parameters on the "
            "meta device (with accelerate.init_empty_weights(include_buffers=False): …), or leave "
            "source out and say where to compute (device=…)"
        )
    if source is None:
        _check_apart(parameters)
    lost = [one.names[0] for one in held if one.tensor.is_meta and not one.persistent]
    if lost:
        raise InputError(
            f"{some(lost)} on the meta device and in no checkpoint: make the model so that only "
            "parameters are there, with accelerate.init_empty_weights(include_buffers=False)"
        )


def _check_apart(parameters: Sequence[Held]) -> None:
    """InputError if parameters have memory in common, which each would have for itself inside."""
    for one in parameters:
        if not is_apart(one.tensor):
            raise InputError(
                f"{one.names[0]} has entries that share memory (strides {one.tensor.stride()}): "
                "give it one of its own (.clone())"
            )
    for (first, _), (second, _) in overlapping([(one.names[0], one.tensor) for one in parameters]):
        raise InputError(
            f"{first} and {second} share memory without being one parameter: tie them "
            "(b.weight = a.weight), or give one memory of its own (.clone())"
        )


def some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} {'is' if len(names) == 1 else 'are'}"


def check_stored(held: Sequence[Held], shards: Mapping[str, Shard], source: Path) -> None:
    """InputError unless a checkpoint has what is not in memory, in the same shapes."""
    missing = [
        one.names[0]
        for one in held
        if one.tensor.is_meta and not any(name in shards for name in one.names)
    ]
    if missing:
        raise InputError(
            f"{some(missing)} not in {source}, which has {', '.join(list(shards)[:3])}, …: give "
            "the checkpoint of this model, by the model's names, and call tie_weights() where "
            "weights are shared"
        )
    for one in held:
        for name in one.names:
            if (
                name in shards
                and one.persistent
                and not _holds(shards[name].dtype, one.tensor.dtype)
            ):
                raise InputError(
                    f"{name} is {one.tensor.dtype} in the model and {shards[name].dtype} in "
                    f"{source}, whose numbers may be codes of quantized weights: give a checkpoint "
                    "of plain weights"
                )
            if name in shards and one.persistent and shards[name].shape != tuple(one.tensor.shape):
                raise InputError(
                    f"{name} has shape {tuple(one.tensor.shape)} in the model and "
                    f"{shards[name].shape} in {source}: give the checkpoint of this model"
                )


def _holds(stored: torch.dtype, wanted: torch.dtype) -> bool:
    """Return whether a dtype has the numbers of another, but for rounding."""
    return stored == wanted or (stored in FLOATS and wanted in FLOATS)
