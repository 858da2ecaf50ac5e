"""Traces of forwards in their modules: attributes that they set, containers and buffers that they
change.

A forward that finds in its modules what another one has left there computes something else; while
many are under way, a model has to be without traces of any.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor, nn

#: What is changed in place, and compared by its members.
_CONTAINERS = (list, dict, set, deque)
#: Compared by value.
_PLAIN = (int, float, complex, str, bytes, torch.device)


class Traces:
    """Attributes and buffers of a model's modules, to be compared with later ones.

    Parameters
    ----------
    model : nn.Module
    """

    def __init__(self, model: nn.Module) -> None:
        self._before = [
            (name, module, {key: (value, _copy(value)) for key, value in _held(module).items()})
            for name, module in model.named_modules()
            if not isinstance(module, torch.jit.ScriptModule)  # these have attributes of their own
        ]

    def first(self) -> str | None:
        """Return the first of what is not as it was, as a path; None where all is."""
        for name, module, before in self._before:
            now = _held(module)
            for key in {**before, **now}:
                if key not in before or key not in now or not _as_it_was(now[key], *before[key]):
                    return f"{name}.{key}".strip(".")
        return None

    def remove(self) -> None:
        """Put attributes and containers back as they were; not buffers, nor what is in tensors."""
        for _, module, before in self._before:
            own = vars(module)
            for key in [key for key in own if key not in _OF_TORCH and key not in before]:
                del own[key]
            for key, (value, then) in before.items():
                if isinstance(value, Tensor) and key not in own:
                    continue  # a buffer
                own[key] = value
                if isinstance(value, _CONTAINERS) and not _as_it_was(value, value, then):
                    value.clear()
                    value.update(then) if isinstance(value, dict | set) else value.extend(then)


def _held(module: nn.Module) -> dict[str, Any]:
    """Attributes and buffers of a module."""
    own = {key: value for key, value in vars(module).items() if key not in _OF_TORCH}
    return {**own, **module._buffers}


def _copy(value: Any) -> Any:
    """Something that tells later if a value was changed in place."""
    if isinstance(value, dict | set):
        return dict(value) if isinstance(value, dict) else set(value)
    if isinstance(value, list | deque):
        return list(value)
    return _version(value) if isinstance(value, Tensor) else None


def _as_it_was(now: Any, before: Any, then: Any) -> bool:
    """Compare a value with the one from before, of which `_copy` was `then`."""
    if now is not before:
        return _equal(now, before)
    if isinstance(now, Tensor):
        return bool(_version(now) == then)
    if isinstance(now, _CONTAINERS):
        members, others = _members(now), _members(then)
        return len(members) == len(others) and all(map(_equal, members, others))
    return True


def _equal(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return isinstance(a, _PLAIN) and bool(a == b)


def _members(container: Any) -> list[Any]:
    if isinstance(container, dict):
        return [x for pair in container.items() for x in pair]
    return list(container)


def _version(tensor: Tensor) -> int:
    """Of inference tensors none is known."""
    return -1 if tensor.is_inference() else tensor._version


#: What torch keeps in a module.
_OF_TORCH = frozenset(vars(nn.Module()))
