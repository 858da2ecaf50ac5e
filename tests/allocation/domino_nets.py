"""Models, batches and train steps for the tests of nmt.domino_search."""

import torch
from torch import nn

#: Quick enough for tests: the penalty does in a hundred iterations what it does in ten thousand by
#: default.
QUICK = {"decay": 4.0, "penalty_every": 2, "check_every": 3, "max_steps": 400}


def mlp():
    return nn.Sequential(
        nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 16, bias=False), nn.Tanh(), nn.Linear(16, 3)
    ).double()


def conv():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(16, 16, (1, 2), groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 8),
    ).double()


NETS = {
    "mlp": (
        mlp,
        ["0", "2", "4"],
        lambda g: torch.randn(12, 16, generator=g, dtype=torch.float64),
        {"0": 12, "2": 12, "4": 12},
    ),
    "conv": (
        conv,
        ["2", "4", "7"],
        lambda g: torch.randn(2, 3, 9, 9, generator=g, dtype=torch.float64),
        {"2": 32, "4": 24, "7": 2},
    ),
}


def problem(name, seed=0):
    """A model, its planned layers, its batches, and how often their weights are multiplied."""
    make, paths, batch, positions = NETS[name]
    torch.manual_seed(seed)
    model = make()
    inputs = [batch(torch.Generator().manual_seed(step)) for step in range(7)]
    return model, paths, inputs, positions


def loss_of(outputs):
    return (outputs - outputs.detach().roll(1, 0).sign()).square().mean()


def stepper(inputs, seen=None, paths=()):
    """A train_step over these batches that notes the weights which it is given."""
    count = iter(range(10**9))

    def train_step(model):
        step = next(count)
        if seen is not None:
            seen.append(
                [model.get_submodule(path).weight.detach().clone().numpy() for path in paths]
            )
        return loss_of(model(inputs[step % len(inputs)]))

    return train_step
