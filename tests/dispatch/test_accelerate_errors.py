"""accelerate_ on a device that runs out of memory or is lost: one error, which says where, and a
model that is as it was.
"""

import pytest
import torch
from torch import nn

import nmsolve
from nmsolve.torch.dispatch.accelerate import accelerate_
from nmsolve.torch.dispatch.sparse_linear import SparseLinear
from tests.dispatch.layers import masked_, same, state_of

pytestmark = pytest.mark.usefixtures("warned_already")


class Breaking(nn.Module):
    """Raises what a device raises, in its nth run."""

    def __init__(self, error, run):
        super().__init__()
        self.layer, self.norm = masked_(nn.Linear(8, 8)), nn.BatchNorm1d(8)
        self.error, self.left = error, [run]

    def forward(self, x):
        y = self.norm(self.layer(x))
        self.left[0] -= 1
        if not self.left[0]:
            raise self.error
        return y


LOST = torch.AcceleratorError(
    "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be"
)
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize(
    ("error", "said"),
    [(LOST, "until the process is started again"), (FULL, "^out of memory on cpu with")],
)
@pytest.mark.parametrize(
    ("run", "what"),
    [(1, "the model's run with example_inputs"), (2, "the model's run with its new layers")],
)
def test_errors_of_a_device_are_explained_and_change_nothing(error, said, run, what):
    model = Breaking(error, run)
    before = state_of(model)
    with pytest.raises(nmsolve.SolverError, match=said) as caught:
        accelerate_(model, torch.ones(4, 8), training=True)
    assert what in str(caught.value)
    assert caught.value.__cause__ is error
    assert same(before, state_of(model))
    accelerate_(model, torch.ones(4, 8), training=True)
    assert type(model.layer) is SparseLinear


class Broken(torch.Tensor):
    """A weight on a device that fails as soon as the weight is looked at."""

    error = None

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if cls.error is not None and function.__name__ in ("ne", "__ne__"):
            raise cls.error
        return super().__torch_function__(function, types, args, kwargs or {})


@pytest.mark.parametrize(
    ("error", "said"), [(LOST, "context of this process is lost"), (FULL, "out of memory on cpu")]
)
def test_errors_of_a_device_name_the_layer(error, said, monkeypatch):
    model = nn.Sequential(masked_(nn.Linear(8, 8)), masked_(nn.Linear(8, 16)))
    model[1].weight = nn.Parameter(model[1].weight.detach().as_subclass(Broken))
    monkeypatch.setattr(Broken, "error", error)
    layers = list(model)
    with pytest.raises(nmsolve.SolverError, match=r"with layer 1 of shape \(16, 8\)") as caught:
        accelerate_(model, torch.ones(4, 8), training=True)
    assert said in str(caught.value)
    assert list(model) == layers
