"""The order in which the layers of a model are pruned."""

from __future__ import annotations

from collections.abc import Sequence


class Order:
    """Layers by the first item's way through the model, by their owners' names.

    Parameters
    ----------
    first : sequence of str
        Those that the first item comes to, in its order.
    registered : sequence of str
        All, as they are in the model.
    """

    def __init__(self, first: Sequence[str], registered: Sequence[str]) -> None:
        self._first, self._registered = first, registered

    def place(self, owner: str) -> tuple[float, int]:
        """Return what layers are sorted by. One off the first item's way comes before those on it,
        which it may lead to; but behind earlier members of its list (of experts), which other items
        may come from.
        """
        registered = self._registered.index(owner)
        if owner in self._first:
            return self._first.index(owner), registered
        names = owner.split(".")
        for at in reversed(range(len(names))):
            before = [
                place
                for place, other in enumerate(other.split(".") for other in self._first)
                if other[:at] == names[:at] and _is_earlier(other[at : at + 1], names[at])
            ]
            if before:
                return max(before) + 0.5, registered
        return -1, registered


def _is_earlier(names: Sequence[str], than: str) -> bool:
    """Return whether a name is that of an earlier member of a list."""
    return than.isdigit() and any(name.isdigit() and int(name) < int(than) for name in names)
