"""Modules that have moved: what was pickled under their former names, by torch.save of a whole
model, can be loaded for one release.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from types import ModuleType

#: What pickles name, and where that is now.
_MOVED = {
    "nmsolve.torch.training.acceleration": "nmsolve.torch.training.packed_products",
    "nmsolve.torch.training.candidates": "nmsolve.torch.weights.candidates",
    "nmsolve.torch.training.checkpoint": "nmsolve.torch.training.state_dict",
    "nmsolve.torch.training.masked_weight": "nmsolve.torch.weights.masked_weight",
    "nmsolve.torch.training.methods": "nmsolve.torch.training.solved_methods",
    "nmsolve.torch.training.parametrization": "nmsolve.torch.weights.masked",
    "nmsolve.torch.training.written": "nmsolve.torch.weights.written",
}


class _Former(ModuleType):
    """A module under its former name, which has whatever the module has that took its place."""

    def __init__(self, name: str, place: str) -> None:
        super().__init__(name, f"Moved to {place}.")
        self._place = place

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # asked of every module that is loaded, by inspect and others
            raise AttributeError(name)
        found = getattr(import_module(self._place), name)
        warnings.warn(
            f"{self.__name__}.{name} is now {self._place}.{name}, and the next release does not "
            "know the old name: save again what was pickled with it",
            DeprecationWarning,
            stacklevel=2,
        )
        return found


def register() -> None:
    """Make the former names importable."""
    for name, place in _MOVED.items():
        sys.modules.setdefault(name, _Former(name, place))
