"""What tests of pruning share: a model, layers compared with the oracle, and that errors say what
they should.
"""

import pytest
import torch
from torch import nn

import nmsolve
import nmsolve.torch as nmt
from reference.pruning import adjusted, held_out_rows


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)).eval()


def same_after(first, second):
    """Two models hold the same numbers, whatever they call them."""
    return all(
        torch.allclose(a, b, atol=1e-6)
        for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )


def refuses(call, *words):
    with pytest.raises(nmsolve.InputError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)


def mixed(samples, cols, seed=0, mean=0.5):
    """Correlated inputs with a mean, float64."""
    generator = torch.Generator().manual_seed(seed)
    mix, x = (
        torch.randn(rows, cols, dtype=torch.double, generator=generator) for rows in (cols, samples)
    )
    return (x + mean) @ mix


def mask_by_norms(weight, inputs, sizes, pattern):
    """The mask of largest |W| ‖X‖, for the inputs that are not held out."""
    norms = inputs[torch.from_numpy(~held_out_rows(sizes))].norm(dim=0)
    return nmt.solve(weight.detach(), pattern, weight.detach().abs() * norms).mask


def is_adjusted(layer, was, entry, mask, inputs, dense, sizes, share=1e-2, precision=1e-6):
    """A linear layer in float64, with what is reported of it, equals the oracle.

    It is given inputs (samples, cols), and `dense` by the dense model, in items of these sizes.
    """
    arrays = [t.detach().double().numpy() for t in (was.weight, inputs, dense)]
    bias = None if was.bias is None else was.bias.detach().double().numpy()
    weight, inputs, dense = arrays
    wanted = adjusted(weight, bias, mask.numpy(), inputs, dense, held_out_rows(sizes), share)
    assert entry.method == wanted.method
    assert entry.damping == pytest.approx(wanted.damping, rel=precision)
    errors = [
        (entry.before, wanted.before),
        (entry.after, wanted.after),
        (entry.held_out_before, wanted.held_out_before),
        (entry.held_out_after, wanted.held_out_after),
    ]
    for found, error in errors:
        assert (
            found is error is None
            if error is None
            else (found == pytest.approx(error, rel=precision, abs=1e-12))
        )
    for found, other in ((layer.weight, wanted.weight), (layer.bias, wanted.bias)):
        if other is not None:
            torch.testing.assert_close(
                found.detach().double(),
                torch.from_numpy(other),
                rtol=precision,
                atol=precision * float(abs(other).max()),
            )
    return wanted.method
