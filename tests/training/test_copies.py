"""Deep copies and averages of a model in training, with masks of their own."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import nmsolve
import nmsolve.torch as nmt
from tests.checkpoint.snapshots import differing, snapshot
from tests.training.small_net import ALL, Net, batch, made, masks_of, train


@ALL
def test_copies(name):
    """A deep copy has masks of its own, trains on its own, is finalized on its own; the original
    does not notice.
    """
    model, opt, sparse = made(name)
    train(model, opt, range(3))
    twin = copy.deepcopy(model)
    for ours, theirs in zip(masks_of(model), masks_of(twin), strict=True):
        assert ours is not theirs
        assert torch.equal(ours.mask, theirs.mask)
        assert ours.mask.data_ptr() != theirs.mask.data_ptr()
    held = snapshot(twin)
    train(model, opt, range(3, 6))
    assert differing(snapshot(twin), held) == []
    twin.load_state_dict(model.state_dict())
    assert differing(snapshot(twin), snapshot(model)) == []
    model.eval(), twin.eval()
    before = snapshot(model)
    assert sparse.finalize_(twin).ok
    assert not masks_of(twin)
    assert differing(snapshot(model), before) == []
    x = batch(0)[0]
    torch.testing.assert_close(model(x), twin(x))
    model.train()
    train(model, opt, range(6, 7))
    assert sparse.finalize_().ok
    third = copy.deepcopy(model)
    assert type(third.head) is nn.Linear


@ALL
@pytest.mark.parametrize("averaging", ["swa", "ema"])
def test_averages(name, averaging):
    """AveragedModel averages the dense weights and copies the masks as they are now."""
    model, opt, sparse = made(name)
    average = AveragedModel(
        model, multi_avg_fn=get_ema_multi_avg_fn(0.5) if averaging == "ema" else None
    )
    for step in range(6):
        train(model, opt, [step])
        average.update_parameters(model)
    for ours, theirs in zip(masks_of(model), masks_of(average), strict=True):
        assert torch.equal(ours.mask, theirs.mask)
    assert nmt.verify(average.module, sparse.plan).ok
    average.eval()
    x = batch(0)[0]
    before = average(x)
    assert sparse.finalize_(average.module).ok
    torch.testing.assert_close(average(x), before, rtol=1e-5, atol=1e-6)
    assert sparse.finalize_().ok


@pytest.mark.parametrize("name", ["ste", "fixed", "lbc"])
def test_refreshing_masks_by_hand(name):
    """For weights that came from elsewhere, and masks that an average has mixed."""
    model, opt, sparse = made(name)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    for step in range(6):
        train(model, opt, [step])
        average.update_parameters(model)
    if name != "fixed":
        assert not nmt.verify(average.module, sparse.plan)
        with pytest.raises(nmsolve.SolverError, match=r"use_buffers(.|\n)*refresh_\(\)"):
            sparse.finalize_(average.module)
    masks = [masked.mask.clone() for masked in masks_of(model)]
    assert sparse.refresh_(average.module).finalize_(average.module).ok
    assert all(
        torch.equal(mask, masked.mask) for mask, masked in zip(masks, masks_of(model), strict=True)
    )
    model.load_state_dict(Net().state_dict(), strict=False)  # a dense checkpoint
    sparse.refresh_()
    for layer in sparse.layers:
        if name != "lbc" and layer.path == "head":
            assert torch.equal(layer.masked.mask, nmt.solve(layer.weight, "2:4").mask)
    train(model, opt, range(2))
    assert sparse.finalize_().ok
    with pytest.raises(nmsolve.InputError, match="finalized"):
        sparse.refresh_()
