"""nmt.LightningCallback over the life of a Trainer: logs, wrong models, frozen layers, fitting
again, finalizing.
"""

import pytest
from lightning.pytorch.loggers import CSVLogger

import nmsolve
import nmsolve.torch as nmt
from tests.checkpoint.snapshots import differing, hooks_of, snapshot
from tests.training.lightning_models import (
    MARKS,
    At,
    Net,
    fitted,
    loader,
    logged,
    mlp,
    optimizer_of,
    trainer_of,
)

pytestmark = MARKS


@pytest.mark.parametrize("accumulated", [1, 2])
def test_logs(tmp_path, accumulated):
    """With every row that the Trainer logs, and as masks are after that step."""
    module = Net(mlp())
    sparse = nmt.sparsify_(module, "2:4T", nmt.STE())
    found = {}
    record = At(
        range(1, 17), lambda trainer: found.setdefault(trainer.global_step - 1, sparse.stats())
    )
    options = {
        "max_epochs": 2 * accumulated,
        "accumulate_grad_batches": accumulated,
        "log_every_n_steps": 3,
    }
    fitted(module, sparse, record, logger=CSVLogger(tmp_path), **options)
    rows = logged(tmp_path)
    assert list(rows) == [2, 5, 8, 11, 14]
    for step, row in rows.items():
        assert row["loss"]
        assert float(row["nm_density"]) == 0.5
        assert float(row["nm_flips"]) == found[step].flips
        assert float(row["nm_sad_share"]) == pytest.approx(found[step].sad_share)
    assert float(rows[14]["nm_flips"]) > float(rows[2]["nm_flips"]) > 0


def test_logs_nothing(tmp_path):
    """Where the Trainer does not log, and in its rehearsal."""
    module = Net(mlp())
    sparse = nmt.sparsify_(module, "2:4")
    fitted(module, sparse, logger=CSVLogger(tmp_path), log_every_n_steps=0)
    assert sparse.stats().step == 16
    fitted(module, sparse, fast_dev_run=True)
    assert sparse.stats().step == 17


def test_errors():
    for wrong in (Net(mlp()), None, nmt.SRSTE()):
        with pytest.raises(
            nmsolve.InputError, match=f"what sparsify_ returned, got {type(wrong).__name__}"
        ):
            nmt.LightningCallback(wrong)
    sparse = nmt.sparsify_(mlp(), "2:4")
    trainer = trainer_of(sparse)
    with pytest.raises(
        nmsolve.InputError,
        match="the Net is not, and does not contain, the model that was sparsified",
    ):
        trainer.fit(Net(mlp()), loader())
    assert hooks_of(trainer.optimizers[0]) == (0, 0)
    assert sparse.stats().step == 0

    class Part(Net):
        def configure_optimizers(self):
            return optimizer_of(self.net[3], "SGD")

    module = Part(mlp())
    trainer = trainer_of(nmt.sparsify_(module, "2:4"))
    with pytest.raises(nmsolve.InputError, match=r"SGD does not hold the weight of net\.1"):
        trainer.fit(module, loader())
    assert hooks_of(trainer.optimizers[0]) == (0, 0)


def test_frozen_layers():
    """Their masks stay, and the optimizer need not hold them."""

    class Part(Net):
        def configure_optimizers(self):
            return optimizer_of(self.net[3], "SGD")

    module = Part(mlp())
    module.net[1].requires_grad_(False)
    sparse = nmt.sparsify_(module, "2:4")
    before = snapshot(module.net[1])
    fitted(module, sparse)
    assert differing(snapshot(module.net[1]), before) == []
    assert [layer.step for layer in sparse.stats().layers.values()] == [0, 16]
    assert sparse.finalize_().ok


def test_fits_twice():
    """With the same Trainer, and then with another: masks are attached once, to the last
    optimizer.
    """
    module = Net(mlp())
    sparse = nmt.sparsify_(module, "2:4", nmt.STE())
    trainer = fitted(module, sparse)
    first = trainer.optimizers[0]
    assert hooks_of(first) == (1, 1)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module, loader())
    assert hooks_of(trainer.optimizers[0]) == (1, 1)
    assert sparse.stats().step == 32
    assert sparse.stats().layers["net.1"].refreshes == 32
    last = trainer.optimizers[0]
    other = fitted(module, sparse, max_epochs=1)
    assert hooks_of(first) == hooks_of(last) == (0, 0)
    assert hooks_of(other.optimizers[0]) == (1, 1)
    assert sparse.stats().step == 40


def test_two_models_in_one_module():
    """Each with a plan, a method and a callback of its own, at the steps of one optimizer."""
    module = Net(mlp())
    first, second = (
        nmt.sparsify_(module.net[1], "2:4T"),
        nmt.sparsify_(module.net[3], "1:4", nmt.Fixed()),
    )
    trainer = fitted(module, first, nmt.LightningCallback(second))
    assert hooks_of(trainer.optimizers[0]) == (2, 2)
    assert first.stats().step == second.stats().step == 16
    assert first.stats().flips > 0 == second.stats().flips
    assert first.finalize_().ok
    assert second.finalize_().ok


def test_after_finalize():
    """Another fit trains a plain module: no hooks, no masks, the numbers of one that never had
    them.
    """
    module = Net(mlp())
    sparse = nmt.sparsify_(module, "2:4")
    trainer = fitted(module, sparse)
    assert sparse.finalize_().ok
    assert hooks_of(trainer.optimizers[0]) == (0, 0)
    trainer.fit_loop.max_epochs = 4
    with pytest.raises(nmsolve.InputError, match="finalized"):
        trainer.fit(module, loader())
    plain = Net(mlp())
    plain.load_state_dict(snapshot(module))
    assert hooks_of(fitted(module).optimizers[0]) == (0, 0)
    fitted(plain)
    assert differing(snapshot(module), snapshot(plain)) == []
    assert not nmt.verify(module, sparse.plan).ok


def test_finalized_while_training(tmp_path):
    """By a callback, at the end of an epoch: the steps after it are dense ones, and logs say
    nothing of masks. (Within an epoch Lightning repeats what was logged.)
    """
    module = Net(mlp())
    sparse = nmt.sparsify_(module, "2:4")
    reports = []
    end = At((8,), lambda trainer: reports.append(sparse.finalize_()))
    trainer = fitted(module, sparse, end, logger=CSVLogger(tmp_path), log_every_n_steps=4)
    assert [report.ok for report in reports] == [True]
    assert hooks_of(trainer.optimizers[0]) == (0, 0)
    assert trainer.global_step == 16
    assert {step: row["nm_density"] for step, row in logged(tmp_path).items()} == {
        3: "0.5",
        7: "0.5",
        11: "",
        15: "",
    }
    assert not nmt.verify(module, sparse.plan).ok
