"""Items as tokenizers give them without `return_tensors`: lists of ids, which models do not take.

They are made tensors where that is without doubt, and refused with a remedy where it is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nmsolve.errors import InputError


def with_tensors(item: Any, name: str, device: torch.device) -> Any:
    """Return an item with `input_ids`, and lists beside it, as (texts, positions) tensors; any
    other item as it is.

    Parameters
    ----------
    item : Item
    name : str
        Of the item, for messages.
    device : torch.device
        Where the model takes its inputs.

    Raises
    ------
    InputError
        If texts have different lengths, or a list beside the ids is not as long.
    """
    ids = _rows(item.get("input_ids")) if isinstance(item, Mapping) else None
    if ids is None:
        return item
    lengths = [len(row) for row in ids]
    if len(set(lengths)) > 1:
        raise InputError(
            f"the input_ids of {name} have different lengths, {min(lengths)} to {max(lengths)}: "
            "pad them, tokenizer(…, return_tensors='pt', padding=True)"
        )
    given = dict(item)
    nested = isinstance(given["input_ids"][0], list)
    for key, value in item.items():
        rows = _rows(value)
        if rows is None:
            continue
        if [len(row) for row in rows] != lengths or isinstance(value[0], list) != nested:
            raise InputError(
                f"the {key} of {name} are a list of shape {_extent(value)} beside input_ids of "
                f"{_extent(item['input_ids'])}: pass tensors, tokenizer(…, return_tensors='pt')"
            )
        given[key] = torch.tensor(rows, device=device)
    return given


def remedy_for_text(item: Any) -> str:
    """Return what a message adds if a model failed on text, or on lists of token ids; an empty text
    for other items.
    """
    values = list(item.values()) if isinstance(item, Mapping) else item
    values = list(values) if isinstance(values, list | tuple) else [values]
    if any(isinstance(value, Tensor) for value in values):
        return ""
    if values and all(isinstance(value, str) or _texts(value) for value in values):
        return "; that is text: tokenise it, tokenizer(text, return_tensors='pt')"
    if _rows(values) is not None or any(_rows(value) is not None for value in values):
        return (
            "; token ids have to be a tensor: tokenizer(text, return_tensors='pt'), or "
            "torch.tensor([ids])"
        )
    return ""


def _texts(value: object) -> bool:
    """Return whether a value is a list of texts."""
    return isinstance(value, list) and bool(value) and all(isinstance(x, str) for x in value)


def _rows(value: object) -> list[list[int]] | None:
    """The rows of a list of integers, which is one, or of a list of such; None for anything
    else.
    """
    if not isinstance(value, list) or not value:
        return None
    rows = value if isinstance(value[0], list) else [value]
    known = all(isinstance(row, list) and all(isinstance(x, int) for x in row) for row in rows)
    return rows if known else None


def _extent(value: list[Any]) -> str:
    """The shape of a list of integers, or of a list of such."""
    if not isinstance(value[0], list):
        return f"({len(value)},)"
    lengths = sorted({len(row) for row in value})
    return (
        f"({len(value)}, {lengths[0] if len(lengths) == 1 else f'{lengths[0]} to {lengths[-1]}'})"
    )
