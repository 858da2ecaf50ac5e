"""The table of layer kinds: an entry is all that a new kind needs to be planned, masked, verified,
scored and pruned.
"""

import pytest
import torch
from torch import nn

import nmsolve.torch as nmt
from nmsolve.geometry import Geometry
from nmsolve.torch.weights import layer_kinds
from nmsolve.torch.weights.layer_kinds import KINDS, LayerKind, base_of, geometry_of, layer_kind


class Mixing(nn.Module):
    """x @ W, of a layer that no library has."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x):
        return x @ self.kernel


class Stack(nn.Module):
    """A matrix (out, in) for each of several experts."""

    def __init__(self, experts, inputs, outputs):
        super().__init__()
        self.experts = nn.Parameter(torch.randn(experts, outputs, inputs))

    def forward(self, x):
        return torch.einsum("eoi,bi->beo", self.experts, x)


def test_every_entry_has_weights_or_a_reason():
    for kind in KINDS:
        assert bool(kind.weights) != bool(kind.reason)
        assert set(kind.inputs) <= set(kind.weights)


def test_the_first_entry_decides():
    linear = nn.Linear(8, 8)
    sparse = nmt.SparseLinear.from_linear(linear, nmt.solve(linear.weight, "2:4T").mask)
    assert layer_kind(sparse).reason == "a SparseLinear has a mask of its own"
    assert layer_kind(nn.Linear(8, 8)).weights == {"weight": 1}
    assert layer_kind(nn.ReLU()) is None


def test_a_subclass_is_of_its_base_kind():
    class Mine(nn.Conv2d):
        pass

    convolution = Mine(8, 12, 3, groups=4)
    assert base_of(convolution) is nn.Conv2d
    assert geometry_of(convolution, "weight", (12, 2, 3, 3), 1) == Geometry(
        (12, 2, 3, 3), 1, 4, True
    )


def test_one_entry_makes_a_layer_known(monkeypatch):
    model = nn.Sequential(Mixing(8, 12), nn.ReLU(), nn.Linear(12, 4))
    unknown = nmt.plan(model, "2:4")[0]
    assert unknown.reason == "no reduction axis is known for kernel of Mixing"
    entry = LayerKind(modules=(Mixing,), weights={"kernel": 0})
    monkeypatch.setattr(layer_kinds, "KINDS", (entry, *KINDS))
    plan = nmt.plan(model, "2:4")
    assert [(layer.path, layer.axis) for layer in plan.planned] == [("0.kernel", 0), ("2", 1)]
    inputs = [torch.randn(16, 8)]
    scores = nmt.scores.activation(model, inputs)
    norms = torch.cat(inputs).double().norm(dim=0)
    expected = model[0].kernel.detach().abs().double() * norms[:, None]
    assert torch.allclose(scores["0.kernel"].double() / scores["0.kernel"].double().max(),
                          expected / expected.max())  # fmt: skip
    assert [layer.path for layer in nmt.adaprune_(model, plan, inputs)] == ["0.kernel", "2"]
    assert nmt.verify(model, plan).ok
    kept = model[0].kernel.detach() != 0
    assert bool((kept.reshape(2, 4, 12).sum(1) == 2).all())


def test_a_stack_of_matrices_is_planned_along_its_last_axis(monkeypatch):
    model = Stack(3, 8, 4)
    entry = LayerKind(
        modules=(Stack,),
        weights={"experts": 2},
        parts=lambda module, parameter: module.experts.shape[0],
        apart=True,
    )
    monkeypatch.setattr(layer_kinds, "KINDS", (entry, *KINDS))
    sparse = nmt.sparsify_(model, nmt.plan(model, "2:4T"))
    mask = sparse.layers[0].masked.mask
    assert bool((mask.reshape(3, 4, 2, 4).sum(-1) == 2).all())
    assert bool((mask.sum(1) == 2).all())
    assert sparse.finalize_().ok


def test_ibert_is_calibrated():
    quant_modules = pytest.importorskip("transformers.models.ibert.quant_modules")
    layer = quant_modules.QuantLinear(8, 4)
    nn.init.normal_(layer.weight)
    model = nn.ModuleDict({"layer": layer})
    model.forward = lambda x: layer(x)[0]
    assert nmt.plan(model, "2:4").planned[0].path == "layer"
    assert nmt.scores.activation(model, [torch.randn(5, 8)])["layer"].shape == (4, 8)
