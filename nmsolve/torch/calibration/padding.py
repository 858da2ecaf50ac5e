"""Rows of layers' inputs that count, so that padding is kept out of sums over a calibration.

An item's `attention_mask` tells which positions are no padding, or a function of the caller's. A
layer's input has these rows where its leading axes are those of the mask, or all of them in one,
row by row. Of any other input (pooled, of another sequence, tokens that an expert got, images)
nothing is known: all its rows count, and the layer is noted.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nmsolve.errors import InputError
from nmsolve.torch.calibration.inputs import Item, as_called

#: From a calibration item, 1 or True where a position counts, in the shape that the inputs of
#: layers have without their last axis; None: all count.
Weights = Callable[[Any], Tensor | None]


class Padding:
    """Padding in the items of a calibration, and layers of which nothing is known about it.

    Attributes
    ----------
    unknown : dict of str to two tuples of int
        Paths of layers of which padding cannot be told from other rows, so that all count, with the
        shape of the first such input, without its last axis, and that of its item's mask.

    Parameters
    ----------
    model : nn.Module
    weights : function from an item to a tensor, optional
        See `Weights`. None: items' `attention_mask`, of shape (batch, positions), by keyword or by
        the name that the model's forward gives an argument; without one all count.
    """

    def __init__(self, model: nn.Module, weights: Weights | None = None) -> None:
        if weights is not None and not callable(weights):
            raise InputError(
                "weights is a function from a calibration item to a tensor, 1 where a position "
                f"counts, such as lambda item: item['mask']; got a {type(weights).__name__}"
            )
        self._model, self._weights = model, weights
        self.unknown: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def of(self, item: Item, index: int) -> Counted:
        """Return which positions of an item count.

        Raises
        ------
        InputError
            If its mask holds other values than 0 and 1, or `weights` fails, naming the item.
        """
        if self._weights is not None:
            given = _given(self._weights, item, index)
            masks = [] if given is None else [_as_bool(given, "weights", index)]
            return Counted(masks, self.unknown, placed=True)
        found = _masks_of(self._model, _arguments(self._model, item, index))
        masks = [_as_bool(mask, "attention_mask", index) for mask in found]
        return Counted(masks, self.unknown, placed=False)

    @property
    def remark(self) -> str:
        """The layers whose padding counts, as a sentence; empty if there are none."""
        if not self.unknown:
            return ""
        paths = list(self.unknown)
        more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
        named = f"{', '.join(paths[:3])}{more}"
        shape, given = self.unknown[paths[0]]
        rows = f"the inputs of {paths[0]} are {shape} rows"
        if self._weights is not None:
            return (
                f"all rows count of the inputs of {named}: {rows}, and weights= gave a tensor of "
                f"shape {given}; let it give one of the shape of the rows"
            )
        return (
            f"all rows count of the inputs of {named}, padding too if they have any: items' masks "
            f"do not tell which it is ({rows}); give items without padding, or a function of the "
            "item as weights="
        )

    def warn(self, stacklevel: int) -> None:
        """Warn of layers whose padding counts."""
        if self.unknown:
            warnings.warn(self.remark, stacklevel=stacklevel + 1)


class Counted:
    """Positions of an item that count.

    Parameters
    ----------
    masks : sequence of bool Tensor
        Of each sequence of the item.
    unknown : dict
        Of `Padding`; layers are added to it.
    placed : bool
        The masks' axes are known to lie as layers' inputs have them.
    """

    def __init__(
        self,
        masks: Sequence[Tensor],
        unknown: dict[str, tuple[tuple[int, ...], tuple[int, ...]]],
        *,
        placed: bool,
    ) -> None:
        self._masks = [] if all(bool(mask.all()) for mask in masks) else masks
        self._rows = [mask.flatten().nonzero().squeeze(1) for mask in self._masks]
        self._unknown, self._placed = unknown, placed

    def rows(self, path: str, inputs: Tensor) -> Tensor | None:
        """Return which rows of a layer's inputs (…, cols), with the leading axes in one, count:
        their indices, in order; None: all.
        """
        if not self._masks or not inputs.numel():
            return None
        shape = inputs.shape[:-1]
        # Experts that once got a selection of tokens may get as many by chance.
        flat = inputs.dim() == 2 and path not in self._unknown
        fits = [
            (mask, rows)
            for mask, rows in zip(self._masks, self._rows, strict=True)
            if mask.shape == shape or (flat and mask.numel() == len(inputs))
        ]
        if fits and all(self._placed or _tells(mask) for mask, _ in fits):
            mask, rows = fits[0]
            if all(torch.equal(other, mask) for other, _ in fits[1:]):
                return rows.to(inputs.device)
        if not self._pooled(shape):
            self.all_count(path, shape)
        return None

    def _pooled(self, shape: Sequence[int]) -> bool:
        """Return whether there is a row a sequence, none of which begins with padding: what models
        take for a whole sequence is its first token, or found by the mask.
        """
        mask = self._masks[0]
        return mask.dim() == 2 and math.prod(shape) == len(mask) and bool(mask[:, 0].all())

    def all_count(self, path: str, shape: Sequence[int]) -> None:
        """Note that all rows of a layer's input of this shape count, whatever the masks are."""
        if self._masks:
            self._unknown.setdefault(path, (tuple(shape), tuple(self._masks[0].shape)))


