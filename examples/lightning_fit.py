"""Train a 2:4T network with Lightning's Trainer: `python examples/lightning_fit.py [--tiny]`."""

from __future__ import annotations

import argparse
import tempfile

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import nmsolve.torch as nmt


class Classifier(pl.LightningModule):
    """Of handwritten digits. Knows nothing of masks."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU())
        self.head = nn.Linear(128, 10)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        """The loss of a batch."""
        return nn.functional.cross_entropy(self.head(self.body(batch[0])), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def main(steps: int, folder: str) -> None:
    """Train, take the masks off, and check that the zeros are where they should be."""
    pl.seed_everything(0, verbose=False)
    pixels, digits = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(digits)
    data = DataLoader(TensorDataset(images[:1197], labels[:1197]), 64, shuffle=True)
    model = Classifier()
    plan = nmt.plan(model, "2:4T", include="body")
    sparse = nmt.sparsify_(model, plan, nmt.SRSTE(decay=0.2))
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(
        max_steps=steps, callbacks=[nmt.LightningCallback(sparse)], default_root_dir=folder, **quiet
    )
    trainer.fit(model, data)
    print(sparse.stats())
    assert sparse.stats().step == steps
    assert sparse.finalize_().ok  # plain modules again, with the zeros in their weights
    assert nmt.verify(model, plan).ok
    accuracy = (
        (model.cpu().head(model.body(images[1197:])).argmax(1) == labels[1197:]).float().mean()
    )
    print(f"accuracy {accuracy:.1%} after {steps} steps")
    assert steps < 300 or accuracy > 0.9


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a few steps: shows that it runs")
    with tempfile.TemporaryDirectory() as folder:
        main(5 if parser.parse_args().tiny else 500, folder)
