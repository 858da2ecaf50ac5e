"""Calibration inputs: an iterable of items that a model is called with, run through it as often as
needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from nmsolve.errors import InputError
from nmsolve.torch.calibration.token_lists import remedy_for_text, with_tensors
from nmsolve.torch.device.failures import explain
from nmsolve.torch.progress import progress_bar
from nmsolve.torch.running import device_of

#: An input of a model: a tensor, or a list or tuple of arguments, or a mapping of keyword
#: arguments.
Item = Any

#: For errors when memory runs out.
LESS_MEMORY = (
    "use fewer or shorter items, have their activations on disk (offload= of adaprune_ and "
    "sparsegpt_), or leave layers out (exclude=)"
)


class Calibration:
    """The items of a calibration iterable, as often as they are asked for.

    Iterators, which can be run through once only, are kept as a list unless they will be run
    through `once`; everything else is iterated again each time.

    Attributes
    ----------
    count : int or None
        Number of items; None until they have been run through.
    """

    def __init__(self, items: Iterable[Item], once: bool = False) -> None:
        if isinstance(items, str):
            raise InputError(
                "calibration is an iterable of model inputs, got text: pass "
                "[tokenizer(text, return_tensors='pt')]"
            )
        if isinstance(items, Tensor | Mapping):
            what = (
                f"a tensor of shape {tuple(items.shape)}"
                if isinstance(items, Tensor)
                else f"a {type(items).__name__}"
            )
            raise InputError(
                f"calibration is an iterable of model inputs, and {what} is one of them: pass "
                "[inputs]"
            )
        if not (hasattr(items, "__iter__") or hasattr(items, "__getitem__")):
            raise InputError(
                "calibration must be an iterable of model inputs (a list of batches, a "
                f"DataLoader), got {items!r}"
            )
        self._items: Iterable[Item] = (
            list(items) if hasattr(items, "__next__") and not once else items
        )
        self.count: int | None = None

    def __iter__(self) -> Iterator[Item]:
        count = 0
        for item in self._items if hasattr(self._items, "__iter__") else _by_index(self._items):
            count += 1
            yield item
        if not count:
            raise InputError(
                "calibration gave no inputs"
                + ("" if self.count is None else f", though it gave {self.count} before")
                + ": it is empty or exhausted (a generator that was run through already?); pass a "
                "list of batches or a DataLoader"
            )
        if self.count is not None and count != self.count:
            raise InputError(
                f"calibration gave {self.count} inputs before and {count} now: it has to give the "
                "same each time"
            )
        self.count = count


def _by_index(items: Any) -> Iterator[Item]:
    """The items of a dataset that only has indices and a length, which iteration would not stop
    at.
    """
    return (
        (items[index] for index in range(len(items))) if hasattr(items, "__len__") else iter(items)
    )


def run(model: nn.Module, item: Item, index: int | None = None) -> Any:
    """Return model(item): tensors are the one argument, lists and tuples positional, mappings
    keyword arguments, of which token ids that are lists become tensors.

    The model gets copies: some change their inputs in place.

    Parameters
    ----------
    model : nn.Module
    item : Item
    index : int, optional
        Of the item, for messages; None for example inputs.

    Raises
    ------
    InputError
        If the model cannot be called with it, or fails.
    SolverError
        If there is not enough memory for it.
    """
    item = as_called(model, item, index)
    try:
        torch.clear_autocast_cache()  # under the caller's autocast it holds weights as they were
        if isinstance(item, Mapping):
            return model(**{key: _copied(value) for key, value in item.items()})
        if isinstance(item, list | tuple):
            return model(*map(_copied, item))
        return model(_copied(item))
    except InputError:
        raise
    except Exception as error:
        what = f"{_name(index)}, {_called(model, item)}"
        raise explain(error, what, device_of(model), LESS_MEMORY) or InputError(
            f"{what}, failed: {type(error).__name__}: {error}{_remedy(item)}"
        ) from error


def as_called(model: nn.Module, item: Item, index: int | None = None) -> Item:
    """Return the item that a model is called with: token ids that are lists are tensors there.

    Raises
    ------
    InputError
        If such lists fit no tensor, naming the item (None: example inputs).
    """
    return with_tensors(item, _name(index), device_of(model))


def _name(index: int | None) -> str:
    return "the example inputs" if index is None else f"calibration item {index}"


def run_all(
    calibration: Calibration, each: Callable[[Item, int], None], about: str, progress: bool | None
) -> int:
    """Call each(item, index) for all items, under a progress bar (None: on a terminal only); return
    how many there were.
    """
    index = -1
    bar = progress_bar(calibration, about=about, total=calibration.count, progress=progress)
    for index, item in enumerate(bar):
        each(item, index)
    return index + 1


def _copied(value: Any) -> Any:
    """The same with its tensors copied, in whatever lists and mappings they are."""
    return tree_map_only(Tensor, lambda tensor: tensor.clone(), value)


def _called(model: nn.Module, item: Item) -> str:
    name = type(model).__name__
    if isinstance(item, Mapping):
        shown = ", ".join(f"{key}={_shown(value)}" for key, value in item.items())
        return f"called as {name}({shown})"
    if isinstance(item, list | tuple):
        return f"called as {name}({', '.join(map(_shown, item))})"
    return f"called as {name}({_shown(item)})"


def _shown(value: object) -> str:
    if isinstance(value, Tensor) and value.is_nested:
        return "nested tensor"
    if isinstance(value, Tensor):
        return (
            f"{str(value.dtype).removeprefix('torch.')} tensor {tuple(value.shape)} on "
            f"{value.device}"
        )
    return repr(value) if isinstance(value, int | float | bool | None) else type(value).__name__


def _remedy(item: Item) -> str:
    if about_text := remedy_for_text(item):
        return about_text
    if isinstance(item, list | tuple) and len(item) > 1:
        return (
            "; if items hold inputs and targets, pass the inputs alone: [inputs for inputs, "
            "targets in loader]"
        )
    return ""


def check_finite(tensor: Tensor, subject: str, index: int) -> None:
    """Raise InputError if a tensor that was computed from a calibration item is not finite.

    `subject` names it in the message: "the input of layer fc".
    """
    if not tensor.numel() or all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor)):
        return
    finite = torch.isfinite(tensor)
    if not bool(finite.all()):
        others = int((~finite).sum()) - 1
        more = f" (and {others} more are not finite)" if others else ""
        raise InputError(
            f"{subject} is {tensor[~finite][0].item()} for calibration item {index}{more}: look "
            "for it in the inputs, or in the layers before; attention over nothing but padding "
            "gives NaN"
        )
