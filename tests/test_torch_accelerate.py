"""accelerate_: the table's reasons, nothing changed that is not meant to, the rule for measured times, measuring itself."""

import copy
import time
import warnings
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import nmsolve
from nmsolve.torch.dispatch import accelerate as module
from nmsolve.torch.dispatch.accelerate import accelerate_
from nmsolve.torch.dispatch.acceleration import MARGIN, Acceleration, LayerDecision, Timing, choose
from nmsolve.torch.dispatch.backends import SPARSE_BACKENDS, _said, backends
from nmsolve.torch.dispatch.measuring import measure, wrong_result
from nmsolve.torch.dispatch.packed_linear import PackedLinear
from nmsolve.torch.dispatch.recording import Call, record, undisturbed
from nmsolve.torch.dispatch.sparse_linear import SparseLinear
from nmsolve.torch.dispatch.timing import medians_us, rotation_beyond_cache

CUDA = torch.cuda.is_available()
WHY_NOT_HERE = backends()["cusparselt"].reason


@pytest.fixture(autouse=True)
def said():
    """These tests are about other things than the warning, which comes once a process."""
    _said.update({"no sparse GPU", "masked dense"})


def masked_(model, pattern="2:4T"):
    """Zero what the best mask drops, in every linear layer that groups divide."""
    for layer in model.modules():
        weight = getattr(layer, "weight", None)
        if isinstance(layer, nn.Linear) and weight.shape[0] % 4 == weight.shape[1] % 4 == 0:
            with torch.no_grad():
                weight.mul_(torch.from_numpy(nmsolve.solve(weight.float().numpy(), pattern).mask))
    return model


def mlp():
    torch.manual_seed(0)
    return masked_(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 8), nn.Linear(8, 10)))


def state_of(model):
    """Everything that must not change: modules, parameters, values, flags, hooks."""
    modules = dict(model.named_modules())
    return (
        {name: (id(m), type(m), m.training, len(m._forward_pre_hooks), len(m._forward_hooks)) for name, m in modules.items()},
        {name: (id(p), p.clone(), p.requires_grad) for name, p in model.named_parameters()},
        {name: (id(b), b.clone()) for name, b in model.named_buffers()},
    )


def same(before, after):
    return (
        before[0] == after[0]
        and before[1].keys() == after[1].keys()
        and all(
            a[0] == b[0] and torch.equal(a[1], b[1]) and a[2] == b[2]
            for a, b in zip(before[1].values(), after[1].values(), strict=True)
        )
        and all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(before[2].values(), after[2].values(), strict=True))
    )


def reasons(table):
    return {layer.name: layer.reason for layer in table}


def test_inference_on_an_mlp(capsys):
    model = mlp()
    before, x = state_of(model), torch.randn(6, 16)
    random = torch.get_rng_state()
    table = accelerate_(model, x)
    assert capsys.readouterr().out == f"{table}\n"
    assert torch.equal(torch.get_rng_state(), random)
    assert [layer.name for layer in table] == ["0", "3", "4"]
    assert [layer.shape for layer in table] == [(32, 16), (8, 32), (10, 8)]
    assert [layer.tokens for layer in table] == [6, 6, 6]
    assert reasons(table)["4"].startswith("not 2:4: 2:4 is violated on shape (10, 8)")
    if not CUDA:
        assert {layer.decision for layer in table} == {"dense"}
        assert reasons(table)["0"] == WHY_NOT_HERE
    assert same(before, state_of(model))


