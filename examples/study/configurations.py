"""What is compared: which method, which pattern, which options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MethodName = Literal["Dense", "Fixed", "STE", "SR-STE", "LBC"]

ROW_WISE = ("2:4", "1:4", "2:8", "1:16")
TRANSPOSABLE = ("2:4T", "4:8T", "8:16T")
CRITERIA = ("learned", "magnitude", "gradient", "inverse")
#: λ of SR-STE in multiples of the task's own.
DECAYS = (0.0, 0.1, 1.0, 10.0, 100.0)
#: Patterns of one density, with fewer and fewer or more and more masks to choose from.
EQUAL_DENSITY = {
    "1/2": ("1:2", "2:4", "4:8", "8:16", "16:32", "1:2T", "2:4T", "4:8T", "8:16T", "16:32T"),
    "1/4": ("1:4", "2:8", "4:16", "8:32", "1:4T", "2:8T", "4:16T", "8:32T"),
    "1/8": ("1:8", "2:16", "4:32", "1:8T", "2:16T", "4:32T"),
}


@dataclass(frozen=True)
class Configuration:
    """One way to train. pattern is None for the dense model alone; criterion is LBC's; decay
    multiplies the task's λ of SR-STE.
    """

    method: MethodName
    pattern: str | None = None
    criterion: str = "learned"
    decay: float = 1.0

    @property
    def name(self) -> str:
        """What results are saved under."""
        parts = [self.method, self.pattern or ""]
        parts += [self.criterion] if self.criterion != "learned" else []
        parts += [f"λ×{self.decay:g}"] if self.decay != 1.0 else []
        return " ".join(part for part in parts if part)

    @property
    def names(self) -> tuple[str, ...]:
        """The one name."""
        return (self.name,)


DENSE = Configuration("Dense")


def refined(pattern: str, factor: float) -> Configuration:
    """SR-STE with a multiple of the task's λ; without decay it is STE."""
    return (
        Configuration("SR-STE", pattern, decay=factor) if factor else Configuration("STE", pattern)
    )


@dataclass(frozen=True)
class Comparisons:
    """The four questions of the study, as configurations to run. Some configurations serve several;
    each is run once.

    methods : pattern → methods, on every task. criteria : patterns on which LBC's criteria are
    compared (its Table 6). density : density → patterns, all trained by SR-STE. decays : patterns
    on which λ is varied, measured on the validation part.
    """

    methods: dict[str, tuple[MethodName, ...]]
    criteria: tuple[str, ...]
    density: dict[str, tuple[str, ...]]
    decays: tuple[str, ...]
    factors: tuple[float, ...] = DECAYS

    def configurations(self) -> list[Configuration]:
        """All of them, each once, the comparison of methods first."""
        found = [DENSE]
        found += [
            Configuration(method, pattern)
            for pattern, methods in self.methods.items()
            for method in methods
        ]
        found += [
            Configuration("LBC", pattern, criterion)
            for pattern in self.criteria
            for criterion in CRITERIA
        ]
        found += [
            Configuration("SR-STE", pattern)
            for patterns in self.density.values()
            for pattern in patterns
        ]
        found += [refined(pattern, factor) for pattern in self.decays for factor in self.factors]
        return list(dict.fromkeys(found))


FULL = Comparisons(
    methods={
        **dict.fromkeys(ROW_WISE, ("Fixed", "STE", "SR-STE", "LBC")),
        **dict.fromkeys(TRANSPOSABLE, ("STE", "SR-STE")),
    },
    criteria=("2:4", "1:4"),
    density=EQUAL_DENSITY,
    decays=("2:4", "1:16"),
)

#: Everything once or twice: shows that it runs.
TINY = Comparisons(
    methods={"2:4": ("Fixed", "STE", "SR-STE", "LBC"), "2:4T": ("STE", "SR-STE")},
    criteria=("2:4",),
    density={"1/2": ("1:2", "2:4", "1:2T", "2:4T")},
    decays=("2:4",),
    factors=(0.0, 1.0, 10.0),
)
