"""What LBC's scores take, by their tensors and by the process that holds them. `python -m
benchmarks.training.memory PATTERN SIDE` prints the figures of a process of its own, on the host.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.processes import ROOT
from benchmarks.training.rows import Row

#: Bytes a weight of the method as published: a score, its gradient and its momentum for every
#: candidate, in float32.
PUBLISHED = {"2:4": 18.0, "1:4": 12.0, "1:16": 12.0, "2:8": 42.0, "4:8": 105.0}
REFUSED, REFUSED_SIDE = "8:16", 8192


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes a weight, for one pattern.

    tensors : scores, momenta and which candidates are alive. resident : what attaching and a step
    add to the process for good. step, removal : the most that a step, and one that removes
    candidates, needs on top of what is there before it.
    """

    pattern: str
    weights: int
    tensors: float
    resident: float
    step: float
    removal: float

    @property
    def rows(self) -> Iterator[Row]:
        """Its targets."""
        published = PUBLISHED[self.pattern]
        yield Row(
            what=f"LBC {self.pattern}: scores, momenta, "
                 "alive", measured=self.tensors, unit="bytes a weight", target=published,
            note="the target is score, gradient and momentum in float32",
        )  # fmt: skip
        yield Row(
            what=f"LBC {self.pattern}: growth of the "
                 "process", measured=self.resident, unit="bytes a weight", target=published,
            note=f"on top of it, for the time of it: a step {self.step:.1f}, a removal "
                 f"{self.removal:.1f}",
        )  # fmt: skip


def measure(side: int) -> Iterator[Memory]:
    """Every pattern, in a process of its own."""
    for pattern in PUBLISHED:
        yield Memory(**json.loads(_probe(pattern, side)))


def refusal() -> str:
    """What is said of a pattern whose scores cannot fit: those of this layer take 450 GiB."""
    return f"{REFUSED}, {REFUSED_SIDE} × {REFUSED_SIDE}: {_probe(REFUSED, REFUSED_SIDE)}"


def _probe(pattern: str, side: int) -> str:
    command = [sys.executable, "-m", "benchmarks.training.memory", pattern, str(side)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout.strip()


def _main(pattern: str, side: int) -> str:
    import torch

    import nmsolve.torch as nmt
    from nmsolve.errors import InputError

    removal_at = 2

    def prepare(side: int) -> tuple[nmt.SparseModel, torch.optim.Optimizer]:
        """A layer with its gradient, and an optimizer that holds nothing of its own."""
        model = torch.nn.Linear(side, side, bias=False)
        sparse = nmt.sparsify_(
            model, pattern, nmt.LBC(t_i=0, t_f=2 * removal_at, update_every=removal_at)
        )
        model(torch.randn(8, side)).square().mean().backward()
        return sparse, torch.optim.SGD(model.parameters(), lr=1e-3)

    if pattern == REFUSED:
        try:
            prepare(side)
        except InputError as error:
            return str(error)
        return "not refused: they fit here"
    sparse, optimizer = prepare(256)
    sparse.attach(optimizer)
    for _ in range(removal_at):
        optimizer.step()  # loads the kernels
    sparse, optimizer = prepare(side)
    weights = side * side
    before, _ = _memory()
    sparse.attach(optimizer)
    optimizer.step()
    _reset_peak()
    held, _ = _memory()
    for layer in sparse.layers:
        layer.masked.progress.step = 0  # so that the next step removes nothing either
    optimizer.step()
    _, step_peak = _memory()
    _reset_peak()
    held_again, _ = _memory()
    optimizer.step()
    _, removal_peak = _memory()
    candidates = sparse.layers[0].masked.candidates
    assert candidates is not None
    assert candidates.left < candidates.alive.shape[-1]
    found = Memory(
        pattern=pattern,
        weights=weights,
        tensors=sum(part.nbytes for part in candidates.state().values()) / weights,
        resident=(held - before) / weights,
        step=(step_peak - held) / weights,
        removal=(removal_peak - held_again) / weights,
    )
    return json.dumps(asdict(found))


def _memory() -> tuple[int, int]:
    """Bytes that the process has resident, and the most it had since the peak was reset."""
    lines = dict(
        line.split(":", 1)
        for line in Path("/proc/self/status").read_text().splitlines()
        if ":" in line
    )
    now, peak = (int(lines[field].split()[0]) * 1024 for field in ("VmRSS", "VmHWM"))
    return now, peak


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    print(_main(sys.argv[1], int(sys.argv[2])))
