"""Memory that runs out in a block, for real: under a limit of the process, lifted later."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
    import json, resource, sys
    from pathlib import Path
    import torch
    from torch import nn
    import nmsolve, nmsolve.torch as nmt
    from nmsolve.torch.offload import lent_parameter  # all that a run imports

    torch.set_num_threads(1)
    where = sys.argv[1]

    class Block(nn.Module):
        def __init__(self, index, width=64):
            super().__init__()
            self.index = index
            self.up, self.down = nn.Linear(64, width), nn.Linear(width, 64)

        def forward(self, x):
            if self.index == 16 and where == "forward" and bool((model[15].up.weight == 0).any()):
                x = x.repeat(1, 2**20)[:, :64]  # 2.1 GB
            return x + self.down(self.up(x))

    width = 4096 if where == "layer" else 64  # then XᵀX takes 67 MB, and 134 in float64
    model = nn.Sequential(*(Block(i, width if i == 16 else 64) for i in range(30)))
    items = [torch.randn(8, 64) for _ in range(10)]
    before = [p.detach().clone() for p in model.parameters()]
    nmt.adaprune_(nn.Sequential(nn.Linear(64, 64)), "2:4", items)
    held = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (held + 100_000_000, resource.RLIM_INFINITY))
    said = None
    try:
        nmt.adaprune_(model, "2:4", items, bias=True)
    except nmsolve.SolverError as error:
        said = str(error)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    same = all(map(torch.equal, model.parameters(), before))
    where = "nowhere"
    report = nmt.adaprune_(model, "2:4", items)
    print(json.dumps([said, same, report.way, len(report.layers)]))
"""


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("forward", "calibration item 0, called as Sequential(float32 tensor (8, 64) on cpu)"),
        ("layer", "layer 16.down, of shape (64, 4096)"),
    ],
)
def test_out_of_memory_in_block_17_of_30(where, what):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(PROGRAM), where],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    assert not done.returncode, done.stderr
    said, same, way, layers = json.loads(done.stdout)
    assert said.startswith(f"out of memory on the host with {what}: use fewer or shorter items")
    assert "offload=" in said
    assert "can't allocate memory" in said
    assert same
    assert "side by side" in way
    assert layers == 60
