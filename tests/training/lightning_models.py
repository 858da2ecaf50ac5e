"""Small modules, data and Lightning's Trainer, for the tests of nmt.LightningCallback."""

import csv

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import nmsolve.torch as nmt

MARKS = [
    # Lightning's advice for machines with more cores: these datasets are eight batches.
    pytest.mark.filterwarnings(
        "ignore:The 'train_dataloader' does not have many workers:UserWarning"
    ),
    # Lightning's own use of a name that torch has given up.
    pytest.mark.filterwarnings(
        "ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"
    ),
]


METHODS = {
    "SRSTE": nmt.SRSTE(decay=0.05),
    "every 3": nmt.SRSTE(update_every=3),
    "STE": nmt.STE(),
    "Fixed": nmt.Fixed(),
    "LBC": nmt.LBC(t_i=0, t_f=9),
    "LBC gradient": nmt.LBC(t_i=0, t_f=9, criterion="gradient"),
}


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4))


def conv():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )


NETS = {"mlp": mlp, "conv": conv}


def optimizer_of(model, name, rate=None):
    if name == "AdamW":
        return torch.optim.AdamW(model.parameters(), lr=rate or 1e-2, weight_decay=0.1)
    return torch.optim.SGD(model.parameters(), lr=rate or 0.1, momentum=0.9, weight_decay=1e-3)


class Net(pl.LightningModule):
    """A network, with a learning rate that halves after every epoch."""

    def __init__(self, net, optimizer="SGD"):
        super().__init__()
        self.net = net
        self.optimizer = optimizer

    def training_step(self, batch, index):
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer = optimizer_of(self.net, self.optimizer)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


def loader():
    """Eight batches of four images, whose class is the channel that is brightest."""
    x = torch.randn(32, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, x.mean((2, 3)).argmax(1)), batch_size=4)


def trainer_of(sparse=None, *callbacks, **options):
    options = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        **options,
    }
    return pl.Trainer(
        callbacks=[*([] if sparse is None else [nmt.LightningCallback(sparse)]), *callbacks],
        **options,
    )


def fitted(module, sparse=None, *callbacks, ckpt_path=None, **options):
    trainer = trainer_of(sparse, *callbacks, **options)
    trainer.fit(module, loader(), ckpt_path=ckpt_path)
    return trainer


class At(pl.Callback):
    """Calls a function after some batches."""

    def __init__(self, steps, call):
        self.steps, self.call = steps, call

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step in self.steps:
            self.call(trainer)


def logged(folder):
    """The rows of CSVLogger, by step."""
    with (folder / "lightning_logs" / "version_0" / "metrics.csv").open() as file:
        return {int(row["step"]): row for row in csv.DictReader(file)}
