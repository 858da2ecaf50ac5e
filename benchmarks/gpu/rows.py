"""What stages measure: each row becomes a line of results.jsonl with its `kind`, and a line of a
table of the report.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Place:
    """Where a stage measures, until when (by `time.monotonic`, the same in all processes), and the
    folder for what it writes.
    """

    device: str
    until: float
    folder: Path

    @property
    def large(self) -> bool:
        """Whether sizes are those that count. On a CPU small ones show that everything runs, which
        no target is for.
        """
        return self.device == "cuda"

    def left(self) -> float:
        """Seconds until it is ended."""
        return self.until - time.monotonic()


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line."""

    kind: ClassVar[str]

    def line(self) -> dict[str, Any]:
        """As it is saved."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True, slots=True)
class Measurement:
    """Rows under a name. Whatever fails while they are made costs these rows, and no others."""

    what: str
    rows: Callable[[], Iterable[Row]]


@dataclass(frozen=True, kw_only=True)
class Fact(Row):
    """Something about the machine."""

    kind = "fact"
    what: str
    value: str


@dataclass(frozen=True, kw_only=True)
class Skipped(Row):
    """What cannot be measured here, and why that is no failure."""

    kind = "skipped"
    what: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Figure(Row):
    """A number. `target` is a least or (not `at_least`) a most value, in `unit`; None where nothing
    was promised.

    us : microseconds a call, where it is about one. loss : how far below the optimum a rival's mask
    is.
    """

    kind = "figure"
    what: str
    value: float
    unit: str
    us: float | None = None
    target: float | None = None
    at_least: bool = True
    loss: float | None = None
    note: str = ""

    @property
    def passed(self) -> bool | None:
        """Whether the target was reached; None without one."""
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target

    def line(self) -> dict[str, Any]:
        """As it is saved, with the verdict."""
        return {**Row.line(self), "passed": self.passed}


@dataclass(frozen=True, kw_only=True)
class Solved(Row):
    """A mask that was proven optimal, verified on the host and found again bit for bit. first_s :
    the first call, compiling.
    """

    kind = "solved"
    pattern: str
    dtype: str
    scores: str
    side: int
    first_s: float
    stats: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Profile(Row):
    """Where the time of a solve goes; None for what only a GPU has.

    wall_ms : without the profiler. busy_ms : the device computes or copies. launches : kernels,
    copies and fills. waits : calls in which the host waits for the device, by name. top : name,
    count and microseconds of what takes longest, on the device, or of operators where there is
    none.
    """

    kind = "profile"
    what: str
    wall_ms: float
    busy_ms: float | None
    launches: int | None
    waits: dict[str, int] | None
    peak_mb: float | None
    stats: dict[str, float]
    top: list[tuple[str, int, float]]


@dataclass(frozen=True, kw_only=True)
class Product(Row):
    """x Wᵀ by a backend against dense; microseconds by algorithm, and what is wrong with those that
    were not timed.
    """

    kind = "product"
    rows: int
    cols: int
    tokens: int
    backend: str
    dense_us: float
    algorithm_us: dict[int, float]
    wrong: dict[int, str]
    pack_us: float | None


@dataclass(frozen=True, kw_only=True)
class Layer(Row):
    """A linear layer, dense and sparse, alone or with its backward; beside it the same replayed as
    CUDA graphs.

    dense_graph_us, sparse_graph_us : None where they cannot be captured. products_ratio : dense
    over sparse time of a step's three products, without packing.
    """

    kind = "layer"
    rows: int
    cols: int
    tokens: int
    backend: str
    training: bool
    dense_us: float
    sparse_us: float
    dense_graph_us: float | None
    sparse_graph_us: float | None
    products_ratio: float | None


@dataclass(frozen=True, kw_only=True)
class Decision(Row):
    """A row of the table of `accelerate_`."""

    kind = "decision"
    model: str
    layer: str
    shape: str
    tokens: int
    backend: str | None
    dense_us: float | None
    sparse_us: float | None
    decision: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Outcome(Row):
    """A test by name: passed, failed, error or skipped; running, if pytest ended before it. message
    : its first line.
    """

    kind = "test"
    name: str
    outcome: str
    message: str = ""
