"""nmt.LightningCallback where a LightningModule steps several optimizers by hand."""

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger

import nmsolve.torch as nmt
from tests.checkpoint.snapshots import differing, hooks_of, snapshot
from tests.training.lightning_models import MARKS, METHODS, fitted, loader, logged, mlp

pytestmark = MARKS


class Manual(pl.LightningModule):
    """Optimizers of its own, stepped by hand: one for each layer's weight, of which the second
    rests at every other batch, and one for biases.
    """

    def __init__(self, closure=False):
        super().__init__()
        self.automatic_optimization = False
        self.net = mlp()
        self.closure = closure

    def configure_optimizers(self):
        return optimizers_of(self.net)

    def training_step(self, batch, index):
        train(self.net, self.optimizers(), batch, index, self.closure, self.manual_backward)


def optimizers_of(net):
    weights = [p for p in net.parameters() if p.dim() == 2]
    first = torch.optim.SGD([weights[0]], lr=0.1, momentum=0.9)
    second = torch.optim.AdamW([weights[1]], lr=1e-2)
    return first, second, torch.optim.SGD([p for p in net.parameters() if p.dim() == 1], lr=0.1)


def train(net, optimizers, batch, index, closure, backward):
    x, y = batch
    first, second, biases = optimizers

    def compute():
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        backward(loss)
        return loss

    if closure:
        first.step(closure=compute)
    else:
        compute()
        first.step()
    biases.step()
    if index % 2:
        second.step()


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_several_optimizers(method, closure):
    """Each moves the masks of what it holds, when it steps."""
    module = Manual(closure)
    sparse = nmt.sparsify_(module, "2:4", METHODS[method])
    trainer = fitted(module, sparse, max_epochs=3)
    assert [hooks_of(optimizer) for optimizer in trainer.optimizers] == [(1, 1), (1, 1), (0, 0)]

    net = mlp()
    optimizers = optimizers_of(net)
    same = nmt.sparsify_(net, "2:4", METHODS[method]).attach(*optimizers)
    for _ in range(3):
        for index, batch in enumerate(loader()):
            train(net, optimizers, batch, index, closure, torch.Tensor.backward)
    assert differing(snapshot(module.net), snapshot(net)) == []
    assert [layer.step for layer in sparse.stats().layers.values()] == [24, 12]
    assert [layer.step for layer in same.stats().layers.values()] == [24, 12]
    assert sparse.finalize_().ok


def test_resumes_several_optimizers(tmp_path):
    module = Manual()
    sparse = nmt.sparsify_(module, "2:4")
    fitted(module, sparse)
    first = Manual()
    fitted(first, nmt.sparsify_(first, "2:4"), max_epochs=1).save_checkpoint(
        tmp_path / "first.ckpt"
    )
    resumed = Manual()
    continued = nmt.sparsify_(resumed, "2:4")
    fitted(resumed, continued, ckpt_path=tmp_path / "first.ckpt")
    assert differing(snapshot(resumed), snapshot(module)) == []
    assert continued.stats() == sparse.stats()


def test_logs_of_several_optimizers(tmp_path):
    """Lightning counts batches for its logs, but the steps of all optimizers in global_step."""
    module = Manual()
    fitted(module, nmt.sparsify_(module, "2:4"), logger=CSVLogger(tmp_path), log_every_n_steps=4)
    rows = logged(tmp_path)
    assert list(rows) == [3, 7, 11, 15]
    assert all(row["nm_density"] == "0.5" for row in rows.values())
