"""README.md and figures of a folder of results, made from its JSON alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from examples.study import findings, plots, tables
from examples.study.configurations import Comparisons
from examples.study.outcome import Outcome
from examples.study.statistics import LEVEL
from examples.study.training import WINDOW


def write(
    folder: Path, outcomes: Sequence[Outcome], comparisons: Comparisons, command: str
) -> Path:
    """Write folder/README.md and the figures that it shows."""
    folder.mkdir(parents=True, exist_ok=True)
    text = [_head(outcomes, command)]
    text += [part for outcome in outcomes for part in _task(folder, outcome, comparisons)]
    path = folder / "README.md"
    path.write_text("\n\n".join(text) + "\n")
    return path


def _head(outcomes: Sequence[Outcome], command: str) -> str:
    seconds = sum(
        run["seconds"]
        for outcome in outcomes
        for seeds in outcome.runs.values()
        for run in seeds.values()
    )
    count = sum(len(seeds) for outcome in outcomes for seeds in outcome.runs.values())
    seeds = ", ".join(
        sorted(
            {seed for outcome in outcomes for runs in outcome.runs.values() for seed in runs},
            key=int,
        )
    )
    return f"""# Training methods, compared on small models

Made by `{command}`: {count} runs, {seconds / 60:.0f} minutes of training on one thread each.
{hardware(outcomes)} Seeds {seeds}; a seed draws initial weights and the order of the data, the same
for every method and pattern. `python -m examples.study --report` makes this page again from the
JSON beside it.

Figures are mean ± standard deviation over seeds. Differences are taken seed by seed; p is of a
paired t-test, in tables not corrected for the number of comparisons. Sentences call a difference
what passes at {LEVEL} after Holm's correction for the comparisons that the sentence makes. These
models are tiny and their data easy: what is found here is about them.

* *Training FLOPs* are of the whole model, relative to dense: forward, gradient of the input,
  gradient of the weight, each at the mask's density where the method lets it (`SparseModel.stats`);
  layers without a mask and the scores of attention count as dense. They are counted, not timed: on
  a processor masked products are dense products, and *seconds* are what that took, masks included.
* *Entries that changed a weight*: SAD, Σ |E_j − E_i| between consecutive masks, summed over all
  steps, over the number of masked weights.
* All configurations take equally many steps. *Fixed* trains dense for the first half, masks once,
  and trains what is kept for the second, by the same schedule twice. *STE* and *SR-STE* choose
  masks at every step, transposable ones too. *LBC* removes candidates from the first step to half
  of training.
* First and last layers stay dense under every pattern, so that all patterns are compared on the
same weights."""


def hardware(outcomes: Sequence[Outcome]) -> str:
    """Machines and versions that results were made with."""
    machines = {outcome.machine["cpu"]: outcome.machine for outcome in outcomes}
    shown = "; ".join(
        f"{cpu}, {machine['cpus']} CPUs, {machine['memory_gib']} GiB, {machine['system']}"
        for cpu, machine in machines.items()
    )
    return (
        f"{shown}. Versions: "
        f"{'; '.join(dict.fromkeys(_versions(outcome.machine) for outcome in outcomes))}."
    )


def _task(folder: Path, outcome: Outcome, comparisons: Comparisons) -> Iterator[str]:
    task, settings = outcome.task, outcome.task.settings()
    yield f"""## {task.title}

{settings["data"]}. {settings["steps"]} steps of {settings["batch"]} examples;
{_optimizer(outcome)}, warm-up over a twentieth of the steps, then a cosine to 0. λ of SR-STE
{settings["decay"]:g}. Settings were chosen on the
validation part, with other seeds."""
    yield "### Methods"
    yield tables.methods(outcome, comparisons)
    yield tables.differences(outcome, comparisons)
    yield from sentences(findings.methods(outcome, comparisons))
    if plots.cost(outcome, comparisons, folder / f"cost_{task.name}.png"):
        yield f"![{task.title}: quality against training FLOPs](cost_{task.name}.png)"
        yield (
            "Markers of equal FLOPs are drawn side by side; bars are one standard deviation over "
            "seeds."
        )
    if plots.divergence(outcome, comparisons, folder / f"sad_{task.name}.png"):
        yield "### Sparse architecture divergence"
        yield f"![{task.title}: SAD over training](sad_{task.name}.png)"
        yield f"Summed over {WINDOW} steps; bands are one standard deviation over seeds."
        yield from sentences(findings.divergence(outcome, comparisons))
    yield "### λ of SR-STE"
    yield tables.decays(outcome, comparisons)
    yield from sentences(findings.decays(outcome, comparisons))
    yield "### What LBC removes candidates by"
    yield tables.criteria(outcome, comparisons)
    yield from sentences(findings.criteria(outcome, comparisons))
    yield "### Mask diversity"
    yield (
        "SR-STE, patterns of one density. Positive rank correlations: patterns that allow more "
        "masks give better models."
    )
    yield tables.density(outcome, comparisons)
    yield from sentences(findings.density(outcome, comparisons))
    if plots.density(outcome, comparisons, folder / f"diversity_{task.name}.png"):
        yield f"![{task.title}: quality against mask diversity](diversity_{task.name}.png)"


def sentences(said: Iterator[str]) -> Iterator[str]:
    """As a list, if there are any."""
    found = [f"* {sentence}" for sentence in said]
    if found:
        yield "\n".join(found)


def _optimizer(outcome: Outcome) -> str:
    task = outcome.task
    name = "SGD with momentum 0.9" if task.optimizer == "sgd" else "AdamW"
    return f"{name}, learning rate {task.rate:g}, weight decay {task.weight_decay:g}"


def _versions(machine: dict[str, dict[str, str]]) -> str:
    shown = ("nmsolve", "python", "torch", "numpy", "scikit-learn", "scipy")
    return ", ".join(
        f"{name} {machine['versions'][name]}" for name in shown if name in machine["versions"]
    )
