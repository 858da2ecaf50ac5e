"""Weights chosen by name: a glob names a module, or a weight, and everything inside it.

`Selection` is what `nmsolve.torch.plan` and the planner of checkpoints ask: which pattern the
user's globs give to a path, or why none.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Self

from nmsolve.errors import InputError
from nmsolve.geometry import PADDINGS, check_padding
from nmsolve.pattern import Pattern

#: One pattern for all weights, or globs of their names and a pattern each, of which the first that
#: matches decides; None: dense.
Patterns = Pattern | str | Mapping[str, Pattern | str | None]
#: What becomes of a weight whose shape its pattern does not divide: left out, or as in `solve`.
PLAN_PADDINGS = ("skip", *PADDINGS)
#: Names of the matrices that PEFT's adapters add to a weight.
ADAPTER = re.compile(r"(^|\.)(lora|vera|hada|lokr|oft|boft|ia3)_")


def matches(path: str, glob: str) -> bool:
    """Return whether a glob names a path, or a module or folder that it lies in.

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
    """Return one glob or several as a tuple; `name` is the argument's, for the message of the
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
    """Return globs and the pattern of each, in the order in which they are asked."""
    if isinstance(pattern, Mapping):
        to_globs(pattern, "pattern")
        return {glob: None if p is None else Pattern.of(p) for glob, p in pattern.items()}
    return {"*": Pattern.of(pattern)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The user's choice of weights and patterns.

    Attributes
    ----------
    patterns : mapping of str to Pattern or None
        Globs and the pattern of each, in the order in which they are asked; None: dense.
    by_glob : bool
        Whether the user gave globs, rather than one pattern for all.
    include, exclude : tuple of str
        Globs; include is None where all weights are meant.
    padding : {"skip", "error", "pad", "dense"}
        What becomes of a weight whose shape its pattern does not divide.
    """

    patterns: Mapping[str, Pattern | None]
    by_glob: bool
    include: tuple[str, ...] | None
    exclude: tuple[str, ...]
    padding: str

    @classmethod
    def of(
        cls,
        pattern: Patterns,
        include: str | Iterable[str] | None = None,
        exclude: str | Iterable[str] = (),
        padding: str = "skip",
    ) -> Self:
        """Return the arguments of a planner, checked.

        Raises
        ------
        PatternError, InputError
            For a pattern or a padding that does not exist, and for globs that are no texts.
        """
        check_padding(padding, PLAN_PADDINGS)
        return cls(
            patterns=to_patterns(pattern),
            by_glob=isinstance(pattern, Mapping),
            include=None if include is None else to_globs(include, "include"),
            exclude=to_globs(exclude, "exclude"),
            padding=padding,
        )

    @property
    def solver_padding(self) -> str:
        """The padding that planned weights are solved with."""
        return "error" if self.padding == "skip" else self.padding

    def check_used(self, paths: Sequence[str], whose: str) -> None:
        """Raise InputError for a glob that matches none of the weights `whose` paths these are: a
        misspelt one must not pass.
        """
        used = {
            "include": self.include or (),
            "exclude": self.exclude,
            "pattern": self.patterns if self.by_glob else (),
        }
        for argument, globs in used.items():
            _check_used(globs, paths, argument, whose)

    def choose(self, path: str) -> Pattern | str:
        """Return the pattern of a weight, or the reason why the user's choice leaves it out."""
        if any(matches(path, glob) for glob in self.exclude):
            return "excluded"
        if self.include is not None and not any(matches(path, glob) for glob in self.include):
            return "not included"
        glob = next((glob for glob in self.patterns if matches(path, glob)), None)
        if glob is None:
            return "no pattern is given for it"
        return self.patterns[glob] or f"kept dense by the pattern of {glob!r}"

    def names(self, path: str) -> bool:
        """Return whether the user names this very weight, by its whole path."""
        return path in (self.include or ()) or (self.by_glob and path in self.patterns)

    def refuse(self, subject: str, shape: tuple[int, ...], pattern: Pattern, reason: str) -> None:
        """Raise InputError for a shape that its pattern does not divide, if padding is "error"."""
        if self.padding == "error":
            raise InputError(
                f"{subject} of shape {shape}, pattern {pattern}: {reason}; exclude it, or choose "
                "another padding"
            )


def _check_used(globs: Iterable[str], paths: Sequence[str], argument: str, whose: str) -> None:
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