def test_training_on_an_mlp():
    model = mlp()
    model[0].bias.requires_grad_(False)
    dense, parameters, seen = copy.deepcopy(model), dict(model.named_parameters()), []
    handle = model[0].register_forward_hook(lambda *_: seen.append(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    masks = {i: dense[i].weight != 0 for i in (0, 3)}
    table = accelerate_(model, (torch.randn(6, 16),), training=True)
    assert [type(m) for m in model] == [SparseLinear, nn.ReLU, nn.Dropout, SparseLinear, nn.Linear]
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in model.parameters()}
    assert not model[0].bias.requires_grad
    assert model.training
    assert model[0].training
    assert [layer.decision for layer in table][2] == "dense"
    assert reasons(table)["4"] == "not 2:4: 10×8 does not consist of groups of 4"
    assert len(seen) == 2  # by the runs with example_inputs, before and after
    x = torch.randn(5, 16)
    model.eval()
    dense.eval()
    torch.testing.assert_close(model(x), dense(x))
    assert len(seen) == 3
    handle.remove()
    model(x).square().sum().backward()
    dense(x).square().sum().backward()
    for i, mask in masks.items():
        assert torch.equal(model[i].mask, mask)
        torch.testing.assert_close(model[i].weight.grad, dense[i].weight.grad * mask)
    optimizer.step()
    assert not any(model[i].weight[~mask].any() for i, mask in masks.items())
    assert model.state_dict().keys() == dense.state_dict().keys()
    nn.Sequential(*(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 8), nn.Linear(8, 10))).load_state_dict(
        model.state_dict()
    )


def test_training_then_inference():
    model = mlp()
    accelerate_(model, torch.randn(6, 16), training=True)
    masks = [model[i].mask.clone() for i in (0, 3)]
    with torch.no_grad():
        model[0].weight.add_(1)  # the optimizer's momentum, say; the mask still holds
        row, col = model[0].mask.nonzero()[0].tolist()
        model[0].weight[row, col] = 0
    assert [layer.decision == "dense" for layer in accelerate_(model, torch.randn(6, 16), training=True)] == [False, False, True]
    assert [torch.equal(model[i].mask, mask) for i, mask in zip((0, 3), masks, strict=True)] == [True, True]
    table = accelerate_(model, torch.randn(6, 16))
    assert reasons(table)["0"] == WHY_NOT_HERE or CUDA
    packed = PackedLinear.from_linear(model[0], "dense")
    torch.testing.assert_close(packed.weight, model[0].masked_weight)
    model[0] = packed
    assert reasons(accelerate_(model, torch.randn(6, 16)))["0"] == "packed before"


@pytest.mark.parametrize("training", [False, True])
def test_transformer_encoder_layer(training):
    torch.manual_seed(0)
    model = masked_(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)).train(training)
    dense = copy.deepcopy(model).eval()
    x = torch.randn(2, 5, 16)
    table = accelerate_(model, {"src": x}, training=training)
    found = reasons(table)
    assert found["self_attn"] == "no sparse kernel for MultiheadAttention"
    assert "is a subclass of nn.Linear" in found["self_attn.out_proj"]
    assert {layer.name: layer.tokens for layer in table}["linear1"] == 10
    assert isinstance(model.linear1, SparseLinear) == training
    torch.testing.assert_close(model.eval()(x), dense(x))
    with torch.no_grad():  # the fast path reads the weights itself
        torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-5)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(16, 16)
        self.body = nn.Linear(16, 16)
        self.again = self.body
        self.head = nn.Linear(16, 16)
        self.head.weight = self.embedding.weight
        self.unused = nn.Linear(16, 16)

    def forward(self, i):
        return self.head(self.again(self.body(self.embedding(i))))


@pytest.mark.parametrize("training", [False, True])
def test_tied_weights(training):
    torch.manual_seed(0)
    model = masked_(Tied())
    dense = copy.deepcopy(model)
    i = torch.randint(16, (3, 4))
    found = reasons(accelerate_(model, i, training=training))
    assert found["embedding"] == "its weight is tied to head.weight"
    assert found["head"] == "its weight is tied to embedding.weight"
    assert found["body"] == "the module is also again"
    assert found["unused"] == "not called by example_inputs"
    assert model.head.weight is model.embedding.weight
    assert model.body is model.again
    assert type(model.unused) is nn.Linear
    torch.testing.assert_close(model(i), dense(i))


@pytest.mark.parametrize("training", [False, True])
def test_conv_net_with_batch_norm(training):
    torch.manual_seed(0)
    model = masked_(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(), nn.Flatten(), nn.Linear(128, 8)))
    model[2].eval()
    before, random = state_of(model), torch.get_rng_state()
    table = accelerate_(model, [torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))], training=training)
    assert reasons(table)["0"] == "no sparse kernel for Conv2d"
    assert "1" not in reasons(table)
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in model] == [True, True, False, True, True]
    if training:
        assert isinstance(model[4], SparseLinear)
        assert torch.equal(model[1].running_mean, before[2]["1.running_mean"][1])
        assert int(model[1].num_batches_tracked) == 0
    else:
        assert same(before, state_of(model))


