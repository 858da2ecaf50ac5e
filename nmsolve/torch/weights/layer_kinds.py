"""Kinds of layers: `KINDS` says which parameters of which modules are weights of products, along
which axis those sum, and why others are none. A new kind of layer is an entry here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nmsolve.geometry import Geometry


def _one(module: Any, parameter: str) -> int:
    return 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerKind:
    """A kind of layer. Of a module's kinds the first in `KINDS` decides.

    Attributes
    ----------
    modules : tuple of classes or str
        Classes, with their subclasses; where they are another library's, by the name of the module
        that defines the class and the class's own ("torch.nn.modules.linear.Linear").
    weights : mapping of str to int
        Parameters that are weights of products, and the axis of each that products sum over.
    parts : callable
        Module and parameter → how many pieces of the weight have inputs of their own.
    apart : bool
        Whether blocks must stay within a part (see `Geometry`).
    inputs : mapping of str to tuple of str
        Arguments of the forward that the parts of a weight multiply; of a parameter that is not
        here it is the first argument, for all parts.
    probe : callable or None
        Module and dtype → inputs, without values, that a subclass's own forward is tried on, to see
        whether it multiplies by the weight as it is; None: it is taken for granted. For a parameter
        `weight` that is (out, in, …) alone.
    reason : str or None
        Why no weight of such a module can have a mask.
    within : tuple of str, or None
        (class name, attribute): only modules that are that attribute of such a parent.
    """

    modules: tuple[type[nn.Module] | str, ...]
    weights: Mapping[str, int] = field(default_factory=dict)
    parts: Callable[[Any, str], int] = _one
    apart: bool = False
    inputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    probe: Callable[[Any, torch.dtype], tuple[Tensor, ...]] | None = None
    reason: str | None = None
    within: tuple[str, str] | None = None

    def base_of(self, kind: type[nn.Module]) -> type[nn.Module] | None:
        """Return the class of this kind that a class is, or is derived from; None if there is
        none.
        """
        for base in kind.__mro__:
            if base in self.modules or f"{base.__module__}.{base.__name__}" in self.modules:
                return base
        return None


def _vectors(module: Any, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Inputs of a linear layer, without values."""
    return (torch.empty(1, 64, module.in_features, dtype=dtype, device="meta"),)


def _images(module: Any, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Inputs of a convolution, without values: channels where torch has them, and last."""
    sizes = [d * (k - 1) + 16 for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    first = torch.empty(1, module.in_channels, *sizes, dtype=dtype, device="meta")
    return first, first.movedim(1, -1).contiguous()


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
KINDS = (
    LayerKind(
        modules=("nmsolve.torch.dispatch.sparse_linear.SparseLinear",),
        reason="a SparseLinear has a mask of its own",
    ),
    LayerKind(
        modules=("nmsolve.torch.dispatch.packed_linear.PackedLinear",),
        reason="a PackedLinear has a mask of its own",
    ),
    LayerKind(
        modules=(nn.Linear,),
        within=("MobileBertLMPredictionHead", "dense"),
        reason="the module above multiplies by its weight, transposed: groups would lie along the "
        "other axis",
    ),
    LayerKind(modules=(nn.Linear,), weights={"weight": 1}, probe=_vectors),
    LayerKind(
        modules=CONVOLUTIONS,
        weights={"weight": 1},
        parts=lambda module, parameter: int(module.groups),
        apart=True,
        probe=_images,
    ),
    LayerKind(
        modules=(nn.MultiheadAttention,),
        weights=dict.fromkeys(
            ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"), 1
        ),
        parts=lambda module, parameter: 3 if parameter == "in_proj_weight" else 1,
        inputs={
            "in_proj_weight": ("query", "key", "value"),
            "q_proj_weight": ("query",),
            "k_proj_weight": ("key",),
            "v_proj_weight": ("value",),
        },
    ),
    LayerKind(modules=("transformers.pytorch_utils.Conv1D",), weights={"weight": 0}),
    LayerKind(  # I-BERT's; quantizing leaves zeros as they are
        modules=("transformers.models.ibert.quant_modules.QuantLinear",), weights={"weight": 1}
    ),
    LayerKind(
        modules=(nn.Embedding, nn.EmbeddingBag),
        reason="an embedding looks up rows, it reduces over nothing",
    ),
    LayerKind(
        modules=(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        reason="a transposed convolution reduces over its first axis, which no sparse kernel "
        "serves",
    ),
)


def layer_kind(module: nn.Module) -> LayerKind | None:
    """Return the entry for a module, whatever masks are on it; None if it is of no known kind."""
    return _first(KINDS, parametrize.type_before_parametrizations(module))


@lru_cache(maxsize=1024)
def _first(kinds: tuple[LayerKind, ...], kind: type[nn.Module]) -> LayerKind | None:
    """The first entry that a class is of; models have few classes and many modules."""
    return next((one for one in kinds if one.within is None and one.base_of(kind)), None)


def base_of(module: nn.Module) -> type[nn.Module]:
    """Return the class that says what is computed with a module's weights: the one that the table
    names, of which a module's own may be a subclass.
    """
    kind, own = layer_kind(module), parametrize.type_before_parametrizations(module)
    return (kind and kind.base_of(own)) or own


def reasons_from_above(model: nn.Module) -> dict[int, str]:
    """Return why modules of a model stay dense because of what the module above does with them, by
    their identities.
    """
    special = [kind for kind in KINDS if kind.within is not None and kind.reason is not None]
    return {
        id(child): str(kind.reason)
        for parent in model.modules()
        for name, child in parent.named_children()
        for kind in special
        if kind.within == (type(parent).__name__, name)
        and kind.base_of(parametrize.type_before_parametrizations(child))
    }


def reduction_axis(module: nn.Module, parameter: str) -> int | None:
    """Return the axis of a module's parameter over which products sum, which groups lie along; None
    if none is known.
    """
    kind = layer_kind(module)
    return None if kind is None else kind.weights.get(parameter)


def geometry_of(module: nn.Module, parameter: str, shape: tuple[int, ...], axis: int) -> Geometry:
    """Return how groups along an axis lie in a module's weight of a shape."""
    kind = layer_kind(module)
    if kind is None:
        return Geometry(shape, axis)
    return Geometry(shape, axis, kind.parts(module, parameter), kind.apart)
