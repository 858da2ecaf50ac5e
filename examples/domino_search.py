"""Find n of every 16 for each layer of a digits classifier, and retrain it: `python
examples/domino_search.py [--tiny]`.
"""

from __future__ import annotations

import argparse
import copy

import torch
from sklearn.datasets import load_digits
from torch import nn

import nmsolve.torch as nmt


def main(steps: int) -> None:
    """Train, search, retrain, and compare with one pattern for all layers that keeps as many
    weights.
    """
    torch.manual_seed(0)
    pixels, digits = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(digits)
    train, test = torch.randperm(len(labels)).split((1197, 600))
    model = nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
    )

    def loss_of(model: nn.Module) -> torch.Tensor:
        batch = train[torch.randint(len(train), (64,))]
        return nn.functional.cross_entropy(model(images[batch]), labels[batch])

    def trained(model: nn.Module, plan: nmt.Plan | None = None) -> float:
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        sparse = (
            None
            if plan is None
            else nmt.sparsify_(model, plan, nmt.SRSTE(decay=0.2)).attach(optimizer)
        )
        for _ in range(steps):
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
        assert sparse is None or sparse.finalize_().ok
        return (model(images[test]).argmax(1) == labels[test]).float().mean().item()

    print(f"dense: accuracy {trained(model):.1%}")
    uniform = nmt.plan(model, "2:16")
    budget = nmt.Params(sum(layer.shape[0] * layer.shape[1] for layer in uniform.planned) // 8)
    # λ is 0.1 by default and takes tens of thousands of iterations; a small model stands a larger
    # one.
    found = nmt.domino_search(model, loss_of, budget, m=16, decay=2.0, check_every=10)
    print(found)
    accuracy = {
        name: trained(copy.deepcopy(model), plan)
        for name, plan in (("searched", found), ("2:16", uniform))
    }
    print(", ".join(f"{name}: accuracy {share:.1%}" for name, share in accuracy.items()))

    dense = [layer for layer in found.layers if layer.pattern is None]
    kept = sum(layer.shape[0] * layer.shape[1] * layer.pattern.density for layer in found.planned)
    assert (
        kept + sum(layer.shape[0] * layer.shape[1] for layer in dense)
        == found.kept_weights
        <= budget.limit
    )
    assert steps < 300 or min(accuracy.values()) > 0.93


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a few steps: shows that it runs")
    main(20 if parser.parse_args().tiny else 500)