class Sub(nn.Linear):
    pass


def test_layers_that_are_not_what_they_seem():
    torch.manual_seed(0)
    model = masked_(
        nn.ModuleDict({name: nn.Linear(8, 8) for name in ("orthogonal", "pruned", "patched", "wide")} | {"sub": Sub(8, 8)})
    )
    parametrizations.orthogonal(model["orthogonal"])
    prune.l1_unstructured(model["pruned"], "weight", 0.5)
    model["patched"].forward = lambda x: x
    model["wide"].double()
    model.forward = lambda x: [layer(x.double() if name == "wide" else x) for name, layer in model.items()]
    found = reasons(accelerate_(model, torch.randn(2, 8), training=True))
    assert list(found) == ["orthogonal", "pruned", "patched", "wide", "sub"]
    assert found["orthogonal"].startswith("parametrized")
    assert found["pruned"].startswith("its weight is computed by a hook")
    assert found["patched"].startswith("its forward was replaced")
    assert found["sub"].startswith("Sub is a subclass")
    assert isinstance(model["wide"], SparseLinear)


def test_row_wise_weights_are_not_for_training():
    model = masked_(nn.Sequential(nn.Linear(16, 16)), "2:4")
    found = accelerate_(model, torch.randn(2, 16), training=True)[0]
    assert found.reason.startswith("not 2:4T: 2:4T is violated")
    assert type(model[0]) is nn.Linear
    assert not accelerate_(model, torch.randn(2, 16))[0].reason.startswith("not 2:4")


def test_nothing_to_do(capsys):
    table = accelerate_(nn.Sequential(nn.ReLU(), nn.LayerNorm(4)), torch.randn(2, 4))
    assert len(table) == 0
    assert capsys.readouterr().out == "no layer with a weight matrix\n"


class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm = masked_(nn.Linear(8, 8)), nn.BatchNorm1d(8)

    def forward(self, x, fail=True):
        y = self.norm(self.layer(x))
        if fail:
            raise KeyError("what went wrong")
        return y


@pytest.mark.parametrize("training", [False, True])
def test_an_error_changes_nothing(training):
    model = Failing()
    before, random = state_of(model), torch.get_rng_state()
    with pytest.raises(nmsolve.InputError, match=r"KeyError: 'what went wrong'; they are passed as model\(\*args\)"):
        accelerate_(model, torch.ones(4, 8), training=training)
    assert same(before, state_of(model))
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(model.norm.running_mean, torch.zeros(8))
    accelerate_(model, {"x": torch.randn(4, 8), "fail": False}, training=training)


@pytest.mark.parametrize(
    ("model", "inputs", "said"),
    [
        ("no model", torch.ones(1), "model must be an nn.Module, got str"),
        (nn.Sequential(), None, "example_inputs must be a tensor, a tuple or list .*, got NoneType"),
        (nn.Linear(4, 4), torch.ones(1, 4), r"pass nn\.Sequential\(model\)"),
        (nn.Sequential(nn.Linear(4, 4)), torch.ones(1, 3), "does not run with these example_inputs: RuntimeError"),
    ],
)
def test_bad_arguments(model, inputs, said):
    with pytest.raises(nmsolve.InputError, match=said):
        accelerate_(model, inputs)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_modules_are_refused():
    model = nn.Sequential(nn.LazyLinear(4))
    with pytest.raises(nmsolve.InputError, match=r"0\.weight is not initialised yet"):
        accelerate_(model, torch.ones(1, 4))
    assert type(model[0]) is nn.LazyLinear


if not CUDA:

    def test_the_missing_gpu_is_said_once():
        _said.discard("no sparse GPU")
        with pytest.warns(UserWarning, match="masked dense weights here: no GPU"):
            accelerate_(mlp(), torch.ones(1, 16))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            accelerate_(mlp(), torch.ones(1, 16), training=True)


