"""Weights of modules: which have a reduction axis, where it lies, and how they are laid out for
`nmsolve.torch.solve`.
"""

from __future__ import annotations

from torch import Tensor, nn


def reduction_axis(module: nn.Module, parameter: str) -> int | None:
    """The axis of a module's parameter over which products sum, which groups lie along; None if it
    has none that we know.

    1 for (out, in, kernel …) weights of nn.Linear, of convolutions and of nn.MultiheadAttention's
    projections; 0 for the (in, out) weight of Hugging Face's Conv1D, which GPT-2 is made of. Its
    I-BERT has a linear layer that is no nn.Linear.
    """
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return 1 if parameter == "weight" else None
    if isinstance(module, nn.MultiheadAttention):
        return (
            1
            if parameter in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
            else None
        )
    kinds = {f"{kind.__module__}.{kind.__name__}" for kind in type(module).__mro__}
    if "transformers.pytorch_utils.Conv1D" in kinds:
        return 0 if parameter == "weight" else None
    if (
        "transformers.models.ibert.quant_modules.QuantLinear" in kinds
    ):  # quantizing leaves zeros as they are
        return 1 if parameter == "weight" else None
    return None


#: Weights that the module above reads, by its class and the attribute: transposed, so that its
#: products reduce over rows.
_READ_FROM_ABOVE = {("MobileBertLMPredictionHead", "dense")}


def read_from_above(model: nn.Module) -> set[int]:
    """Identities of the modules in a model whose weights are multiplied past them, along another
    axis than their own.
    """
    found = set()
    for parent in model.modules():
        found |= {
            id(child)
            for name, child in parent.named_children()
            if (type(parent).__name__, name) in _READ_FROM_ABOVE
        }
    return found


def filter_groups(module: nn.Module) -> int:
    """How many groups a convolution is divided into; 1 for everything else."""
    return module.groups if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) else 1


def for_solver(weight: Tensor, axis: int) -> Tensor:
    """A weight as `nmsolve.torch.solve` takes it, with groups along its `axis`: a view.

    (out, in) as it is, (in, out) transposed, the (out, in, kernel) of a Conv1d as (out, in, 1,
    kernel), others as they are.
    """
    if axis == 0:
        return weight.T
    return weight.unsqueeze(2) if weight.dim() == 3 else weight


def from_solver(mask: Tensor, axis: int, dim: int) -> Tensor:
    """The inverse of `for_solver`, for a weight of `dim` axes."""
    if axis == 0:
        return mask.T
    return mask.squeeze(2) if dim == 3 else mask


def groups_of(weight: Tensor, axis: int, m: int) -> Tensor:
    """A weight as groups, (…, m): with the group last, a view if it can be, in an order that begins
    with the weight's first axis.

    So a weight that is cut along its first axis (in multiples of m, if that is the groups' axis)
    has its groups cut alike.
    """
    shape = (*weight.shape[:axis], weight.shape[axis] // m, m, *weight.shape[axis + 1 :])
    return weight.reshape(shape).movedim(axis + 1, -1)


def from_groups(groups: Tensor, axis: int) -> Tensor:
    """The inverse of `groups_of`."""
    return groups.movedim(-1, axis + 1).flatten(axis, axis + 1)
