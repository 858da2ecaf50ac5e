"""accelerate_: the table's reasons, and nothing changed that is not meant to."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import nmsolve
from nmsolve.torch.dispatch.accelerate import accelerate_
from nmsolve.torch.dispatch.availability import SPARSE_BACKENDS, _said, backends
from nmsolve.torch.dispatch.decisions import MARGIN
from nmsolve.torch.dispatch.exchanging import exchange_layers
from nmsolve.torch.dispatch.packed_linear import PackedLinear
from nmsolve.torch.dispatch.sparse_linear import SparseLinear
from tests.dispatch.layers import CUDA, masked_, mlp, reasons, same, state_of

pytestmark = pytest.mark.usefixtures("warned_already")


WHY_NOT_HERE = backends()["cusparselt"].reason


def test_inference_on_an_mlp(capsys):
    model = mlp()
    before, x = state_of(model), torch.randn(6, 16)
    random = torch.get_rng_state()
    table = accelerate_(model, x)
    assert capsys.readouterr().out == f"{table}\n"
    assert torch.equal(torch.get_rng_state(), random)
    assert [layer.path for layer in table] == ["0", "3", "4"]
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
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {
        id(p) for p in model.parameters()
    }
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
    nn.Sequential(
        *(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 8), nn.Linear(8, 10))
    ).load_state_dict(model.state_dict())


def test_training_then_inference():
    model = mlp()
    accelerate_(model, torch.randn(6, 16), training=True)
    masks = [model[i].mask.clone() for i in (0, 3)]
    with torch.no_grad():
        model[0].weight.add_(1)  # the optimizer's momentum, say; the mask still holds
        row, col = model[0].mask.nonzero()[0].tolist()
        model[0].weight[row, col] = 0
    assert [
        layer.decision == "dense" for layer in accelerate_(model, torch.randn(6, 16), training=True)
    ] == [False, False, True]
    assert [torch.equal(model[i].mask, mask) for i, mask in zip((0, 3), masks, strict=True)] == [
        True,
        True,
    ]
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
    assert {layer.path: layer.tokens for layer in table}["linear1"] == 10
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
    model = masked_(
        nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(), nn.Flatten(), nn.Linear(128, 8)
        )
    )
    model[2].eval()
    before, random = state_of(model), torch.get_rng_state()
    table = accelerate_(
        model,
        [torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))],
        training=training,
    )
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
        nn.ModuleDict(
            {name: nn.Linear(8, 8) for name in ("orthogonal", "pruned", "patched", "wide")}
            | {"sub": Sub(8, 8)}
        )
    )
    parametrizations.orthogonal(model["orthogonal"])
    prune.l1_unstructured(model["pruned"], "weight", 0.5)
    model["patched"].forward = lambda x: x
    model["wide"].double()
    model.forward = lambda x: [
        layer(x.double() if name == "wide" else x) for name, layer in model.items()
    ]
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
    with pytest.raises(
        nmsolve.InputError, match=r"KeyError: 'what went wrong'; they are passed as model\(\*args\)"
    ):
        accelerate_(model, torch.ones(4, 8), training=training)
    assert same(before, state_of(model))
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(model.norm.running_mean, torch.zeros(8))
    accelerate_(model, {"x": torch.randn(4, 8), "fail": False}, training=training)


@pytest.mark.parametrize(
    ("model", "inputs", "said"),
    [
        ("no model", torch.ones(1), "model must be an nn.Module, got str"),
        (
            nn.Sequential(),
            None,
            "example_inputs must be a tensor, a tuple or list .*, got NoneType",
        ),
        (nn.Linear(4, 4), torch.ones(1, 4), r"pass nn\.Sequential\(model\)"),
        (
            nn.Sequential(nn.Linear(4, 4)),
            torch.ones(1, 3),
            "does not run with these example_inputs: RuntimeError",
        ),
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
        name: SparseLinear.from_linear(old, old.weight != 0)
        if training
        else PackedLinear.from_linear(old, "dense")
        for name, old in before.items()
    }
    found = exchange_layers(model, news, (x,), {}, training=training)
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
        exchange_layers(
            model,
            {"layer": PackedLinear.from_linear(model.layer, "dense")},
            (torch.ones(4, 8),),
            {},
            training=False,
        )
    assert same(before, state_of(model))


def test_the_fast_path_of_an_encoder_layer_is_found():
    model = masked_(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)).eval()
    names = ("linear1", "linear2")
    x = torch.randn(2, 5, 16)
    expected = model(x)
    layers = {name: model.get_submodule(name) for name in names}
    found = exchange_layers(
        model,
        {name: PackedLinear.from_linear(old, "dense") for name, old in layers.items()},
        (x,),
        {},
        training=False,
    )
    assert set(found) == set(names)
    assert {name: model.get_submodule(name) for name in names} == layers
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_training_leaves_alone_what_it_does_not_know():
    """Layers that the model reaches past the module, and those that are all zero by
    initialisation.
    """
    model = Past()
    found = reasons(accelerate_(model, torch.randn(2, 8), training=True))
    assert "fast path" in found["read"] or "not called" in found["read"]
    assert type(model.read) is type(model.held) is nn.Linear
    assert type(model.called) is SparseLinear
    model = nn.Sequential(masked_(nn.Linear(8, 8)), nn.Linear(8, 8))
    nn.init.zeros_(model[1].weight)
    assert (
        "0.0 % of it is nonzero"
        in reasons(accelerate_(model, torch.randn(2, 8), training=True))["1"]
    )
    assert type(model[1]) is nn.Linear


def test_an_encoder_trains_and_infers_the_same():
    """Its fast path reads weights past the layers, in eval mode only; momentum from before moves
    what the mask drops.
    """
    torch.manual_seed(0)
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True),
        1,
        enable_nested_tensor=False,
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
        return masked_(
            nn.Sequential(
                nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size), nn.Linear(size, 10)
            )
        ).to("cuda", dtype)

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
            assert sparse == (
                served and (not only_if_faster or layer.sparse_us <= (1 - MARGIN) * layer.dense_us)
            )
            assert type(new) is (
                SparseLinear if training else PackedLinear if sparse else nn.Linear
            )
            if sparse:
                assert new.backend == layer.backend
                assert new.algorithms == layer.algorithms
                assert bool(new.algorithms) == (layer.backend == "cusparselt")
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
        torch.testing.assert_close(
            ours.float(), theirs.float(), rtol=0, atol=0.03 * float(theirs.abs().max())
        )
        inference = accelerate_(dense, x)
        assert "float32" in inference[0].reason or not served