def _tells(mask: Tensor) -> bool:
    """Return whether a mask (batch, positions) fits inputs one way alone: with as many positions as
    sequences a layer may have either axis first.
    """
    return mask.shape[0] != mask.shape[1] or torch.equal(mask, mask.T)


def _given(weights: Weights, item: Item, index: int) -> Tensor | None:
    """The mask that the caller's function gives for an item."""
    try:
        return weights(item)
    except Exception as error:
        raise InputError(
            f"weights failed for calibration item {index}: {type(error).__name__}: {error}"
        ) from error


def _as_bool(mask: object, about: str, index: int) -> Tensor:
    """True where a position counts."""
    if not isinstance(mask, Tensor):
        raise InputError(
            f"weights gave a {type(mask).__name__} for calibration item {index}: it has to be a "
            "tensor, 1 or True where a position counts, or None where all do"
        )
    other = mask[(mask != 0) & (mask != 1)]
    if len(other):
        raise InputError(
            f"{about} of calibration item {index} has {other[0].item()} in it: a position counts "
            "(1) or does not (0); pass a function of the item that gives these as weights="
        )
    return mask.bool()


def _arguments(model: nn.Module, item: Item, index: int) -> Mapping[str, Any]:
    """The arguments that an item gives the model, by name as far as they have names."""
    if isinstance(item, Mapping):
        named: Mapping[str, Any] = as_called(model, item, index)
        return named
    if not isinstance(item, list | tuple):
        return {}
    forward = getattr(model, "_orig_mod", model).forward  # of compiled models
    try:
        return inspect.signature(forward).bind(*item).arguments
    except (TypeError, ValueError):  # running the model will tell
        return {}


def _masks_of(model: nn.Module, given: Mapping[str, Any]) -> list[Tensor]:
    """The masks of an item, (batch, positions): of two sequences where an encoder and a decoder
    have one each, so that neither is taken for the other's.
    """
    own, decoded = (_mask(given, prefix) for prefix in ("", "decoder_"))
    if own is None and decoded is None:
        return []
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False) or any(
        key.startswith("decoder_") for key in given
    ):
        first = _whole(given, ("input_ids", "inputs_embeds"))
        own = first if own is None else own
        second = _whole(given, ("decoder_input_ids", "decoder_inputs_embeds", "labels"))
        decoded = decoded if decoded is not None else second if second is not None else first
    return [mask for mask in (own, decoded) if mask is not None]


def _mask(given: Mapping[str, Any], prefix: str) -> Tensor | None:
    """The attention mask that is for the positions of another input: its axes are that one's first
    two. A mask (positions, positions) is none.
    """
    mask = given.get(f"{prefix}attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return None
    others = [x for key, x in given.items() if isinstance(x, Tensor) and "mask" not in key]
    square = mask.shape[0] == mask.shape[1]
    known = any(x.shape[:2] == mask.shape and (x.dim() == 2 or not square) for x in others)
    return mask if known else None


def _whole(given: Mapping[str, Any], names: Iterable[str]) -> Tensor | None:
    """A mask of all positions of the first of some inputs that is there."""
    for name in names:
        x = given.get(name)
        if isinstance(x, Tensor) and x.dim() > 1:
            return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    return None
