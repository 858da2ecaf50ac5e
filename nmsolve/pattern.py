"""The constraint on a mask: `Pattern`."""

from __future__ import annotations

import operator
import re
import reprlib
from dataclasses import dataclass, field, replace

from nmsolve.errors import PatternError

MAX_M = 64
_TEXT = re.compile(
    r"(?P<at_most><=|≤)?\s*(?P<n>\d{1,9})\s*:\s*(?P<m>\d{1,9})(?P<transposable>T)?", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Pattern:
    """A constraint: n of every m entries are kept.

    Attributes
    ----------
    n : int
        Entries **kept** of every m; 1 ≤ n ≤ m.
    m : int
        Length of a group, and side of a block; m ≤ 64.
    transposable : bool
        False: every m consecutive entries of a row ("2:4"). True: every row and every column of
        every m × m block ("2:4T"), so that the matrix and its transpose are both n:m sparse.
    at_most : bool
        False: exactly n are kept. True: n or fewer. For transposable blocks the at-most optimum can
        be strictly larger.

    Raises
    ------
    PatternError
        If the numbers are not integers with 1 ≤ n ≤ m ≤ 64.

    Examples
    --------
    >>> Pattern.parse("2:4T") == Pattern(2, 4, transposable=True)
    True
    >>> str(Pattern(2, 4, transposable=True)), str(Pattern(2, 4, at_most=True))
    ('2:4T', '<=2:4')
    """

    n: int
    m: int
    transposable: bool = field(default=False, kw_only=True)
    at_most: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("n", "m"):
            value = getattr(self, name)
            try:
                number = operator.index(value)
            except (TypeError, ValueError):
                number = None
            if number is None or isinstance(value, bool):
                raise PatternError(
                    f"{name} must be an integer, got {value!r}; a pattern is Pattern(2, 4) or '2:4'"
                )
            object.__setattr__(self, name, number)
        for name in ("transposable", "at_most"):
            if not isinstance(getattr(self, name), bool):
                raise PatternError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if not 1 <= self.n <= self.m:
            raise PatternError(
                f"pattern {self.n}:{self.m} does not exist: n entries of every m are kept, so 1 <= "
                "n <= m is needed"
            )
        if self.m > MAX_M:
            raise PatternError(
                f"pattern {self.n}:{self.m} has m = {self.m}, but solvers go up to m = {MAX_M}"
            )

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read "2:4", "2:4T", or with "<=" in front for at most n.

        Raises
        ------
        PatternError
            If the text is not a pattern.
        """
        match = _TEXT.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None:
            # Not in full unless it is text: a list of tensors would fill the screen.
            given = repr(text) if isinstance(text, str) else reprlib.repr(text)
            raise PatternError(
                f"cannot read the pattern {given}; write '2:4', '2:4T' (transposable) or '<=2:4T' "
                "(at most)"
            )
        return cls(
            int(match["n"]),
            int(match["m"]),
            transposable=match["transposable"] is not None,
            at_most=match["at_most"] is not None,
        )

    @classmethod
    def of(cls, pattern: Pattern | str, at_most: bool | None = None) -> Pattern:
        """Return a pattern from either spelling; `at_most`, unless None, overrides its own."""
        parsed = pattern if isinstance(pattern, Pattern) else cls.parse(pattern)
        if at_most is None:
            return parsed
        if not isinstance(at_most, bool):
            raise PatternError(f"at_most must be True, False or None, got {at_most!r}")
        return replace(parsed, at_most=at_most)

    @property
    def rows(self) -> int:
        """Rows of the unit that is solved on its own: m for a block, 1 for a group."""
        return self.m if self.transposable else 1

    @property
    def density(self) -> float:
        """Share of entries kept, n / m."""
        return self.n / self.m

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else ''}{self.n}:{self.m}{'T' if self.transposable else ''}"
