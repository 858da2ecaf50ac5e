"""Models whose forwards cannot be suspended, or may seem so: the result is that of the same model
without its oddity, and nothing is left behind.
"""

import asyncio
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from greenlet import greenlet
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import nmsolve.torch as nmt
from tests.pruning.deep_models import rows
from tests.pruning.odd_models import (
    ITEMS,
    OPTIONS,
    SIDE_BY_SIDE,
    Plain,
    Threaded,
    equals,
    is_pruned_as,
    pruned,
)

pytestmark = pytest.mark.usefixtures("nothing_is_left")


class Mode(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def ignoring():
    return warnings.catch_warnings(action="ignore")


CONTEXTS = {
    "inference_mode": torch.inference_mode,
    "enable_grad": torch.enable_grad,
    "sdpa_kernel": lambda: sdpa_kernel(SDPBackend.MATH),
    "catch_warnings": ignoring,
    "a mode": Mode,
    "a device": lambda: torch.device("cpu"),
    "autocast": lambda: torch.autocast("cpu", torch.float16, enabled=False, cache_enabled=False),
}


class Within(Plain):
    """A layer, or two, inside of a context."""

    def __init__(self, context, both):
        super().__init__()
        self.context, self.both = context, both

    def forward(self, x):
        with self.context():
            h = self.a(x).tanh()
            if self.both:
                h = self.b(h).tanh()
        return self.c(h if self.both else self.b(h).tanh())


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("name", CONTEXTS)
def test_contexts_around_layers(name, both):
    for options in OPTIONS:
        found = is_pruned_as(Within(CONTEXTS[name], both), **options)
        assert "layer a is called where the model has entered a context" in found.way


def test_autocast_around_layers():
    class Half(Plain):
        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                h = self.b(self.a(x).tanh()).tanh()
            return self.c(h.float())

    for options in OPTIONS:
        model = Half()
        found = pruned(model, **options)
        assert "layer a is called where" in found.way
        assert all(layer.held_out_after <= layer.held_out_before for layer in found)
        assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("options", [{}, {"update": nmt.Adam(steps=3)}])
def test_autocast_around_narrow_layers_in_whole_passes(options):
    """Whose sums are gathered by outputs; they are what they are without."""

    class Narrow(nn.Module):
        def __init__(self, context):
            super().__init__()
            self.a, self.b, self.context = nn.Linear(16, 32), nn.Linear(32, 16), context

        def forward(self, x):
            with self.context():
                return self.b(self.a(x).tanh())

    items = [torch.randn(300, 16)]
    reports = []
    for autocast in (True, False):
        torch.manual_seed(0)
        model = Narrow(partial(torch.autocast, "cpu", torch.bfloat16, enabled=autocast))
        reports.append(nmt.adaprune_(model, "2:4", items, **options))
    assert "whole passes" in reports[0].way
    for one, two in zip(*reports, strict=True):
        assert one.held_out_after == pytest.approx(two.held_out_after, rel=0.05)


def test_dense_forwards_that_catch_up_do_so_under_the_callers_autocast():
    """Past an expert that no item comes to once the layer before is pruned."""

    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.c = nn.Linear(16, 16, bias=False), nn.Linear(16, 16)
            self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
            self.a.weight.data[0] = torch.tensor([1.0, -0.9, -0.9, -0.9]).repeat(4)

        def forward(self, x):
            h = self.a(x)
            return self.c(self.experts[int(h[0, 0] > 0)](h))

    model = Routed()
    items = [1 + 0.1 * torch.randn(20, 16) for _ in range(3)]
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.warns(UserWarning, match="experts.0"),
    ):
        found = nmt.adaprune_(
            model, "1:4", items, update=nmt.LeastSquares(damping=1e9), criterion="magnitude"
        )
    assert found.way == SIDE_BY_SIDE


def test_no_grad_around_layers_is_no_obstacle():
    class Quiet(Plain):
        @torch.no_grad()
        def forward(self, x):
            return super().forward(x)

    assert is_pruned_as(Quiet()).way == SIDE_BY_SIDE


class Twice(Plain):
    """Uses a weight twice, for all items or for short ones, one behind the other or around b."""

    def __init__(self, some, around):
        super().__init__()
        self.some, self.around = some, around

    def forward(self, x):
        again = not self.some or len(x) < 20
        h = self.a(x).tanh()
        if again and not self.around:
            h = self.a(h).tanh()
        h = self.b(h).tanh()
        return self.c(self.a(h) if again and self.around else h)


class Copied(Twice):
    """The same, that can never be suspended."""

    def forward(self, x):
        self.kept = x
        return super().forward(x)


@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize("some", [False, True])
def test_weights_that_are_used_twice(some, around):
    for options in OPTIONS:
        items = [ITEMS[0], ITEMS[1][:11], ITEMS[2]]
        found = is_pruned_as(
            Twice(some, around), items, twin=Copied(some, around), given=items, **options
        )
        what = "item 1 comes to layer a a second time" if some else "layer a is used more than once"
        assert what in found.way


def test_exceptions_that_a_model_swallows_stay_what_they_are():
    """Of a layer that comes a second time, within code that tries something else on errors."""

    class Trying(Twice):
        def forward(self, x):
            try:
                return super().forward(x)
            except Exception:
                return x

    items = [ITEMS[0], ITEMS[1][:11], ITEMS[2]]
    found = is_pruned_as(Trying(True, True), items, twin=Copied(True, True), given=items)
    assert "item 1 comes to layer a a second time" in found.way


def test_tied_weights():
    class Tied(Plain):
        def __init__(self):
            super().__init__()
            self.b.weight = self.a.weight

    class Kept(Tied):
        def forward(self, x):
            self.kept = x
            return super().forward(x)

    found = is_pruned_as(Tied(), twin=Kept())
    assert "the weight of layer b is used more than once" in found.way
    assert [layer.path for layer in found] == ["a", "c"]


