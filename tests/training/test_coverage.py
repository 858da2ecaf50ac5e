"""Which share of a model's parameters the reports on it say that they cover."""

import copy

import pytest
import torch
from torch import nn

import nmsolve.torch as nmt
from nmsolve.torch.dispatch.packed_linear import PackedLinear
from tests.training.small_net import METHODS, Net, made, train


def counted(model):
    return sum(p.numel() for p in model.parameters())


def planned(plan):
    """Entries of the planned weights, by their shapes, shared ones once."""
    sizes = {entry.owner: torch.Size(entry.shape).numel() for entry in plan.planned}
    return sum(sizes.values())


def test_it_is_a_line_of_the_report():
    model = nn.Sequential(nn.Linear(1024, 2048), nn.Linear(2048, 1024), nn.LayerNorm(1024))
    report = nmt.mask_(model, nmt.plan(model, "2:4", exclude="1"))
    found = report.coverage
    assert (found.covered, found.parameters) == (1024 * 2048, counted(model))
    assert found.share == 1024 * 2048 / counted(model)
    last = str(report).splitlines()[-1]
    assert last == f"covers 2,097,152 of {counted(model):,} parameters (49.9 %)" == str(found)


@pytest.mark.parametrize("name", METHODS)
def test_masks_on_the_model_do_not_count(name):
    """Masks, LBC's candidates and the buffers of norms are no parameters."""
    model, optimizer, sparse = made(name)
    expected = planned(sparse.plan), counted(Net())
    for steps in (range(1), range(1, 6)):
        train(model, optimizer, steps)
        found = nmt.verify(model, sparse.plan).coverage
        assert (found.covered, found.parameters) == expected
        assert sparse.stats().coverage == found
        assert str(sparse.stats()).endswith(str(found))
    found = sparse.finalize_().coverage
    assert (found.covered, found.parameters) == expected
    assert found == nmt.verify(model, sparse.plan).coverage


def shared(masked):
    """A linear layer thrice, once as the same module; a head that is its embedding."""
    torch.manual_seed(0)
    layer, other = nn.Linear(16, 16), nn.Linear(16, 16)
    other.weight = layer.weight
    model = nn.Sequential(nn.Embedding(32, 16), layer, other, layer, nn.Linear(16, 32, bias=False))
    model[4].weight = model[0].weight
    plan = nmt.plan(model, "2:4")
    if masked:
        nmt.sparsify_(model, plan)
    return model, plan


@pytest.mark.parametrize("masked", [True, False])
def test_a_shared_weight_counts_once(masked):
    model, plan = shared(masked)
    found = nmt.verify(model, plan).coverage
    assert [entry.path for entry in plan.planned] == ["1", "2"]
    assert (found.covered, found.parameters) == (16 * 16, 16 * 16 + 2 * 16 + 32 * 16)


def test_what_is_gone_is_not_covered():
    """A head that was swapped after it got a mask."""
    model, _, sparse = made("fixed")
    model.head = nn.Linear(32, 16)
    with pytest.warns(UserWarning, match="head of the plan are gone"):
        report = sparse.finalize_()
    assert report.gone == ("head",)
    assert report.coverage.covered == planned(sparse.plan) - 32 * 16
    assert report.coverage.parameters == counted(model)
    assert str(report).splitlines()[-1] == str(report.coverage)


def test_copies_and_wrappers():
    model, _, sparse = made("fixed")
    copied = torch.optim.swa_utils.AveragedModel(model)
    found = sparse.finalize_(copied).coverage
    assert (found.covered, found.parameters) == (planned(sparse.plan), counted(model))


def test_parameters_that_lazy_modules_have_not_made_are_said():
    model = nn.Sequential(nn.Linear(8, 8), nn.LazyLinear(4))
    report = nmt.mask_(model, "2:4")
    assert report.coverage == nmt.verify(model, "2:4").coverage
    assert (report.coverage.covered, report.coverage.parameters) == (64, 72)
    assert report.coverage.uninitialized == 2
    assert str(report.coverage).endswith("besides 2 that lazy modules have not initialised yet")


def test_parameters_without_values_count():
    """An offloaded model's that nothing is planned for."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8, device="meta"))
    plan = nmt.plan(model, {"0": "2:4", "*": None})
    assert nmt.mask_(model, plan).coverage.parameters == 2 * 72


def test_parametrizations_of_others_count_as_what_is_trained():
    model = nn.Sequential(nn.Linear(8, 8), nn.utils.parametrizations.weight_norm(nn.Linear(8, 4)))
    found = nmt.mask_(model, "2:4").coverage
    assert (found.covered, found.parameters) == (64, 64 + 8 + 4 * 8 + 4 + 4)


def test_packed_weights_are_still_the_models():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    plan = nmt.plan(model, "2:4")
    expected = nmt.mask_(model, plan)
    packed = copy.deepcopy(model)
    packed[0] = PackedLinear.from_linear(packed[0], "dense")
    assert str(nmt.verify(packed, plan)) == str(expected)
    assert nmt.verify(packed, {"1": "2:4"}).coverage.parameters == expected.coverage.parameters


def sharded(rank, masked):
    from torch.distributed.fsdp import fully_shard

    model = nn.Sequential(nn.Linear(16, 10), nn.ReLU(), nn.Linear(10, 8), nn.Linear(8, 3)).double()
    plan = nmt.plan(model, "2:4")
    if masked:
        nmt.sparsify_(model, plan)
    else:
        nmt.mask_(model, plan)
    alone = str(nmt.verify(model, plan))
    fully_shard(model)
    report = nmt.verify(model, plan)
    assert str(report) == alone
    return report.coverage.covered, report.coverage.parameters


@pytest.mark.parametrize("masked", [True, False])
def test_a_sharded_model_counts_as_a_whole(on_two_ranks, masked):
    expected = 16 * 10 + 8 * 3, 16 * 10 + 10 + 10 * 8 + 8 + 8 * 3 + 3
    assert on_two_ranks(sharded, masked) == [expected, expected]
