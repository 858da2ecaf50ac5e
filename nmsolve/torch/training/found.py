"""Planned weights that a model still has masks on: models change in training, by heads that are
swapped, adapters, wrappers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from nmsolve.torch.training.masked_layer import MaskedLayer
from nmsolve.torch.weights.layer_plan import Plan, PlannedWeight
from nmsolve.torch.weights.masked import masked_parameters


@dataclass(frozen=True, slots=True)
class Found:
    """The planned weights that a model has, and those that it has not.

    Attributes
    ----------
    layers : tuple of MaskedLayer
        The masked weights, in the model's order, each once, with the modules that share it.
    gone : tuple of str
        Paths of planned weights that the model has no more, or has without a mask.
    """

    layers: tuple[MaskedLayer, ...]
    gone: tuple[str, ...]

    @property
    def entries(self) -> list[tuple[PlannedWeight, nn.Module]]:
        """Every planned weight that is there with its module, shared ones once for each."""
        return [
            pair for layer in self.layers for pair in ((layer.entry, layer.module), *layer.tied)
        ]


def find(model: nn.Module, plan: Plan, run: str) -> Found:
    """Return the masked weights of a model, or of a copy of it, wherever they are now.

    Masks know the run of sparsify_ and the path that they were planned under, so layers are found
    below wrappers and adapters, which rename them.
    """
    planned: dict[str, list[PlannedWeight]] = {}  # by the first of those that share a weight
    for entry in plan.planned:
        planned.setdefault(entry.owner, []).append(entry)
    layers: dict[int, MaskedLayer] = {}
    found: set[str] = set()
    for name, module in model.named_modules():
        for parameter, masked in masked_parameters(module).items():
            entries = planned.get(masked.path, []) if masked.run == run else []
            if not entries:
                continue  # another call of sparsify_ put it there
            # There may be more of them than planned: adapters copy modules that they train whole,
            # and keep both.
            here = replace(entries[0], name=name, parameter=parameter)
            free = [
                entry
                for entry in entries
                if entry.path not in found and entry.parameter == parameter
            ]
            entry = next((entry for entry in free if entry.name == name), free[0] if free else here)
            found.add(entry.path)
            if id(masked) in layers:
                layers[id(masked)].tied.append((entry, module))
            else:
                layers[id(masked)] = MaskedLayer(entry, module, masked)
    return Found(
        tuple(layers.values()),
        tuple(entry.path for entry in plan.planned if entry.path not in found),
    )


def adapted_layers(model: nn.Module, found: Found) -> list[str]:
    """Return paths of masked layers that are inside an adapter's, as PEFT puts them, not merged."""
    inside = {
        id(module)
        for name, module in model.named_modules()
        if name.rpartition(".")[2] == "base_layer"
    }
    return [entry.path for entry, module in found.entries if id(module) in inside]


def first_of(paths: Sequence[str]) -> str:
    """Return three paths for a message, and "…" if there are more."""
    return ", ".join(paths[:3]) + (", …" if len(paths) > 3 else "")
