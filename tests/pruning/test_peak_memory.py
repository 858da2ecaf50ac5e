"""The most memory that pruning takes beside the model: that of a layer at work, whatever the number
of layers, and of a piece of its rows, however many it has.
"""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
    import resource, sys
    import torch
    from torch import nn
    import nmsolve.torch as nmt

    torch.set_num_threads(1)
    width = 256

    def chain(depth):
        return nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))

    def most():
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    deep, items = chain(32), [torch.randn(150, width) for _ in range(3)]
    prune = getattr(nmt, sys.argv[1])
    prune(chain(2), "2:4", items)  # kernels, and memory for a layer at work
    before = most()
    found = prune(deep, "2:4", items)
    block = 4 * width * width
    print((most() - before) / block, found.way)
"""

TALL = """
    import resource, sys
    import torch
    from torch import nn
    import nmsolve.torch as nmt

    torch.set_num_threads(1)
    width = 256
    items = [torch.randn(40, width).cumsum(1).bfloat16() for _ in range(12)]

    def head(rows):
        with torch.device("meta"):
            layer = nn.Linear(width, rows, bias=False, dtype=torch.bfloat16)
        layer.to_empty(device="cpu").weight.data.uniform_(-1, 1)
        return layer

    def most():
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    prune = getattr(nmt, sys.argv[1])
    prune(head(1024), "2:4", items)
    tall = head(int(sys.argv[2]))
    before = most()
    (found,) = prune(tall, "2:4", items)
    print((most() - before) / 2**20, found.held_out_after < found.held_out_before)
"""


def run(program, *arguments):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program), *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        check=True,
        # What is freed goes back to the system at once.
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    return done.stdout


@pytest.mark.parametrize("prune", ["adaprune_", pytest.param("sparsegpt_", marks=pytest.mark.long)])
def test_no_memory_grows_with_the_rows_of_a_layer(prune):
    """Of 4 and 16 million weights, of which 4 million are pruned at a time; outputs of the layer
    that its own forward makes are 1 MiB for every million.
    """
    peaks = []
    for rows in (2**14, 2**16):
        peak, adjusted = run(TALL, prune, str(rows)).split()
        assert adjusted == "True"
        peaks.append(float(peak))
    assert peaks[1] < peaks[0] + 60, peaks
    assert peaks[1] < 400, peaks


@pytest.mark.parametrize("prune", [pytest.param("adaprune_", marks=pytest.mark.long), "sparsegpt_"])
def test_no_memory_grows_with_the_number_of_blocks(prune):
    """In blocks of 256 kB, of 32 against two; copies of the dense model would be 30 more."""
    blocks, way = run(PROGRAM, prune).split(maxsplit=1)
    assert "side by side" in way
    assert float(blocks) < 8