def test_biases_that_layers_share_are_left_alone():
    class Shared(Plain):
        def __init__(self):
            super().__init__()
            self.b.bias = self.a.bias

    model = Shared()
    bias = model.a.bias.clone()
    assert pruned(model).way == SIDE_BY_SIDE
    assert torch.equal(model.a.bias, bias)


def test_weights_that_are_multiplied_past_their_modules_by_some_items():
    class Past(Plain):
        def forward(self, x):
            h = self.a(x).tanh()
            past = len(x) < 20
            h = F.linear(h, self.b.weight, self.b.bias) if past else self.b(h)
            return self.c(h.tanh())

    for some in ([ITEMS[0], ITEMS[1][:11]], [ITEMS[1][:11], ITEMS[0]]):
        found = is_pruned_as(Past(), some, given=some)
        assert "the weight of layer b is multiplied past its module" in found.way


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints(reentrant):
    class Checkpointed(Plain):
        def forward(self, x):
            h = checkpoint(lambda x: self.b(self.a(x).tanh()), x, use_reentrant=reentrant)
            return self.c(h.tanh())

    for options in OPTIONS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nothing requires a gradient
            found = is_pruned_as(Checkpointed(), **options)
        assert found.way == SIDE_BY_SIDE


def test_compiled_models():
    model = Plain()
    compiled = torch.compile(model, backend="eager", dynamic=False)
    with torch.no_grad():
        compiled(ITEMS[0])
    twin = Plain()
    assert pruned(compiled).way == SIDE_BY_SIDE
    pruned(twin)
    equals(model, twin)

    class Partly(Plain):
        def __init__(self):
            super().__init__()
            self.b.compile(backend="eager", dynamic=False)

        @torch.compiler.disable
        def forward(self, x):
            return super().forward(x)

    assert is_pruned_as(Partly()).way == SIDE_BY_SIDE


def test_threads():
    for options in OPTIONS:
        with ThreadPoolExecutor(1) as pool:
            for kept in (pool, None):
                found = is_pruned_as(Threaded(kept), **options)
                assert "layer b is called in a thread that the model starts" in found.way


def test_data_parallel_without_gpus():
    model, twin = Plain(), Plain()
    assert pruned(nn.DataParallel(model)).way == SIDE_BY_SIDE
    pruned(twin)
    equals(model, twin)


class Dropping(Plain):
    def forward(self, x):
        h = F.dropout(self.a(x).tanh(), 0.5)
        return self.c(F.dropout(self.b(h).tanh(), 0.5))


def test_numbers_that_are_drawn_in_eval_mode():
    """Each item draws its own, the dense model those of the same item, and the same seed repeats
    them.
    """
    for options in OPTIONS:
        items = rows(40, (1, 16))
        models = []
        for _ in range(2):
            models.append(Dropping())
            torch.manual_seed(3)
            found = pruned(models[-1], items, **options)
            assert found.way == SIDE_BY_SIDE
        equals(*models, tolerance=0)
        # Of columns that are zero for all items the norms would be, and no row would keep them.
        kept = models[0].b.weight != 0
        assert bool(kept.any(0).all())
        if not options:
            assert found["b"].before < 0.6  # 1.2 for numbers that are not the dense model's


def test_inputs_that_are_changed_in_place():
    class InPlace(Plain):
        def forward(self, x):
            x.mul_(2)
            h = self.a(x).tanh_()
            return self.c(self.b(h).tanh_())

    given = [x.clone() for x in ITEMS]
    assert is_pruned_as(InPlace(), given, given=[2 * x for x in ITEMS]).way == SIDE_BY_SIDE
    assert all(map(torch.equal, given, ITEMS))


def test_sums_that_are_made_in_place():
    class Apart(Plain):
        def forward(self, x):
            x = x + self.a(x)
            x = x + self.b(x)
            return self.c(x)

    class InPlace(Plain):
        """The same tensor with other values is no input that layers share."""

        def forward(self, x):
            x = x.clone()
            x += self.a(x)
            x += self.b(x)
            return self.c(x)

    for options in OPTIONS:
        assert is_pruned_as(InPlace(), twin=Apart(), **options).way == SIDE_BY_SIDE


@pytest.mark.parametrize("length", [1, 3, 12])
def test_calibration_that_comes_in_other_ways(length):
    items = rows(length, (20, 16))
    assert is_pruned_as(Plain(), (x for x in items), given=items).way == SIDE_BY_SIDE
    data = torch.utils.data.DataLoader(torch.cat(items), batch_size=20)
    assert is_pruned_as(Plain(), data, given=items).way == SIDE_BY_SIDE
    shuffled = torch.utils.data.DataLoader(torch.cat(items), batch_size=20, shuffle=True)
    assert pruned(Plain(), shuffled).way == SIDE_BY_SIDE


def test_wherever_it_is_called_from():
    """In contexts, threads, greenlets and coroutines of the caller's, and within a forward."""
    twin = Plain()
    pruned(twin)

    def prune(model):
        assert pruned(model).way == SIDE_BY_SIDE
        equals(model, twin)
        return True

    async def coroutine():
        return prune(Plain())

    class Nested(Plain):
        def forward(self, x):
            prune(Plain())
            return super().forward(x)

    models = [Plain() for _ in range(6)]
    with torch.inference_mode():
        assert prune(models[0])
    with torch.no_grad():
        assert prune(models[1])
    with ThreadPoolExecutor(1) as pool:
        assert all(pool.map(prune, models[2:5]))
    assert greenlet(prune).switch(models[5])
    assert asyncio.run(coroutine())
    assert prune(Nested())
