"""Train a 2:4T classifier of handwritten digits by SR-STE in a plain loop: `python
examples/plain_loop.py [--tiny]`.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn

import nmsolve.torch as nmt


def main(steps: int) -> None:
    """Train, take the masks off, and check that the zeros are where they should be."""
    torch.manual_seed(0)
    pixels, digits = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(digits)
    train, test = torch.randperm(len(labels)).split((1197, 600))
    model = nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    plan = nmt.plan(model, "2:4T", exclude="4")  # ten outputs do not consist of blocks of four
    print(plan)
    sparse = nmt.sparsify_(model, plan, nmt.SRSTE(decay=0.2))
    sparse.attach(
        optimizer
    )  # from here on, masks follow the optimizer's steps: the loop below knows nothing of them

    for _ in range(steps):
        batch = train[torch.randint(len(train), (64,))]
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    print(sparse.stats())
    masked = model(images[test])
    report = sparse.finalize_()  # plain modules again, with the zeros in their weights
    accuracy = (model(images[test]).argmax(1) == labels[test]).float().mean()
    print(f"accuracy {accuracy:.1%} after {steps} steps")

    assert report.ok
    assert torch.equal(model(images[test]), masked), "what was trained is what is left"
    assert type(model[0]) is nn.Linear
    for layer in (model[0], model[2]):
        assert nmt.verify(layer.weight, "2:4T").ok
        assert layer.weight.count_nonzero() <= layer.weight.numel() // 2
    assert steps < 300 or accuracy > 0.95


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a few steps: shows that it runs")
    main(20 if parser.parse_args().tiny else 500)
