"""The plain exchanges that `python -m benchmarks.pruning_settings` measures: each lowers the error,
the pattern stays, and in the end no other gains.
"""

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

import nmsolve.torch as nmt
from reference.swaps import LEAST, cycles_of_four, single_swaps

SWAPS = {"2:4": single_swaps, "2:4T": cycles_of_four}


def error(weight, target, hessian):
    return ((weight - target) @ hessian * (weight - target)).sum(1)


def exchanged(weight, gradient, hessian, row, drop, keep):
    """A row without a weight, and with the best of another in its place."""
    new = weight[row].clone()
    new[drop] = 0
    left = gradient[row, keep] - weight[row, drop] * hessian[drop, keep]
    new[keep] = -left / hessian[keep, keep]
    return new


@given(pattern=st.sampled_from(list(SWAPS)), seed=st.integers(0, 99))
def test_exchanges_go_down_until_none_gains(pattern, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 8, generator=generator, dtype=torch.float64)
    target = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    hessian = x.T @ x
    mask = nmt.solve(target.abs(), pattern).mask
    weight = torch.where(mask, target, 0.0)
    errors, done = [error(weight, target, hessian)], 0
    for most in (1, 2, 1000):
        found, done = SWAPS[pattern](weight, target, hessian, 4, most)
        errors.append(error(found, target, hessian))
        assert nmt.verify(found, pattern)
        assert ((found != 0).sum() == mask.sum()).item()
    for before, after in itertools.pairwise(errors):
        assert (after.sum() <= before.sum() + 1e-9).item()
    assert (done > 0) == bool((errors[-1] < errors[0]).any())
    gradient = (found - target) @ hessian
    for row in range(8):
        for drop in found[row].nonzero().flatten().tolist():
            for keep in range(drop // 4 * 4, drop // 4 * 4 + 4):
                if found[row, keep]:
                    continue
                new = exchanged(found, gradient, hessian, row, drop, keep)
                gain = float(errors[-1][row] - error(new[None], target[row], hessian))
                if pattern == "2:4":
                    assert gain <= LEAST * float(errors[-1][row]) * (1 + 1e-6) + 1e-9
                    continue
                for other in range(row // 4 * 4, row // 4 * 4 + 4):
                    if found[other, keep] and not found[other, drop]:
                        new = exchanged(found, gradient, hessian, other, keep, drop)
                        both = gain + float(
                            errors[-1][other] - error(new[None], target[other], hessian)
                        )
                        band = errors[-1][row // 4 * 4 : row // 4 * 4 + 4].sum()
                        assert both <= LEAST * float(band) * (1 + 1e-6) + 1e-9
