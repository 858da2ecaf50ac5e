"""Weights chosen by name: a glob names a module, or a weight, and everything inside it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from nmsolve.errors import InputError
from nmsolve.pattern import Pattern

#: One pattern for all weights, or globs of their names and a pattern each, of which the first that
#: matches decides; None: dense.
Patterns = Pattern | str | Mapping[str, Pattern | str | None]


def matches(path: str, glob: str) -> bool:
    """Whether a glob names a path, or a module or folder that it lies in.

    Examples
    --------
    >>> matches("head.0.weight", "head"), matches("header.weight", "head")
    (True, False)
    >>> matches("header.weight", "head*")
    True
    >>> matches("unet/conv_in.weight", "unet"), matches("unet/conv_in.weight", "unet/conv_in")
    (True, True)
    """
    prefixes = [path[: end.start()] for end in re.finditer(r"[./]|$", path)]
    return glob in prefixes or any(
        fnmatchcase(prefix, glob) for prefix in prefixes
    )  # names may hold brackets


def to_globs(globs: str | Iterable[str], name: str) -> tuple[str, ...]:
    """One glob or several as a tuple; `name` is the argument's, for the message of the
    InputError.
    """
    try:
        given = (globs,) if isinstance(globs, str) else tuple(globs)
    except TypeError:
        given = (globs,)  # type: ignore[assignment]
    for glob in given:
        if not isinstance(glob, str):
            raise InputError(
                f"{name} takes module paths or globs of them, such as 'encoder.*', got {glob!r}"
            )
    return given


def to_patterns(pattern: Patterns) -> dict[str, Pattern | None]:
    """Globs and the pattern of each, in the order in which they are asked."""
    if isinstance(pattern, Mapping):
        to_globs(pattern, "pattern")
        return {glob: None if p is None else Pattern.of(p) for glob, p in pattern.items()}
    return {"*": Pattern.of(pattern)}


def check_used(globs: Iterable[str], paths: Sequence[str], argument: str, whose: str) -> None:
    """Raise InputError for a glob that matches none of the weights `whose` paths these are: a
    misspelt one must not pass.
    """
    for glob in globs:
        if not any(matches(path, glob) for path in paths):
            inside = [path for path in paths if f".{glob}." in f".{path.replace('/', '.')}."]
            if inside:
                before = "/" if f"/{glob}" in inside[0] else "."
                raise InputError(
                    f"{argument}={glob!r} matches no layer of the {whose} from its beginning; "
                    f"for {inside[0]} write '*{before}{glob}'"
                )
            close = difflib.get_close_matches(glob, paths, 3, 0.4) or paths[:3]
            known = (
                f"its weights are {', '.join(close)}, …"
                if close
                else "it has no weight with two axes or more"
            )
            raise InputError(f"{argument}={glob!r} matches no layer of the {whose}; {known}")


def unchosen(path: str, included: Sequence[str] | None, excluded: Sequence[str]) -> str | None:
    """Why globs leave a weight out, or None."""
    if any(matches(path, glob) for glob in excluded):
        return "excluded"
    if included is not None and not any(matches(path, glob) for glob in included):
        return "not included"
    return None