# Recording


def test_recorded_calls():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    calls = record(model, (torch.randn(2, 3, 8),), {}, False)
    assert calls["0"] == calls["1"] == Counter({Call(6, torch.float32, torch.device("cpu")): 1})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        calls = record(model, (), {"input": torch.randn(8)}, True)
    assert calls["1"] == Counter({Call(1, torch.bfloat16, torch.device("cpu")): 1})


def test_a_run_leaves_no_trace():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout())
    model[1].eval()
    before, random = state_of(model), torch.get_rng_state()
    with undisturbed(model, training=True):
        assert model[0].training
        model(torch.randn(3, 4))
        model[0].running_var = torch.zeros(4)
        assert not same(before, state_of(model))
    assert same(before, state_of(model))
    assert torch.equal(torch.get_rng_state(), random)


# The rule


def timing(dense, sparse, failure=None):
    return Timing(dense_us=dense, sparse_us=sparse, failure=failure)


@pytest.mark.parametrize(
    ("timings", "only", "expected"),
    [
        ({"a": timing(10, 5)}, True, ("a", "a", "2.00 × the speed of dense")),
        ({"a": timing(10, 5), "b": timing(10, 4)}, True, ("b", "b", "2.50 × the speed of dense")),
        ({"a": timing(10, 20)}, True, (None, "a", "slower: 0.50 × the speed of dense")),
        ({"a": timing(10, 20)}, False, ("a", "a", "slower, but asked for: 0.50 × the speed of dense")),
        ({"a": timing(10, 10 * (1 - MARGIN / 2))}, True, (None, "a", "not faster: 1.01 × the speed of dense")),
        ({"a": timing(None, None, "wrong result: y")}, False, (None, "a", "a: wrong result: y")),
        (
            {"a": timing(None, None, "wrong"), "b": timing(10, 20)},
            False,
            ("b", "b", "slower, but asked for: 0.50 × the speed of dense"),
        ),
        ({"a": timing(None, None, "no"), "b": timing(None, None, "nor")}, True, (None, "a", "a: no; b: nor")),
        ({}, True, (None, None, "no backend")),
    ],
)
def test_choice(timings, only, expected):
    assert choose(timings, only) == expected


def test_the_table_fits():
    rows = [  # the longest cells there are
        LayerDecision(name="model.decoder.layers.31.mlp.down_proj", shape=(4096, 16384), tokens=131072, backend="cusparselt",
                      dense_us=123456.7, sparse_us=98765.4, decision="masked dense", reason="a long reason " * 12),
        LayerDecision(name="0", shape=(8, 8), tokens=0, backend=None,
                      dense_us=None, sparse_us=None, decision="dense", reason="short"),
    ]  # fmt: skip
    table = Acceleration(rows)
    lines = str(table).splitlines()
    assert max(map(len, lines)) <= 120
    assert lines[0].split("  ")[-1] == "reason"
    start = lines[0].index("reason")
    assert lines[1].startswith("…der.layers.31.mlp.down_proj  4096×16384  131072  cusparselt  123456.7")
    assert lines[1][start:].startswith("a long")
    assert all(line[:start].isspace() and line[start] != " " for line in lines[2:-1])
    assert lines[-1].endswith("short")
    assert table[0] is rows[0]
    assert table[:1] == (rows[0],)
    assert list(table) == rows


# Measuring


def test_medians_of_real_calls():
    taken = []

    def slow(i):
        taken.append(i)
        time.sleep(0.01)

    quick_us, slow_us = medians_us([lambda i: None, slow], torch.device("cpu"), rotation=3, repeats=3, warm_up=1)
    assert 10_000 <= slow_us < 29_000
    assert quick_us < 2000
    assert taken == [0, 1, 2] * 4


def test_rotation():
    cpu = torch.device("cpu")
    assert rotation_beyond_cache(2**40, cpu) == 1
    assert rotation_beyond_cache(0, cpu) == 8
    assert rotation_beyond_cache(2**24, cpu) == 4


