"""README.md and figures of a folder of results, made from its JSON alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from examples.pruning import findings, plots, tables
from examples.pruning.conversion import GROUP, UNSTRUCTURED
from examples.pruning.dense import BATCH, SAMPLES
from examples.pruning.schemes import CHECK, DECAY, MIXED, POWERS, RATE, STEPS, M
from examples.study.outcome import Outcome
from examples.study.report import hardware, sentences
from examples.study.statistics import LEVEL


def write(folder: Path, conversions: Sequence[Outcome], allocations: Sequence[Outcome]) -> Path:
    """Write folder/README.md and the figures that it shows."""
    folder.mkdir(parents=True, exist_ok=True)
    text = [_head([*conversions, *allocations])]
    if conversions:
        text.append(_about_conversion())
        text += [part for outcome in conversions for part in _conversion(folder, outcome)]
    if allocations:
        text.append(_about_allocation())
        text += [part for outcome in allocations for part in _allocation(folder, outcome)]
    path = folder / "README.md"
    path.write_text("\n\n".join(text) + "\n")
    return path


def _head(outcomes: Sequence[Outcome]) -> str:
    seeds = sorted(
        {seed for outcome in outcomes for runs in outcome.runs.values() for seed in runs}, key=int
    )
    return f"""# Pruning trained models, on small models

Made by `python -m examples.pruning`. {hardware(outcomes)} Seeds {", ".join(seeds)}; a seed draws
the dense model's initial weights, the order of its data and the calibration inputs, the same for
every method. `python -m examples.pruning --report` makes this page again from the JSON beside it.

Figures are mean ± standard deviation over seeds, of the test part. Sentences call a loss lower or
higher if that passes a paired t-test at {LEVEL} after Holm's correction for the comparisons that
the sentence makes. These models are tiny and their
data easy: what is found here is about them. First and last layers stay dense."""


def _about_conversion() -> str:
    return f"""## Another mask without retraining

Dense models, trained as in [the training study](../README.md), converted to a pattern with
{SAMPLES} inputs of the training part, in batches of {BATCH}, and no label. *masked* leaves weights
and batch norms as they are; all others get new statistics for the norms. *AdaPrune, Adam* is the
paper's: 1000 steps on batches of {BATCH}, every layer for itself. *AdaPrune* is `nmt.adaprune_`
with masks by |W|: least squares, with inputs from the pruned layers before; *not sequential* is
least squares on Adam's problem; *activations* chooses masks by |W|·‖x‖, as `nmt.adaprune_` does by
itself. *second order* is `nmt.sparsegpt_`.
*matching* converts a model of which {UNSTRUCTURED:.0%} of the weights had been pruned without
structure, and which had been trained on, to the n:{GROUP} that `nmt.matching_plan` chooses for each
layer. *Error of layers* is ‖Y − XVᵀ‖² / ‖Y‖², summed over layers, each with the inputs that the
method gives it; *kept* is what is not zero. Seconds are of one thread, medians
over seeds."""


def _conversion(folder: Path, outcome: Outcome) -> Iterator[str]:
    if not tables.converted(outcome):
        return
    task = outcome.task
    yield f"### {task.title}: conversion"
    yield tables.conversions(outcome)
    yield from sentences(findings.conversion(outcome))
    if plots.conversion(outcome, folder / f"conversion_{task.name}.png"):
        yield f"![{task.title}: loss by pattern and method](conversion_{task.name}.png)"
        yield "Dotted: the model that was converted. Bars: one standard deviation over seeds."


def _about_allocation() -> str:
    powers, mixed = (
        ", ".join(str(pattern or "dense") for pattern in patterns) for patterns in (POWERS, MIXED)
    )
    return f"""## A pattern for each layer

Plans under one budget, that of the uniform plan, over the layers that have groups of {M}. *domino*
is `nmt.domino_search` with λ = {DECAY:g} and a check every {CHECK} iterations: ten times the
paper's λ and a tenth of its interval, so that weights shrink as much between checks in a tenth of
the iterations. *η off* sets η = 1, *fixed n* rewrites the plan found as 1:m, β are the
supplement's. *exact* is `nmt.allocate` on {powers}, which minimises the score that masks lose
(*score*), the squared error of the layers' outputs on the calibration as a share of them (*error*;
*mixed*: on {mixed}), or the rise of the calibration's loss when one layer alone is pruned by
AdaPrune (*loss*). Every plan is shown masked, after AdaPrune, and after SR-STE retraining from the
dense weights, {STEPS:g} × the steps at {RATE:g} × the learning rate. Search
times include measuring what is minimised; they are medians over seeds."""


def _allocation(folder: Path, outcome: Outcome) -> Iterator[str]:
    task, budgets = outcome.task, list(tables.budgets(outcome))
    for unit, kept in budgets:
        yield f"### {task.title}. {tables.budget_title(unit, kept)}"
        yield tables.schemes(outcome, unit, kept)
        yield from sentences(findings.allocation(outcome, unit, kept))
    if plots.allocation(outcome, budgets, folder / f"allocation_{task.name}.png"):
        yield f"![{task.title}: loss of every plan](allocation_{task.name}.png)"
