"""What `accelerate_` decided, layer by layer, and the rule by which measured times decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from nmsolve.table import shortened, table
from nmsolve.torch.dispatch.algorithms import Memory, named
from nmsolve.torch.weights.entries import Entries

Decision = Literal["sparse", "masked dense", "dense"]
#: A sparse layer has to be this much faster than dense to be chosen: less is within what timings
#: scatter.
MARGIN = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """A backend at the recorded shapes.

    dense_us, sparse_us : microseconds a run of the model, of each call the larger of the device's
    and the host's time. failure : why the backend cannot be used. algorithms : cuSPARSELt's that
    were fastest, with which it was timed. wrong : those that gave wrong results.
    """

    dense_us: float | None
    sparse_us: float | None
    failure: str | None
    algorithms: Memory = ()
    wrong: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDecision:
    """One row of the table.

    name : module path. shape : the weight's. tokens : rows of input it was given in all. backend :
    the one that was chosen or, of those that were not, came closest; None if there was none.
    dense_us, sparse_us : of all its calls together, None unless measured. decision : "sparse",
    "masked dense" (training: a SparseLinear that multiplies densely) or "dense" (untouched).
    algorithms : what the backend multiplies with, where it has several (see `SparseLinear`).
    """

    name: str
    shape: tuple[int, ...]
    tokens: int
    backend: str | None
    dense_us: float | None
    sparse_us: float | None
    decision: Decision
    reason: str
    algorithms: Memory = ()


class Acceleration(Entries[LayerDecision]):
    """What became of every layer with a weight matrix. Prints as a table."""

    def __str__(self) -> str:
        if not self.layers:
            return "no layer with a weight matrix"
        head = (
            "layer",
            "shape",
            "tokens",
            "backend",
            "dense µs",
            "sparse µs",
            "decision",
            "reason",
        )
        return table(head, [(*_cells(layer), layer.reason) for layer in self.layers], {2, 4, 5})

    def __repr__(self) -> str:
        return (
            f"<Acceleration: {len(self)} layers, "
            f"{sum(layer.decision == 'sparse' for layer in self)} sparse>"
        )


def _cells(layer: LayerDecision) -> tuple[str, ...]:
    times = ("-" if us is None else f"{us:.1f}" for us in (layer.dense_us, layer.sparse_us))
    return (
        shortened(layer.name, 28),
        "×".join(map(str, layer.shape)),
        str(layer.tokens),
        named(layer.backend, layer.algorithms) if layer.backend else "-",
        *times,
        layer.decision,
    )


def choose(
    timings: Mapping[str, Timing], only_if_faster: bool
) -> tuple[str | None, str | None, str]:
    """Which backend to use (None: dense), which one to show, and the reason.

    The fastest of those that are right, if it is faster than dense by more than `MARGIN`.

    Examples
    --------
    >>> choose({"cutlass": Timing(dense_us=10.0, sparse_us=20.0, failure=None)}, True)
    (None, 'cutlass', 'slower: 0.50 × the speed of dense')
    """
    right = {
        name: t
        for name, t in timings.items()
        if t.failure is None and t.sparse_us is not None and t.dense_us is not None
    }
    if not right:
        shown = next(iter(timings), None)
        return (
            None,
            shown,
            "; ".join(f"{name}: {t.failure}" for name, t in timings.items()) or "no backend",
        )
    best = min(right, key=lambda name: right[name].sparse_us or 0.0)
    dense, sparse = right[best].dense_us or 0.0, right[best].sparse_us or 0.0
    said = f"{dense / sparse:.2f} × the speed of dense{_distrusted(right[best].wrong)}"
    if sparse <= (1 - MARGIN) * dense:
        return best, best, said
    slower = "slower" if sparse > dense else "not faster"
    return (
        (None, best, f"{slower}: {said}")
        if only_if_faster
        else (best, best, f"{slower}, but asked for: {said}")
    )


def _distrusted(wrong: Sequence[int]) -> str:
    if not wrong:
        return ""
    return (
        f"; wrong results by algorithm{'s' * (len(wrong) > 1)} {', '.join(map(str, wrong))}, "
        "not used"
    )