@pytest.mark.parametrize("bias", [True, False])
def test_measuring_the_training_step(bias):
    """On a CPU the sparse step is the masked dense one, but everything around it is real."""
    torch.manual_seed(0)
    layer = masked_(nn.Linear(16, 16, bias))
    calls = Counter({Call(5, torch.float32, torch.device("cpu")): 2, Call(0, torch.float32, torch.device("cpu")): 1})
    found = measure(layer.weight, layer.bias, calls, "cusparselt", training=True)
    assert found.failure is None
    assert found.dense_us > 0
    assert found.sparse_us > 0
    assert layer.weight.grad is None
    narrow = Counter({Call(5, torch.bfloat16, torch.device("cpu")): 1})
    assert measure(layer.weight, layer.bias, narrow, "cusparselt", training=True).failure is None


def test_a_backend_that_fails_is_a_reason():
    calls = Counter({Call(5, torch.bfloat16, torch.device("cpu")): 1})
    weight = masked_(nn.Linear(16, 16)).weight.detach()
    refused = measure(weight.bfloat16(), None, calls, "cutlass", training=False)
    assert refused.dense_us is None
    assert refused.failure.startswith("failed with cannot pack a torch.bfloat16 weight of shape (16, 16) for cutlass")
    raised = measure(weight.bfloat16(), torch.zeros(4, dtype=torch.bfloat16), calls, "cutlass", training=True)
    assert raised.failure.startswith("failed with bias must be (16,)")


def test_wrong_results_are_found():
    truth = (torch.randn(8, 8), torch.randn(8, 8), torch.randn(8, 8))
    kept = torch.rand(8, 8) > 0.5
    dense = tuple(t.bfloat16() for t in truth)
    right = (*dense[:2], dense[2] * kept)
    assert wrong_result(right, dense, truth, kept) is None
    for i, name in enumerate(("y", "dx", "dW")):
        for bad in (right[i] + 1, right[i] * float("nan"), right[i].t().contiguous()):
            found = wrong_result([*right[:i], bad, *right[i + 1 :]], dense, truth, kept)
            assert found.startswith(f"{name} is off by")
    assert wrong_result(dense, dense, truth, kept).startswith("dW is off by")


# What a run of the model with packed layers shows


class Past(nn.Module):
    """Calls one layer, reads the weight of another and keeps a reference of its own to a third."""

    def __init__(self):
        super().__init__()
        self.called, self.read, self.held = (masked_(nn.Linear(8, 8)) for _ in range(3))
        self.own = [self.held]

    def forward(self, x):
        return self.own[0](self.called(x) @ self.read.weight.t())


@pytest.mark.parametrize("training", [False, True])
def test_layers_that_a_model_goes_past_are_found(training):
    torch.manual_seed(0)
    model = Past()
    x = torch.randn(2, 8)
    expected = model(x)
    names = ("called", "read", "held")
    before = {name: model.get_submodule(name) for name in names}
    kind = SparseLinear if training else PackedLinear
    news = {
        name: SparseLinear.from_linear(old, old.weight != 0) if training else PackedLinear.from_linear(old, "dense")
        for name, old in before.items()
    }
    found = module._exchange(model, news, (x,), {}, training)
    assert set(found) == {"read", "held"}
    assert "fast path" in found["read"]
    assert "reference of its own" in found["held"]
    assert type(model.called) is kind
    assert model.called is news["called"]
    assert model.read is before["read"]
    assert model.held is before["held"]
    assert not {"called", "read"} & set(vars(model.called))
    torch.testing.assert_close(model(x), expected)


def test_an_error_while_packing_changes_nothing():
    model = Failing()
    before = state_of(model)
    with pytest.raises(KeyError, match="what went wrong"):
        module._exchange(model, {"layer": PackedLinear.from_linear(model.layer, "dense")}, (torch.ones(4, 8),), {}, False)
    assert same(before, state_of(model))


