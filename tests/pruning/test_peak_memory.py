"""The most memory that pruning takes beside the model: that of a layer at work, whatever the number
of layers.
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


@pytest.mark.parametrize("prune", ["adaprune_", "sparsegpt_"])
def test_no_memory_grows_with_the_number_of_blocks(prune):
    """In blocks of 256 kB, of 32 against two; copies of the dense model would be 30 more."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(PROGRAM), prune],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        check=True,
        # What is freed goes back to the system at once.
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    blocks, way = done.stdout.split(maxsplit=1)
    assert "side by side" in way
    assert float(blocks) < 8
