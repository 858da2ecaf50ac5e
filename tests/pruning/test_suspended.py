"""Models whose forwards cannot be suspended, or end in ways of their own: the result is that of the
same model without its oddity, or a clear error, and nothing is left behind.
"""

import asyncio
import gc
import itertools
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import nmsolve.torch as nmt
from nmsolve.torch.calibration.suspended import Forward, _surroundings
from tests.checkpoint.snapshots import differing, snapshot
from tests.pruning.deep_models import rows
from tests.pruning.pruning_models import refuses

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


def suspended():
    """Forwards that have begun, and neither ended nor been ended."""
    gc.collect()
    found = [g for g in gc.get_objects() if type(g) is greenlet]
    return [g for g in found if g and isinstance(getattr(g, "forward", None), Forward)]


def hooks_of(model):
    return [
        (len(m._forward_pre_hooks), len(m._forward_hooks), len(m._backward_hooks))
        for m in model.modules()
    ]


@pytest.fixture(autouse=True)
def nothing_is_left():
    """Of forwards that were under way, whether they ended or failed."""
    before = _surroundings()
    yield
    assert getcurrent().parent is None
    assert not suspended()
    assert _surroundings() == before
    callback = torch._C._dynamo.eval_frame.get_eval_frame_callback
    assert callback() is None


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


def test_no_grad_around_layers_is_no_obstacle():
    class Quiet(Plain):
        @torch.no_grad()
        def forward(self, x):
            return super().forward(x)

    assert is_pruned_as(Quiet()).way == SIDE_BY_SIDE


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


class Failing(Plain):
    """Raises for an item, in front of a layer or behind it."""

    def __init__(self, error, place, at=7.0):
        super().__init__()
        self.error, self.place, self.at = error, place, at

    def raise_at(self, place, x):
        if place == self.place and x[0, 0] == self.at:
            raise self.error

    def forward(self, x):
        self.raise_at(0, x)
        h = self.a(x).tanh()
        self.raise_at(1, x)
        h = self.b(h).tanh()
        self.raise_at(2, x)
        y = self.c(h)
        self.raise_at(3, x)
        return y


def numbered(count):
    items = rows(count, (20, 16))
    for i, x in enumerate(items):
        x[0, 0] = i
    return items


@pytest.mark.parametrize("place", [0, 1, 2])
def test_models_that_fail_for_an_item(place):
    for options in OPTIONS:
        model = Failing(RuntimeError("no such thing"), place)
        before, hooks = snapshot(model), hooks_of(model)
        refuses(
            lambda m=model, o=options: nmt.adaprune_(m, "2:4", numbered(9), **o),
            "calibration item 7, called as Failing(float32 tensor (20, 16) on cpu), failed: "
            "RuntimeError: no such thing",
        )
        assert not differing(snapshot(model), before)
        assert hooks_of(model) == hooks


def test_nothing_behind_the_last_layer_is_run():
    for options in OPTIONS:
        model = Failing(RuntimeError("no such thing"), 3)
        assert is_pruned_as(model, numbered(9), given=numbered(9), **options).way == SIDE_BY_SIDE


class Stopped(BaseException):
    """As what a program of the user's interrupts with."""


@pytest.mark.parametrize("error", [KeyboardInterrupt(), GreenletExit(), Stopped(), SystemExit(3)])
def test_interrupts_wherever_a_forward_is(error):
    for options in OPTIONS:
        for item, place in itertools.product((0, 2), range(3)):
            model = Failing(error, place, at=float(item))
            before, hooks, numbers = snapshot(model), hooks_of(model), torch.get_rng_state()
            with pytest.raises(type(error)) as caught:
                nmt.adaprune_(model, "2:4", numbered(3), **options)
            assert caught.value is error
            assert not differing(snapshot(model), before)
            assert hooks_of(model) == hooks
            assert torch.equal(torch.get_rng_state(), numbers)


class Catching(Plain):
    """Catches whatever comes up in a layer: what it makes of it is told by `then`."""

    def __init__(self, then):
        super().__init__()
        self.then, self.caught, self.after = then, [], nn.Linear(16, 16)

    def forward(self, x):
        h = self.a(x).tanh()
        try:
            h = self.b(h).tanh()
        except BaseException as error:
            if self.then == "goes on":
                h = x
            elif self.then == "raises another":
                raise ValueError("wrapped") from error
            else:
                self.c(self.b(h))
                raise
        return self.c(h)


@pytest.mark.parametrize("then", ["goes on", "raises another", "calls layers"])
def test_models_that_catch_their_end(then):
    """Forwards are ended at b, behind which nothing is pruned."""
    for options in OPTIONS:
        model, twin = Catching(then), Plain()
        found = nmt.adaprune_(model, {"a": "2:4", "b": "2:4"}, ITEMS, **options)
        assert found.way == SIDE_BY_SIDE
        nmt.adaprune_(twin, {"a": "2:4", "b": "2:4"}, ITEMS, **options)
        equals(model, twin)


@pytest.mark.parametrize("then", ["goes on", "raises another", "calls layers"])
def test_models_that_catch_their_end_where_another_fails(then):
    class Both(Catching):
        def forward(self, x):
            y = super().forward(x)
            if x[0, 0] == 2:
                raise KeyboardInterrupt
            return y

    model = Both(then)
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        nmt.adaprune_(model, {"a": "2:4", "b": "2:4", "after": "2:4"}, numbered(4))
    assert not differing(snapshot(model), before)


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


def test_nothing_of_an_error_is_printed(capfd):
    refuses(lambda: nmt.adaprune_(Failing(RuntimeError("no"), 1), "2:4", numbered(9)), "no")
    for model in (Threaded(None), Catching("raises another")):
        nmt.adaprune_(model, {"a": "2:4", "b": "2:4"}, numbered(9))
    gc.collect()
    assert capfd.readouterr() == ("", "")