def test_the_fast_path_of_an_encoder_layer_is_found():
    model = masked_(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)).eval()
    names = ("linear1", "linear2")
    x = torch.randn(2, 5, 16)
    expected = model(x)
    layers = {name: model.get_submodule(name) for name in names}
    found = module._exchange(model, {name: PackedLinear.from_linear(old, "dense") for name, old in layers.items()}, (x,), {}, False)
    assert set(found) == set(names)
    assert {name: model.get_submodule(name) for name in names} == layers
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_training_leaves_alone_what_it_does_not_know():
    """Layers that the model reaches past the module, and those that are all zero by initialisation."""
    model = Past()
    found = reasons(accelerate_(model, torch.randn(2, 8), training=True))
    assert "fast path" in found["read"] or "not called" in found["read"]
    assert type(model.read) is type(model.held) is nn.Linear
    assert type(model.called) is SparseLinear
    model = nn.Sequential(masked_(nn.Linear(8, 8)), nn.Linear(8, 8))
    nn.init.zeros_(model[1].weight)
    assert "0.0 % of it is nonzero" in reasons(accelerate_(model, torch.randn(2, 8), training=True))["1"]
    assert type(model[1]) is nn.Linear


def test_an_encoder_trains_and_infers_the_same():
    """Its fast path reads weights past the layers, in eval mode only; momentum from before moves what the mask drops."""
    torch.manual_seed(0)
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True), 1, enable_nested_tensor=False
    )
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    x = torch.randn(2, 5, 16)

    def step():
        optimizer.zero_grad()
        (model(x) * torch.randn_like(x)).sum().backward()
        optimizer.step()

    step()
    masked_(model)
    accelerate_(model, x, training=True)
    assert type(model.layers[0].linear1) is SparseLinear
    for _ in range(3):
        step()
    assert (model.layers[0].linear1.weight != 0).float().mean() > 0.5
    trained = model(x)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(x), trained, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_modules_are_left_alone():
    model = nn.Sequential(torch.jit.script(nn.Linear(16, 16)), masked_(nn.Linear(16, 16)))
    for training in (False, True):
        assert "scripted" in reasons(accelerate_(model, torch.randn(2, 16), training=training))["0"]


def test_a_root_weight_is_not_tied_to_itself():
    assert "tied" not in reasons(accelerate_(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8)))[""]


if CUDA:

    def big(dtype, size=2048):
        torch.manual_seed(0)
        return masked_(nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size), nn.Linear(size, 10))).to(
            "cuda", dtype
        )

    @pytest.mark.gpu
    @pytest.mark.parametrize("only_if_faster", [True, False])
    @pytest.mark.parametrize("training", [True, False])
    def test_on_a_gpu(training, only_if_faster):
        model = big(torch.bfloat16)
        dense = copy.deepcopy(model)
        x = torch.randn(1000, 2048, device="cuda", dtype=torch.bfloat16)
        table = accelerate_(model, x, only_if_faster=only_if_faster, training=training)
        served = any(backends()[name] for name in SPARSE_BACKENDS)
        for layer, new in zip(table, (model[0], model[2]), strict=False):
            assert "wrong result" not in layer.reason
            assert "failed" not in layer.reason
            assert (layer.dense_us is not None) == served
            sparse = layer.decision == "sparse"
            assert sparse == (served and (not only_if_faster or layer.sparse_us <= (1 - MARGIN) * layer.dense_us))
            assert type(new) is (SparseLinear if training else PackedLinear if sparse else nn.Linear)
            if sparse:
                assert new.backend == layer.backend
        assert table[2].decision == "dense"
        expected = dense(x)
        scale = float(expected.abs().max())
        torch.testing.assert_close(model(x).float(), expected.float(), rtol=0, atol=0.03 * scale)
        state = model.state_dict()
        assert all(torch.equal(state[name], value) for name, value in dense.state_dict().items())

    @pytest.mark.gpu
    def test_training_under_autocast_on_a_gpu():
        model = big(torch.float32)
        dense = copy.deepcopy(model)
        x = torch.randn(512, 2048, device="cuda")
        with torch.autocast("cuda", dtype=torch.bfloat16):
            table = accelerate_(model, x, only_if_faster=False, training=True)
            served = any(backends()[name] for name in SPARSE_BACKENDS)
            assert [layer.decision == "sparse" for layer in table] == [served, served, False]
            ours, theirs = model(x), dense(x)
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=0, atol=0.03 * float(theirs.abs().max()))
        inference = accelerate_(dense, x)
        assert "float32" in inference[0].reason or not served
