"""A plain model, of which others have an oddity, and what has to hold whatever that is."""

import threading

import torch
from torch import nn

import nmsolve.torch as nmt
from tests.pruning.deep_models import rows

ITEMS = rows(3, (20, 16))
SIDE_BY_SIDE = "every item once through the model, all side by side"
OPTIONS = [{}, {"targets": "own"}, {"sequential": False}]


class Plain(nn.Module):
    """Three layers. Models with an oddity have these weights, and compute the same."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x):
        return self.c(self.b(self.a(x).tanh()).tanh())


class Threaded(Plain):
    """Calls a layer in a thread that it starts or keeps."""

    def __init__(self, pool):
        super().__init__()
        self.pool = pool

    def forward(self, x):
        h = self.a(x).tanh()
        if self.pool is not None:
            return self.c(self.pool.submit(lambda: self.b(h)).result().tanh())
        found = []
        thread = threading.Thread(target=lambda: found.append(self.b(h)))
        thread.start()
        thread.join()
        return self.c(found[0].tanh())


def hooks_of(model):
    return [
        (len(m._forward_pre_hooks), len(m._forward_hooks), len(m._backward_hooks))
        for m in model.modules()
    ]


def pruned(model, items=ITEMS, prune=nmt.adaprune_, **options):
    """The report; hooks and random numbers are as they were."""
    hooks, numbers = hooks_of(model), torch.get_rng_state()
    found = prune(model, {"*": "2:4"}, items, **options)
    assert hooks_of(model) == hooks
    assert torch.equal(torch.get_rng_state(), numbers)
    assert nmt.verify(model, "2:4")
    return found


def equals(odd, plain, tolerance=1e-6):
    """Weights and biases of two models with the same layers."""
    for name in ("a", "b", "c"):
        for one, two in zip(
            getattr(odd, name).parameters(), getattr(plain, name).parameters(), strict=True
        ):
            torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance)


def is_pruned_as(odd, items=ITEMS, twin=None, given=ITEMS, **options):
    """A model with an oddity is pruned as one without; returns its report."""
    found, plain = pruned(odd, items, **options), Plain() if twin is None else twin
    pruned(plain, given, **options)
    equals(odd, plain)
    return found


def numbered(count):
    items = rows(count, (20, 16))
    for i, x in enumerate(items):
        x[0, 0] = i
    return items
