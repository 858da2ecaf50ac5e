"""What the results show, in sentences made of the numbers. What is called lower or higher passed a
paired t-test at level 0.05, corrected (Holm) for the comparisons of the sentence. Losses are
compared: on the digits accuracies are too close to their end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from examples.pruning.schemes import EXACT, STAGES, Scheme, Unit
from examples.pruning.tables import Result, allocated, converted
from examples.study.findings import listed
from examples.study.outcome import Outcome
from examples.study.statistics import Difference, found


def conversion(outcome: Outcome) -> Iterator[str]:
    """Methods against each other at all patterns."""
    pairs = (
        ("AdaPrune", "masked, norms anew"),
        ("AdaPrune", "AdaPrune, Adam"),
        ("AdaPrune, not sequential", "AdaPrune, Adam"),
        ("AdaPrune", "AdaPrune, not sequential"),
        ("AdaPrune, activations", "AdaPrune"),
        ("second order", "AdaPrune"),
    )
    conversions = converted(outcome)
    for first, second in pairs:
        differences = {
            one.pattern or "matching patterns": outcome.difference(
                Result(one.name(first)), Result(one.name(second)), "loss"
            )
            for one in conversions
        }
        yield f"*{first}* against *{second}*: {_verdict(differences)}."
    for first, second in (
        ("AdaPrune, Adam", "AdaPrune, not sequential"),
        ("AdaPrune, Adam", "AdaPrune"),
        ("second order", "AdaPrune"),
    ):
        ratios = [
            outcome.ratio(Result(one.name(first)), Result(one.name(second)), "seconds").mean
            for one in conversions
        ]
        if ratios:
            yield (
                f"*{first}* took {min(ratios):.2g} to {max(ratios):.2g} times as long as "
                f"*{second}*."
            )


def allocation(outcome: Outcome, unit: Unit, kept: int) -> Iterator[str]:
    """Ways to a plan against each other under a budget."""
    there = {scheme.way: scheme for scheme in allocated(outcome, unit, kept)}
    others = [way for way in there if way != "uniform"]
    for stage in STAGES[1:] if "uniform" in there and others else ():
        differences = _differences(outcome, there, others, "uniform", stage)
        yield f"{stage[0].upper()}{stage[1:]}, against *uniform*: {_verdict(differences)}."
    exact = [way for way in EXACT if way in there]
    for stage in STAGES[1:] if "domino" in there and exact else ():
        differences = _differences(outcome, there, exact, "domino", stage)
        yield f"{stage[0].upper()}{stage[1:]}, against *domino*: {_verdict(differences)}."
    ablations = [way for way in others if way.startswith("domino, ")]
    if "domino" in there and ablations:
        differences = _differences(outcome, there, ablations, "domino", STAGES[2])
        yield f"Retrained, *domino*'s variants against *domino*: {_verdict(differences)}."


def _differences(
    outcome: Outcome, there: Mapping[str, Scheme], ways: list[str], other: str, stage: str
) -> dict[str, Difference]:
    second = Result(there[other].name(stage))
    return {
        f"*{way}*": outcome.difference(Result(there[way].name(stage)), second, "loss")
        for way in ways
    }


def _verdict(differences: Mapping[str, Difference]) -> str:
    """Which losses are lower, which higher, which neither."""
    beyond = found(differences)
    lower = [name for name in differences if beyond[name] and differences[name].spread.mean < 0]
    higher = [name for name in differences if beyond[name] and differences[name].spread.mean > 0]
    rest = [name for name in differences if not beyond[name]]
    said = (("lower loss", lower), ("higher loss", higher), ("no difference beyond noise", rest))
    return "; ".join(f"{what} for {listed(names)}" for what, names in said if names)
