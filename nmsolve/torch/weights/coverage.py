"""`Coverage`: the share of a model's parameters that a report is about."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from torch.nn.parameter import is_lazy

from nmsolve.torch.weights.layer_plan import PlannedWeight
from nmsolve.torch.weights.parameters import parameters_of
from nmsolve.torch.weights.quantized import packed_tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """The share of a model that a report is about. Prints as a line.

    Attributes
    ----------
    covered : int
        Entries of the planned weights, kept or not.
    parameters : int
        Entries of all parameters of the model, and of the weights and biases that quantized layers
        hold packed instead.
    uninitialized : int
        Parameters of lazy modules, which have no entries to be counted yet.

    Notes
    -----
    A tensor that several layers share is counted once, a sharded one as a whole, a weight with a
    mask on it as that weight. Buffers are no parameters.
    """

    covered: int
    parameters: int
    uninitialized: int = 0

    @property
    def share(self) -> float:
        """Covered ones in all that are counted, 0 to 1."""
        return self.covered / max(1, self.parameters)

    def __str__(self) -> str:
        text = (
            f"covers {self.covered:,} of {self.parameters:,} parameters ({100 * self.share:.1f} %)"
        )
        if self.uninitialized:
            text += f", besides {self.uninitialized} that lazy modules have not initialised yet"
        return text


def coverage_of(model: nn.Module, entries: Iterable[tuple[PlannedWeight, nn.Module]]) -> Coverage:
    """Return the share of a model that planned weights are, each given with the module that it is
    in.
    """
    sizes: dict[object, int] = {}
    uninitialized = 0
    for parameter in model.parameters():
        if is_lazy(parameter):
            uninitialized += 1
        else:
            sizes[id(parameter)] = parameter.numel()
    for module in model.modules():
        for name, tensor in packed_tensors(module).items():
            sizes[id(module), name] = tensor.numel()
    covered = set()
    for entry, module in entries:
        own = parameters_of(module).get(entry.parameter)
        covered.add((id(module), entry.parameter) if own is None else id(own))
    return Coverage(
        covered=sum(sizes[key] for key in covered),
        parameters=sum(sizes.values()),
        uninitialized=uninitialized,
    )
