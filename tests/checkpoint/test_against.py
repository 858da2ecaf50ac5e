"""`report --against`: a mask is held to its certificate block by block, whatever the whole matrix
is worth.
"""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nmsolve import checkpoint
from tests.checkpoint.checkpoint_files import weights


@pytest.mark.parametrize("pattern", ["2:4T", "4:8T", "2:4"])
@pytest.mark.parametrize("inverted", [False, True])
def test_a_tiny_block_that_was_inverted(pattern: str, inverted: bool, tmp_path: Path) -> None:
    W = weights(64, 64)
    W[8:16, 16:24] *= 1e-9
    save_file({"fc.weight": W}, tmp_path / "dense.safetensors")
    checkpoint.prune(tmp_path / "dense.safetensors", tmp_path / "sparse.safetensors", pattern)
    if inverted:
        path = next(tmp_path.glob("sparse.masks*"))
        kept = checkpoint.open_masks(tmp_path / "sparse.safetensors")["fc.weight"].copy()
        kept[8:16, 16:24] = ~kept[8:16, 16:24]
        path.unlink()
        for other in tmp_path.glob("sparse.*json"):
            other.unlink()
        save_file({"fc.weight": W * kept}, tmp_path / "sparse.safetensors")
    report = checkpoint.report(
        tmp_path / "sparse.safetensors",
        tmp_path / "page.html",
        against=tmp_path / "dense.safetensors",
    )
    (entry,) = report.pruned
    assert entry.gap is not None
    assert entry.gap < 1e-6
    assert entry.status == ("feasible" if inverted else "optimal")
    assert np.count_nonzero(load_file(tmp_path / "sparse.safetensors")["fc.weight"]) == 64 * 32
