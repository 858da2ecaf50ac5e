"""Tensors whose entries have memory of their own, and those that have some in common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

#: A tensor with its name.
Named = tuple[str, Tensor]


def is_apart(tensor: Tensor) -> bool:
    """Return whether every entry of a strided tensor has memory of its own, as one that was
    expanded has not.
    """
    end = 0  # of what the axes so far span
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride <= end:
            return False
        end += stride * (size - 1)
    return True


def overlapping(tensors: Iterable[Named]) -> Iterator[tuple[Named, Named]]:
    """Yield two of some tensors that have memory in common, for each that begins within another;
    those without values have none.
    """
    spans = {}
    for name, tensor in tensors:
        if is_lazy(tensor) or tensor.layout != torch.strided or tensor.is_meta:
            continue
        if tensor.numel():
            lengths = zip(tensor.shape, tensor.stride(), strict=True)
            last = sum((size - 1) * stride for size, stride in lengths) + 1
            start = tensor.data_ptr()
            place = (str(tensor.device), start, start + last * tensor.element_size())
            spans[id(tensor)] = (place, (name, tensor))
    before: tuple[tuple[str, int, int], Named] | None = None  # of those so far, what ends last
    for place, named in sorted(spans.values(), key=lambda span: span[0][:2]):
        device, start, end = place
        if before is not None and before[0][0] == device:
            if start < before[0][2]:
                yield before[1], named
            if end <= before[0][2]:
                continue
        before = place, named
