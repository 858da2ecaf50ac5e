"""The most memory that an offloaded model takes: a few blocks, whatever the number of them."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
    import resource, sys
    from pathlib import Path
    import torch
    from safetensors.torch import save_file
    from torch import nn
    import nmsolve.torch as nmt

    torch.set_num_threads(1)
    width, depth, folder = 1024, 16, Path(sys.argv[1])
    block = 4 * width * width
    weights = {f"{i}.weight": torch.randn(width, width) / 32 for i in range(4)}
    for start in range(0, depth, 4):
        shard = {f"{start + i}.weight": weights[f"{i}.weight"] for i in range(4)}
        save_file(shard, folder / f"{start}.safetensors")
    del weights, shard

    def chain(depth):
        with torch.device("meta"):
            return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(depth)))

    def most():
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    prune = {
        "mask_": lambda model: nmt.mask_(model, "2:4"),
        "adaprune_": lambda model: nmt.adaprune_(model, "2:4", [torch.ones(9, width)]),
    }[sys.argv[2]]
    with nmt.offloaded(chain(2), folder, out=folder.parent / "small") as model:
        prune(model)  # kernels, and memory for a layer at work
    before = most()
    with nmt.offloaded(chain(depth), folder, out=folder.parent / "out") as model:
        prune(model)
        model(torch.ones(3, width))
    print((most() - before) / block)
"""


@pytest.mark.parametrize("prune", ["mask_", "adaprune_"])
def test_no_memory_grows_with_the_number_of_blocks(prune, tmp_path):
    """In blocks of 4 MB, of 16 against two; the model would be 14 more."""
    (tmp_path / "source").mkdir()
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            textwrap.dedent(PROGRAM),
            tmp_path / "source",
            prune,
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        # What is freed goes back to the system at once.
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    assert not done.returncode, done.stderr
    assert float(done.stdout) < 3
