"""What has one entry a layer: `Entries`, an immutable sequence, and entries looked up by a layer's
path.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar, overload

Entry = TypeVar("Entry", covariant=True)
Found = TypeVar("Found")


def entry_of(entries: Mapping[str, Found], path: str) -> Found:
    """What there is for a layer; KeyError with the layers that there are."""
    if path not in entries:
        raise KeyError(f"no planned layer {path!r}; there are {', '.join(entries)}")
    return entries[path]


class Entries(Sequence[Entry]):
    """A sequence of `layers`, equal to one of its kind that holds the same."""

    def __init__(self, layers: Iterable[Entry]) -> None:
        self.layers = tuple(layers)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Entry, ...]: ...
    def __getitem__(self, index: int | slice) -> Entry | tuple[Entry, ...]:
        return self.layers[index]

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.layers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self.layers == other.layers

    def __hash__(self) -> int:
        return hash(self.layers)
