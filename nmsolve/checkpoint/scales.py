"""Scales beside a float8 weight, which tell whether its stored numbers have the mask of the weights
that they stand for.

A weight is w = q × s, with s one number, one per row, one per block of columns, …: a tensor of its
own. The best mask of q is that of w where s is constant in every group (of a transposable pattern:
in every block), which its shape tells.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property

from nmsolve.checkpoint.stored import Stored
from nmsolve.elements import SMALL_FLOATS, kind_of
from nmsolve.pattern import Pattern

#: What may stand beside a weight under its name and does not change it.
_HARMLESS = re.compile(r"[_.:](bias|shape)$")
#: What may be scales, wherever it stands.
_LIKE_SCALES = re.compile(r"scale|amax|absmax", re.IGNORECASE)


class Companions:
    """Tensors of a checkpoint that a weight is computed with: what is named after it, and scales
    named after no tensor.

    Of those that are not the weight's but its input's, say, there is one for all, which changes
    nothing.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = shapes
        self._named: dict[str, list[str]] = defaultdict(list)
        self._scales: dict[str, list[str]] = defaultdict(list)
        self._beside: dict[str, list[str]] = defaultdict(list)
        for name in shapes:
            module, _, last = name.rpartition(".")
            start = len(name) - len(last)
            stems = [name[: start + match.start()] for match in re.finditer("[_:]", last)]
            owners = [
                stem
                for stem in (module, *stems, *(f"{stem}.weight" for stem in stems))
                if stem in shapes
            ]
            self._beside[module].append(name)
            for owner in owners:
                self._named[owner].append(name)
            if not owners and _is_scale(last):
                self._scales[module].append(name)

    @cached_property
    def _loose(self) -> list[str]:
        """Scales that stand by themselves, as no other tensor of their module is there: whose they
        are is not known.
        """
        alone = [
            names[0]
            for names in self._beside.values()
            if len(names) == 1 and _LIKE_SCALES.search(names[0])
        ]
        owned = {name for names in self._named.values() for name in names}
        return [name for name in alone if name not in owned and math.prod(self._shapes[name]) > 1]

    def reason(self, tensor: Stored, axis: int, other: int, pattern: Pattern) -> str | None:
        """Return why a weight stays dense whose groups lie along `axis`, and whose blocks span
        `other` too; None if it need not.
        """
        if tensor.element is None or kind_of(tensor.element) not in SMALL_FLOATS:
            return None
        module, _, last = tensor.name.rpartition(".")
        beside = (
            self._beside[module] if last == "weight" and module else []
        )  # the weight of a module: whatever it has is for it
        named = [
            name
            for name in (*self._named[tensor.name], *beside)
            if not _HARMLESS.search(f".{name}")
        ]
        mine = list(dict.fromkeys((*named, *self._scales[module])))
        if mine in ([], [tensor.name]) and self._loose:
            return f"whether {self._loose[0]} scales it is not known; dequantise it first"
        for name in mine:
            shape = self._shapes[name]
            if name == tensor.name:
                continue
            if not _is_scale(name.rpartition(".")[2]):
                return f"what {name} does to it is not known; dequantise it first"
            widths = _widths(shape, tensor.shape)
            if widths is None:
                return (
                    f"how its scales {name} {shape} lie along its axes is not known; dequantise "
                    "it first"
                )
            unit, axes = ("blocks", (axis, other)) if pattern.transposable else ("groups", (axis,))
            if any(widths[a] % pattern.m and widths[a] < tensor.shape[a] for a in axes):
                differ = f"its scales {name} {shape} differ within {unit} of {pattern.m}"
                return f"{differ}, where its numbers do not compare; dequantise it first"
        return None


def _is_scale(last: str) -> bool:
    return "scale" in last.lower()


def _widths(scales: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Numbers that divide the count of entries that share a scale, along each axis of a weight;
    None if the shapes do not tell.

    Blocks are of equal width, or as wide as a power of two, the last one as what is left. Where
    they may be either, both count.
    """
    if math.prod(scales) == 1:
        return shape
    if len(scales) == 1 and len(shape) == 2 and shape[0] != shape[1] and scales[0] in shape:
        scales = (scales[0], 1) if scales[0] == shape[0] else (1, scales[0])
    if len(scales) != len(shape):
        return None
    widths = []
    for size, count in zip(shape, scales, strict=True):
        powers = [2**k for k in range(size.bit_length()) if count > 1 and -(-size // 2**k) == count]
        even = [size // count] if count and size % count == 0 else []
        if not powers and not even:
            return None
        widths.append(math.gcd(*powers, *even))
    return tuple(widths)
