"""New layers put in the place of old ones, and back where a run of the model goes past them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from torch import Tensor, nn

from nmsolve.torch.dispatch.packed_linear import PackedLinear
from nmsolve.torch.dispatch.sparse_linear import SparseLinear
from nmsolve.torch.running import undisturbed


def exchange_layers(
    model: nn.Module,
    news: Mapping[str, SparseLinear | PackedLinear],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    training: bool,
) -> dict[str, str]:
    """Exchange layers, by path, and exchange back those that model(*args, **kwargs) goes past.

    Returns
    -------
    dict of str to str
        By path, how the run goes past a new layer. The old one serves these better.
    """
    if not news:
        return {}
    olds = {name: model.get_submodule(name) for name in news}
    _replace(model, news)
    try:
        unused = _unused(model, news, args, kwargs, training)
    except BaseException:
        _replace(model, olds)
        raise
    _replace(model, {name: olds[name] for name in unused})
    return unused


def _replace(model: nn.Module, news: Mapping[str, nn.Module]) -> None:
    for name, new in news.items():
        parent, _, child = name.rpartition(".")
        model.get_submodule(parent)._modules[child] = new


class _Watched(nn.Module):
    """Mixed into a new layer's class: notes whether the layer is called, and whether its weight is
    read past it.
    """

    called = False
    read = False
    inside = False

    def forward(self, input: Tensor) -> Tensor:
        self.called = self.inside = True
        try:
            y: Tensor = super().forward(input)
            return y
        finally:
            self.inside = False

    def __getattribute__(self, name: str) -> Any:
        if name == "weight" and not self.inside:
            self.read = True
        return super().__getattribute__(name)


class _WatchedPacked(_Watched, PackedLinear):
    pass


class _WatchedSparse(_Watched, SparseLinear):
    pass


def _unused(
    model: nn.Module,
    names: Iterable[str],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    training: bool,
) -> dict[str, str]:
    """Return new layers that a run of the model goes past, and how."""
    layers: dict[str, _Watched] = {}
    try:
        for name in names:
            module = model.get_submodule(name)
            module.__class__ = _WatchedSparse if training else _WatchedPacked
            layers[name] = cast(_Watched, module)
        with undisturbed(model, training):
            model(*args, **kwargs)
        reasons = {}
        for name, watched in layers.items():
            if watched.read:
                reasons[name] = (
                    "the model reads its weight past it, as nn.TransformerEncoderLayer's fast path "
                    "does (torch.backends.mha.set_fastpath_enabled(False) turns that off)"
                )
            elif not watched.called:
                reasons[name] = "the model calls it by a reference of its own"
        return reasons
    finally:
        for module in map(model.get_submodule, layers):
            module.__class__ = SparseLinear if training else PackedLinear
            for note in ("called", "read", "inside"):
                module.__dict__.pop(note, None)
