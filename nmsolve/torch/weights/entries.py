"""`Entries`: an immutable sequence with one entry per layer, looked up by index or by path."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar, overload


class HasPath(Protocol):
    """An entry about a weight.

    Attributes
    ----------
    path : str
        The weight's path in the model.
    """

    @property
    def path(self) -> str: ...


Entry = TypeVar("Entry", bound=HasPath, covariant=True)
Found = TypeVar("Found")


def entry_of(entries: Mapping[str, Found], path: str) -> Found:
    """Return what there is for a layer; raise KeyError with the layers that there are."""
    if path not in entries:
        raise KeyError(f"no planned layer {path!r}; there are {', '.join(entries)}")
    return entries[path]


class Entries(Sequence[Entry]):
    """A sequence with one entry per layer, equal to one of its kind that holds the same.

    Attributes
    ----------
    layers : tuple
        The entries; `entries[0]` is the first of them, `entries["encoder.0"]` that of a path.
    """

    def __init__(self, layers: Iterable[Entry]) -> None:
        self.layers = tuple(layers)

    @overload
    def __getitem__(self, index: int | str) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Entry, ...]: ...
    def __getitem__(self, index: int | str | slice) -> Entry | tuple[Entry, ...]:
        if isinstance(index, str):
            return entry_of({layer.path: layer for layer in self.layers}, index)
        return self.layers[index]

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.layers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self.layers == other.layers

    def __hash__(self) -> int:
        return hash(self.layers)
