"""Parameters that have a new name: the old one is accepted for one release, with a warning."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from nmsolve.errors import InputError

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def renamed(*, old: str, new: str) -> Callable[[Decorated], Decorated]:
    """Decorate a function or a dataclass, one of whose keyword parameters was renamed.

    Parameters
    ----------
    old, new : str
        Names of the parameter; the decorated function or dataclass has the new one. Of a dataclass,
        the attribute can be read under the old name too, and instances that were pickled with it
        can be loaded.

    Returns
    -------
    Callable
        The decorator. What it returns gives a DeprecationWarning that names the new parameter where
        the old one is used, and raises InputError where both are given.

    Examples
    --------
    >>> @renamed(old="colour", new="color")
    ... def paint(*, color="red"):
    ...     return color
    >>> paint(color="blue")
    'blue'
    """

    def decorate(decorated: Decorated) -> Decorated:
        if not inspect.isclass(decorated):
            accepting: Any = _accepting(decorated, decorated.__name__, old, new)
            return accepting  # type: ignore[no-any-return]
        name = decorated.__name__

        def read(self: Any) -> Any:
            warn_renamed(f"{type(self).__name__}.{old}", new)
            return getattr(self, new)

        def set_state(self: Any, state: dict[str, Any]) -> None:
            self.__dict__.update({new if key == old else key: state[key] for key in state})

        read.__doc__ = f"The former name of `{new}`."
        for attribute, value in (
            ("__init__", _accepting(decorated.__init__, name, old, new)),
            (old, property(read)),
            ("__setstate__", set_state),
        ):
            setattr(decorated, attribute, value)
        return decorated

    return decorate


def _accepting(function: Callable[..., Any], name: str, old: str, new: str) -> Callable[..., Any]:
    """The function, which takes the old keyword as the new one."""

    @functools.wraps(function)
    def accepting(*args: Any, **kwargs: Any) -> Any:
        if old in kwargs:
            if new in kwargs:
                raise InputError(
                    f"{name} was given {new} and {old}, which is its former name: give {new} alone"
                )
            warn_renamed(f"{name}({old}=…)", f"{new}=…")
            kwargs[new] = kwargs.pop(old)
        return function(*args, **kwargs)

    return accepting


def warn_renamed(old: str, new: str, *, depth: int = 0) -> None:
    """Give the warning, for the caller of the function that calls this, or `depth` calls above."""
    warnings.warn(
        f"{old} is renamed to {new}; the old name goes with the next release",
        DeprecationWarning,
        stacklevel=3 + depth,
    )
