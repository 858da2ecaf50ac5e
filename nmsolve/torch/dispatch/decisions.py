"""The decisions of `accelerate_`, layer by layer, and the rule by which measured times decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from nmsolve.table import extent, shortened, table
from nmsolve.torch.dispatch.algorithms import Memory, named
from nmsolve.torch.weights.entries import Entries

Decision = Literal["sparse", "masked dense", "dense"]
#: A sparse layer has to be this much faster than dense to be chosen: less is within what timings
#: scatter.
MARGIN = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """A layer timed at the recorded shapes, dense and by a backend.

    Attributes
    ----------
    dense_us, sparse_us : float or None
        Microseconds per run of the model, of each call the larger of the device's and the host's
        time. None where the backend cannot be used.
    failure : str or None
        Why the backend cannot be used.
    algorithms : tuple of int
        cuSPARSELt's that were fastest, with which it was timed.
    wrong : tuple of int
        Algorithms that gave wrong results.
    """

    dense_us: float | None
    sparse_us: float | None
    failure: str | None
    algorithms: Memory = ()
    wrong: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDecision:
    """One row of the table.

    Attributes
    ----------
    path : str
        Module path.
    shape : tuple of int
        The weight's.
    tokens : int
        Rows of input that it was given in all.
    backend : str or None
        The one that was chosen or, of those that were not, came closest; None if there was none.
    dense_us, sparse_us : float or None
        Microseconds of all its calls together; None unless measured.
    decision : {"sparse", "masked dense", "dense"}
        "masked dense" (training): a SparseLinear that multiplies densely. "dense": untouched.
    reason : str
        Why; for a measured layer its speed beside dense.
    algorithms : tuple of int
        What the backend multiplies with, where it has several (see `SparseLinear`).
    """

    path: str
    shape: tuple[int, ...]
    tokens: int
    backend: str | None
    dense_us: float | None
    sparse_us: float | None
    decision: Decision
    reason: str
    algorithms: Memory = ()

    @property
    def name(self) -> str:
        """The same as `path`."""
        return self.path


class Acceleration(Entries[LayerDecision]):
    """The decisions for all layers with a weight matrix. Prints as a table.

    Attributes
    ----------
    layers : tuple of LayerDecision
        In the model's order.
    """

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
        shortened(layer.path, 28),
        extent(layer.shape),
        str(layer.tokens),
        named(layer.backend, layer.algorithms) if layer.backend else "-",
        *times,
        layer.decision,
    )


def choose(
    timings: Mapping[str, Timing], *, only_if_faster: bool
) -> tuple[str | None, str | None, str]:
    """Return the backend to use (None: dense), the one to show, and the reason.

    The fastest of those that are right, if it is faster than dense by more than `MARGIN`.

    Examples
    --------
    >>> slow = Timing(dense_us=10.0, sparse_us=20.0, failure=None)
    >>> choose({"cutlass": slow}, only_if_faster=True)
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
