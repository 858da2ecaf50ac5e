"""`Plan`: an entry for every weight of a model, with its pattern or the reason why it has none.

`planning.py` makes them; `planned.py` finds the weights again in a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nmsolve.errors import InputError
from nmsolve.pattern import Pattern
from nmsolve.table import extent, shortened, table
from nmsolve.torch.weights.entries import Entries


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """A weight of a model and what is planned for it: common to `PlannedWeight`, `SkippedWeight`
    and `OpenWeight`.

    Attributes
    ----------
    name : str
        Module path.
    parameter : str
        Its parameter: "weight" but for attention's projections.
    kind : str
        The module's class.
    shape : tuple of int
        The weight's; () where only its path is known, as in a table of losses.
    pattern : Pattern or None
        None where the weight is skipped.
    axis : int or None
        The weight's axis that groups lie along; None where none is known.
    padding : str
        As for `nmsolve.torch.solve`.
    reason : str or None
        Why the weight is skipped; None where it is not.
    tied_to : str or None
        The path of the weight that this one is the same tensor as, and shares its mask with.
    """

    name: str
    parameter: str
    kind: str
    shape: tuple[int, ...]
    pattern: Pattern | None
    axis: int | None
    padding: str
    reason: str | None
    tied_to: str | None = None

    @property
    def path(self) -> str:
        """The module path, with the parameter behind it unless that is "weight"."""
        return path_of(self.name, self.parameter)

    @property
    def owner(self) -> str:
        """The path under which a weight that several layers share is counted; elsewhere its own."""
        return self.tied_to or self.path

    def skipped(self, reason: str) -> SkippedWeight:
        """Return the same weight without a pattern."""
        return SkippedWeight(axis=self.axis, reason=reason, **_described(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedWeight(LayerPlan):
    """A weight that gets a mask.

    Attributes
    ----------
    pattern : Pattern
    axis : int
        The weight's axis that groups lie along; -1 where only its path is known, in a plan that was
        allocated by a table alone.
    reason : None
    name, parameter, kind, shape, padding, tied_to
        As of every `LayerPlan`.
    """

    pattern: Pattern
    axis: int
    reason: None = None

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, Pattern) or self.axis is None:
            raise InputError(
                f"{self.path} is planned with pattern {self.pattern!r}, axis {self.axis!r}: a "
                "weight "
                f"that stays dense is entry.skipped(reason)"
            )

    def opened(self) -> OpenWeight:
        """Return the same weight with its pattern still to be chosen."""
        return OpenWeight(axis=self.axis, **_described(self))

    def with_pattern(self, pattern: Pattern) -> PlannedWeight:
        """Return the same weight with another pattern."""
        return PlannedWeight(axis=self.axis, pattern=pattern, **_described(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedWeight(LayerPlan):
    """A weight that stays dense.

    Attributes
    ----------
    pattern : None
    axis : int or None
        Where groups would lie; None where that is not known.
    reason : str
        Why it is skipped.
    name, parameter, kind, shape, padding, tied_to
        As of every `LayerPlan`.
    """

    reason: str
    pattern: None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenWeight(LayerPlan):
    """A weight that can have a pattern, which is still to be chosen: in `nmsolve.torch.losses`.

    Attributes
    ----------
    axis : int
        The weight's axis that groups lie along; -1 where only its path is known.
    pattern, reason : None
    name, parameter, kind, shape, padding, tied_to
        As of every `LayerPlan`.
    """

    axis: int
    pattern: None = None
    reason: None = None

    def with_pattern(self, pattern: Pattern) -> PlannedWeight:
        """Return the same weight with a pattern."""
        return PlannedWeight(axis=self.axis, pattern=pattern, **_described(self))


def _described(entry: LayerPlan) -> dict[str, Any]:
    """The fields that no decision changes."""
    return {
        "name": entry.name,
        "parameter": entry.parameter,
        "kind": entry.kind,
        "shape": entry.shape,
        "padding": entry.padding,
        "tied_to": entry.tied_to,
    }


class Plan(Entries[LayerPlan]):
    """One entry for each weight with two axes or more, in the model's order. Prints as a table.

    Attributes
    ----------
    layers : tuple of LayerPlan
        `PlannedWeight` and `SkippedWeight`.
    scores : mapping of str to Tensor, or None
        What masks are to maximise instead of |W|, by layer path; None: |W|.
    """

    def __init__(
        self, layers: Iterable[LayerPlan], scores: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__(layers)
        for layer in self.layers:
            if not isinstance(layer, PlannedWeight | SkippedWeight | OpenWeight):
                raise InputError(
                    "a plan consists of PlannedWeight and SkippedWeight, as nmt.plan makes them; "
                    "got "
                    f"a {type(layer).__name__}"
                )
        self.scores = scores

    @property
    def planned(self) -> tuple[PlannedWeight, ...]:
        """The entries with a pattern."""
        return tuple(layer for layer in self.layers if isinstance(layer, PlannedWeight))

    @property
    def patterns(self) -> dict[str, Pattern | None]:
        """Layer path → pattern, or None: what `plan` takes in place of one pattern."""
        # A glob names what lies inside a module as well, and the first that matches decides.
        deepest_first = sorted(self.layers, key=lambda layer: -layer.path.count("."))
        return {layer.path: layer.pattern for layer in deepest_first}

    def __str__(self) -> str:
        rows = [
            (
                shortened(layer.path),
                layer.kind,
                extent(layer.shape),
                "-" if layer.pattern is None else str(layer.pattern),
                "-" if layer.axis is None else str(layer.axis),
                layer.reason or sharing(layer),
            )
            for layer in self.layers
        ]
        return (
            table(("layer", "kind", "shape", "pattern", "axis", "reason"), rows)
            if rows
            else "no weight with two axes or more"
        )

    def __repr__(self) -> str:
        return f"<Plan: {len(self.planned)} of {len(self)} weights have a pattern>"


def sharing(entry: LayerPlan) -> str:
    """Return the note on a weight that is another layer's too; nothing on others."""
    return f"shares weight and mask with {entry.tied_to}" if entry.tied_to else ""


def path_of(name: str, parameter: str) -> str:
    """Return the path of a weight: its module's, and the parameter's name unless it is "weight"."""
    return name if name and parameter == "weight" else f"{name}.{parameter}".lstrip(".")
