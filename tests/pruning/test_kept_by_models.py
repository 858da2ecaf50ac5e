"""Models that keep something of an item outside of its forward, where another one's would find it:
the result is that of the same model without, and nothing is left behind.
"""

import pytest
import torch

from tests.pruning.odd_models import ITEMS, OPTIONS, SIDE_BY_SIDE, Plain, is_pruned_as, pruned

pytestmark = pytest.mark.usefixtures("nothing_is_left")


class Attribute(Plain):
    def forward(self, x):
        self.kept = x
        h = self.b(self.a(x).tanh() + 0 * self.kept.sum()).tanh()
        return self.c(h if self.kept is x else torch.zeros_like(h))


class Length(Plain):
    """The first item and the last are as long as one another."""

    def forward(self, x):
        self.length = len(x)
        h = self.a(x).tanh() * (1 if self.length == len(x) else 3)
        return self.c(self.b(h).tanh())


class Stack(Plain):
    def __init__(self):
        super().__init__()
        self.stack = []

    def forward(self, x):
        self.stack.append(x)
        h = self.a(x).tanh()
        return self.c(self.b(h if self.stack.pop() is x else -h).tanh())


class Buffer(Plain):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x):
        self.mean.copy_(x.mean(0))
        h = self.a(x).tanh() + (self.mean - x.mean(0))
        return self.c(self.b(h).tanh())


class Hooked(Plain):
    """Hooks of its own that keep tensors in a list of the model."""

    def __init__(self):
        super().__init__()
        self.outputs = []
        for layer in (self.a, self.b):
            layer.register_forward_hook(lambda module, args, y: self.outputs.append(y))

    def forward(self, x):
        h = self.b(self.a(x).tanh()).tanh()
        y = self.c(h + 0 * self.outputs[0].sum())
        self.outputs.clear()
        return y


class Closed(Plain):
    """Keeps tensors where modules do not show it."""

    def __init__(self):
        super().__init__()
        kept = {}

        def forward(x):
            kept["x"] = x
            h = self.a(x).tanh() + (kept["x"] - x)
            h = self.b(h).tanh() + (kept["x"] - x)
            return self.c(h)

        self.forward = forward


class Cache(Plain):
    """As `Closed`, in an object's attribute."""

    def __init__(self):
        super().__init__()
        self.cache = type("Cache", (), {})()

    def forward(self, x):
        self.cache.x = x
        h = self.a(x).tanh() + (self.cache.x - x)
        return self.c(self.b(h).tanh() + (self.cache.x - x))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Attribute, "changes kept"),
        (Stack, "changes stack"),
        (Buffer, "changes mean"),
        (Hooked, "changes outputs"),
        (Closed, "keeps something of an item outside"),
        (Cache, "keeps something of an item outside"),
    ],
)
def test_models_that_keep_something_of_an_item(kind, says):
    for options in OPTIONS:
        found = is_pruned_as(kind(), **options)
        assert found.way.startswith("whole passes")
        assert says in found.way


def test_what_is_kept_of_some_items_alone():
    """The first item goes through as if alone: the last one leaves there what it had left."""
    for options in OPTIONS:
        items = [ITEMS[0], ITEMS[1][:11], ITEMS[2]]
        found = is_pruned_as(Length(), items, given=items, **options)
        assert "changes length" in found.way


def test_counters_are_whole_after_forwards_that_did_not_end():
    class Counting(Plain):
        depth, seen = 0, None

        def __init__(self):
            super().__init__()
            self.depth, self.seen = 0, {"calls": 0}

        def forward(self, x):
            self.depth += 1
            self.seen["calls"] += 1
            y = super().forward(x)
            self.depth -= 1
            return y

    model = Counting()
    found = is_pruned_as(model)
    assert "changes depth" in found.way
    assert model.depth == 0

    class After(Plain):
        """Of forwards that are ended at the last layer."""

        def forward(self, x):
            h = self.b(self.a(x).tanh()).tanh()
            self.open = True
            y = self.c(h)
            self.open = False
            return y

    model = After()
    model.open = False
    pruned(model)
    assert model.open is False


def test_tables_that_are_made_once_are_nothing_of_an_item():
    class Lazy(Plain):
        table = None

        def forward(self, x):
            if self.table is None:
                self.table = torch.ones(16)
            return super().forward(x * self.table)

    assert is_pruned_as(Lazy()).way == SIDE_BY_SIDE
