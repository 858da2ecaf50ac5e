"""Which path blocks take. Results are right on every path, so a part that stops working only shows
here, and in the benchmarks.
"""

import numpy as np
import pytest

import nmsolve

SHARES = {"normal": 0.0005, "bf16": 0.002, "integers": 0.01, "zeros": 0.01, "equal": 0.0}


def scores(family):
    rng = np.random.default_rng(11)
    W = rng.standard_normal((512, 512), dtype=np.float32)
    if family == "bf16":
        return (W.view(np.uint32) & 0xFFFF0000).view(np.float32)
    if family == "integers":
        return rng.integers(0, 8, W.shape).astype(np.float32)
    if family == "zeros":
        return np.where(rng.random(W.shape) < 0.6, np.float32(0), W)
    return np.ones_like(W) if family == "equal" else W


@pytest.mark.parametrize("pattern", ["4:8T", "8:16T"])
@pytest.mark.parametrize("family", SHARES)
def test_few_blocks_need_augmenting_paths(family, pattern):
    result = nmsolve.solve(scores(family), pattern)
    blocks = 512**2 // result.pattern.m**2
    proven = sum(value for key, value in result.stats.items() if key.startswith("proven_at_level"))
    assert proven + result.stats["augmented"] == blocks
    assert result.stats["augmented"] <= np.ceil(SHARES[family] * blocks)


@pytest.mark.parametrize("pattern", ["4:8T", "8:16T"])
@pytest.mark.parametrize("family", ["normal", "bf16", "integers", "zeros"])
def test_the_first_level_proves_most(family, pattern):
    result = nmsolve.solve(scores(family), pattern)
    assert result.stats["proven_at_level_0"] >= 0.7 * 512**2 / result.pattern.m**2
