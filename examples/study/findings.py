"""What the results show, in sentences made of the numbers. What is called better, worse, lower or
higher passed a paired t-test at level 0.05, corrected (Holm) for the comparisons of the sentence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from examples.study.configurations import CRITERIA, Comparisons, Configuration, MethodName, refined
from examples.study.diversity import bits
from examples.study.outcome import Outcome
from examples.study.statistics import LEVEL, Difference, Rank, found


def methods(outcome: Outcome, comparisons: Comparisons) -> Iterator[str]:
    """LBC against SR-STE, SR-STE against STE, Fixed against SR-STE: where they differ, what they
    cost.
    """
    pairs: tuple[tuple[MethodName, MethodName], ...] = (
        ("LBC", "SR-STE"),
        ("SR-STE", "STE"),
        ("Fixed", "SR-STE"),
    )
    for first, second in pairs:
        differences = {
            pattern: outcome.difference(
                Configuration(first, pattern), Configuration(second, pattern)
            )
            for pattern in _with(outcome, comparisons, first, second)
        }
        if differences:
            yield f"{first} is {_verdict(outcome, differences, f'{second} at ')}."
    costs = {
        pattern: outcome.ratio(
            Configuration("LBC", pattern), Configuration("SR-STE", pattern), "training_flops"
        ).mean
        for pattern in _with(outcome, comparisons, "LBC", "SR-STE")
    }
    if costs:
        yield (
            "LBC's training FLOPs are "
            f"{listed(f'{cost:.2f} × at {pattern}' for pattern, cost in costs.items())} of "
            "SR-STE's."
        )


def divergence(outcome: Outcome, comparisons: Comparisons) -> Iterator[str]:
    """SAD of SR-STE against STE."""
    patterns = _with(outcome, comparisons, "SR-STE", "STE")
    if not patterns:
        return
    pairs = [
        (Configuration("SR-STE", pattern), Configuration("STE", pattern)) for pattern in patterns
    ]
    ratios = [
        f"{outcome.ratio(ours, theirs, 'flips').show(2)} at {pattern}"
        for (ours, theirs), pattern in zip(pairs, patterns, strict=True)
    ]
    yield f"SAD summed over training, SR-STE / STE, seed by seed: {listed(ratios)}."
    differences = {
        pattern: outcome.difference(
            Configuration("SR-STE", pattern), Configuration("STE", pattern), "flips"
        )
        for pattern in patterns
    }
    beyond = found(differences)
    lower = [
        pattern for pattern in patterns if beyond[pattern] and differences[pattern].spread.mean < 0
    ]
    higher = [
        pattern for pattern in patterns if beyond[pattern] and differences[pattern].spread.mean > 0
    ]
    rest = [pattern for pattern in patterns if not beyond[pattern]]
    said = [("lower", lower), ("higher", higher), ("no different beyond noise", rest)]
    yield (
        "SR-STE's SAD is "
        + "; ".join(f"{what} at {listed(those)}" for what, those in said if those)
        + f" (level {LEVEL})."
    )


def criteria(outcome: Outcome, comparisons: Comparisons) -> Iterator[str]:
    """LBC's criteria, best first, and which of them the learned scores beat."""
    for pattern in comparisons.criteria:
        ranked = [Configuration("LBC", pattern, criterion) for criterion in CRITERIA]
        ranked = [one for one in ranked if outcome.has(one)]
        learned = Configuration("LBC", pattern)
        if learned not in ranked or len(ranked) < 2:
            continue
        ranked.sort(
            key=lambda one: outcome.spread(one, outcome.task.measure).mean,
            reverse=outcome.task.measure == "accuracy",
        )
        differences = {
            one.criterion: outcome.difference(learned, one) for one in ranked if one != learned
        }
        order = ", ".join(f"{one.criterion} {outcome.show(one)}" for one in ranked)
        yield (
            f"{pattern}, best first: {order}. The learned scores are "
            f"{_verdict(outcome, differences, '')}."
        )


def density(outcome: Outcome, comparisons: Comparisons) -> Iterator[str]:
    """Do patterns that allow more masks give better models?"""
    for share, patterns in comparisons.density.items():
        there = [Configuration("SR-STE", pattern) for pattern in patterns]
        there = [one for one in there if outcome.has(one)]
        if len(there) < 3:
            continue
        known = [bits(one.pattern or "") for one in there]
        exact = outcome.rank(there, [bit.exact for bit in known])
        paper = outcome.rank(there, [bit.paper for bit in known])
        means = [outcome.spread(one, outcome.task.measure).mean for one in there]
        deviations = [outcome.spread(one, outcome.task.measure).deviation for one in there]
        within = sum(deviations) / len(deviations)
        apart = (max(means) - min(means)) / within if within else float("nan")
        yield (
            f"Density {share}, {len(there)} patterns: rank correlation of mask diversity and "
            f"quality {_rank(exact)} with exact counts, {_rank(paper)} with the paper's formula. "
            f"The best and the worst pattern are {apart:.1f} standard deviations of a single run "
            "apart."
        )


def decays(outcome: Outcome, comparisons: Comparisons) -> Iterator[str]:
    """Which λ is best on the validation part."""
    for pattern in comparisons.decays:
        tried = {factor: refined(pattern, factor) for factor in comparisons.factors}
        means = {
            factor: outcome.spread(one, "validation_loss").mean
            for factor, one in tried.items()
            if outcome.has(one)
        }
        if means:
            best = min(means, key=lambda factor: means[factor])
            chosen = outcome.task.decay
            yield (
                f"{pattern}: lowest loss at λ = {best * chosen:.2g}; everything else here uses λ "
                f"= {chosen:.2g}."
            )


def _with(
    outcome: Outcome, comparisons: Comparisons, first: MethodName, second: MethodName
) -> list[str]:
    return [
        pattern
        for pattern, methods in comparisons.methods.items()
        if first in methods
        and second in methods
        and outcome.has(Configuration(first, pattern), Configuration(second, pattern))
    ]


def _verdict(outcome: Outcome, differences: dict[str, Difference], other: str) -> str:
    """Than what it is better, than what worse. other : "SR-STE at " where they are by pattern, else
    empty.
    """
    better, worse, same = [], [], []
    beyond = found(differences)
    for name, difference in differences.items():
        good = (
            difference.spread.mean > 0
            if outcome.task.measure == "accuracy"
            else difference.spread.mean < 0
        )
        (same if not beyond[name] else better if good else worse).append(name)
    said = (
        ("better than", better),
        ("worse than", worse),
        ("no different beyond noise from", same),
    )
    return (
        "; ".join(f"{what} {other}{listed(names)}" for what, names in said if names)
        + f" (comparisons: {len(differences)})"
    )


def _rank(rank: Rank) -> str:
    return f"ρ = {rank.rho:+.2f} (p = {rank.p:.2g})"


def listed(items: Iterable[str]) -> str:
    items = list(items)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
