"""Checkpoints of Lightning's Trainer: resuming bit for bit, in the middle of an epoch, other
plans.
"""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import nmsolve
import nmsolve.torch as nmt
from tests.checkpoint.snapshots import differing, hooks_of, snapshot
from tests.training.lightning_models import MARKS, METHODS, NETS, At, Net, fitted, mlp

pytestmark = MARKS


@pytest.mark.parametrize("whole", [False, True], ids=["a model inside", "the module itself"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("name", "optimizer"), [("mlp", "SGD"), ("conv", "AdamW")])
def test_resumes_bit_for_bit(tmp_path, name, optimizer, method, whole):
    """Two epochs, and one, new objects, and another one."""

    def started():
        module = Net(NETS[name](), optimizer)
        pattern = "2:4" if "LBC" in method or name == "mlp" else "2:4T"
        return module, nmt.sparsify_(module if whole else module.net, pattern, METHODS[method])

    module, sparse = started()
    trainer = fitted(module, sparse)

    first, halfway = started()
    fitted(first, halfway, max_epochs=1).save_checkpoint(tmp_path / "first.ckpt")
    assert halfway.stats().step == 8

    resumed, continued = started()
    second = fitted(resumed, continued, ckpt_path=tmp_path / "first.ckpt")
    assert second.global_step == 16
    assert differing(snapshot(resumed), snapshot(module)) == []
    assert continued.stats() == sparse.stats()
    assert continued.stats().step == 16
    moments = [
        [
            value
            for entry in t.optimizers[0].state_dict()["state"].values()
            for value in entry.values()
            if value is not None
        ]
        for t in (trainer, second)
    ]
    assert moments[0]
    assert all(torch.equal(a, b) for a, b in zip(*moments, strict=True))
    assert hooks_of(second.optimizers[0]) == (1, 1)
    assert continued.finalize_().ok
    sparse.finalize_()
    assert differing(snapshot(resumed), snapshot(module)) == []


def test_checkpoints_while_training(tmp_path):
    """Those of ModelCheckpoint, in the middle of an epoch and at its end, hold the masks of their
    steps.
    """
    module = Net(mlp())
    sparse = nmt.sparsify_(module.net, "2:4", nmt.STE())
    states = {}
    record = At((5, 10, 15), lambda trainer: states.update({trainer.global_step: snapshot(module)}))
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=5, save_top_k=-1)
    fitted(module, sparse, record, saver, enable_checkpointing=True)
    for step in (5, 10, 15):
        other = Net(mlp())
        loaded = nmt.sparsify_(other.net, "2:4", nmt.STE())
        other.load_state_dict(
            torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)["state_dict"]
        )
        assert loaded.stats().step == step
        assert differing(snapshot(other), states[step]) == []


@pytest.mark.parametrize(
    "part", ["", "net", "net.1"], ids=["the module itself", "a model inside", "a layer inside"]
)
def test_checkpoints_of_another_plan(tmp_path, part):
    """An error that names the layer, and nothing of the sparsified model is loaded."""

    def started(pattern):
        module = Net(mlp())
        return module, nmt.sparsify_(module.get_submodule(part), pattern)

    fitted(*started("2:4")).save_checkpoint(tmp_path / "end.ckpt")
    other, sparse = started("1:4")
    before = snapshot(sparse.model)
    with pytest.raises(nmsolve.InputError, match=r"net\.1\.weight.*pattern 2:4, the plan 1:4"):
        fitted(other, sparse, ckpt_path=tmp_path / "end.ckpt")
    assert differing(snapshot(sparse.model), before) == []
    assert sparse.stats().step == 0
