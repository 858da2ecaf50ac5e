"""Models that do unusual things while they are calibrated: found by trying to break what the other
tests show.
"""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import nmsolve.torch as nmt
from nmsolve.torch.pruning import batch_norm, layerwise
from tests.checkpoint.snapshots import differing, snapshot
from tests.pruning.pruning_models import mixed, mlp, refuses, same_after


def test_compiled_models_are_seen_though_their_code_is_there_already():
    model = mlp()
    compiled = torch.compile(copy.deepcopy(model), backend="eager", dynamic=False)
    x = torch.randn(100, 16)
    with torch.no_grad():
        compiled(x[:90])
    items = [x[:90], x[90:]]
    found = nmt.scores.activation(compiled, items)
    assert torch.allclose(found["_orig_mod.0"], nmt.scores.activation(model, items)["0"])
    nmt.adaprune_(compiled, "2:4", items)
    nmt.adaprune_(model, "2:4", items)
    assert same_after(compiled, model)


def test_forwards_that_were_put_on_instances_are_compared():
    model = mlp()
    x = [torch.randn(5, 16)]
    expected = nmt.scores.activation(model, x)
    own = model[0].forward
    model[0].forward = lambda given: own(given)  # as accelerate's hooks do
    assert torch.equal(nmt.scores.activation(model, x)["0"], expected["0"])
    model[0].forward = lambda given: own(given / 10)
    refuses(
        lambda: nmt.scores.activation(model, x),
        "layer 0 is a Linear whose forward is not that of Linear",
    )


def test_numbers_beside_buffers_come_back_with_them():
    class Grown(nn.Module):
        """Makes its table longer when inputs are, as rotary embeddings do."""

        def __init__(self):
            super().__init__()
            self.layer, self.longest = nn.Linear(8, 8), 4
            self.register_buffer("table", torch.arange(4.0), persistent=False)

        def forward(self, x):
            if x.shape[1] > self.longest:
                self.longest = x.shape[1]
                self.table = torch.arange(float(self.longest)) * 2
            return self.layer(x + self.table[: x.shape[1], None])

    model = Grown()
    for run in (nmt.scores.activation, lambda m, x: nmt.adaprune_(m, "2:4", x)):
        run(model, [torch.randn(2, 9, 8)])
        assert model.longest == len(model.table) == 4


def test_weights_that_are_elsewhere_are_named_before_anything_runs():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 8))
    x = [torch.randn(2, 8)]
    for scores in (
        nmt.scores.magnitude,
        lambda m: nmt.scores.activation(m, x),
        lambda m: nmt.scores.fisher(m, x),
    ):
        refuses(lambda scores=scores: scores(model), "the weight of layer 0", "meta device")


def test_losses_that_fail_name_the_item():
    model, items = mlp(), [torch.randn(5, 16), torch.randn(5, 3)]
    before = snapshot(model)
    for scores in (nmt.scores.gradient, nmt.scores.fisher):
        refuses(
            lambda scores=scores: scores(model, items, lambda m, x: m(x).square().mean()),
            "the loss of calibration item 1, called as loss(model, item), failed",
        )
        assert not differing(snapshot(model), before)


@pytest.mark.parametrize(
    "change", [{"padding": (2, 2), "dilation": (2, 2)}, {"padding": "same"}, {"padding": "valid"}]
)
def test_convolutions_whose_attributes_were_changed(change):
    torch.manual_seed(0)
    conv, x = nn.Conv2d(8, 4, 3, padding=1), torch.randn(3, 8, 9, 9)
    for name, value in change.items():
        setattr(conv, name, value)
    fresh = nn.Conv2d(8, 4, 3, padding=conv.padding, dilation=conv.dilation)
    fresh.load_state_dict(conv.state_dict())
    assert torch.equal(
        nmt.scores.activation(conv, [x])["weight"], nmt.scores.activation(fresh, [x])["weight"]
    )
    found = nmt.losses(conv, ["2:4"], example_inputs=x)[0].positions
    assert found == conv(x).numel() / 4


def test_autocast_around_it_does_not_hide_what_was_pruned():
    model, x = mlp(), torch.randn(100, 16)
    other = copy.deepcopy(model)
    plain = nmt.adaprune_(model, "1:4", [x])
    with torch.autocast("cpu", torch.bfloat16):
        found = nmt.adaprune_(other, "1:4", [x])
        nmt.adaprune_(mlp(), "1:4", [x], update=nmt.Adam(steps=3))
    for one, two in zip(plain, found, strict=True):
        assert two.before == pytest.approx(one.before, rel=0.05)
    seen = []

    def train_step(model):
        seen.append(model(x).detach())
        return model(x).square().mean()

    with torch.autocast("cpu", torch.bfloat16):
        nmt.domino_search(
            mlp(), train_step, nmt.Params(200), m=8, decay=20.0, penalty_every=1, check_every=1
        )
    assert float((seen[-1] - seen[0]).norm()) > 0.1 * float(seen[0].norm())


def test_calibration_that_models_change_in_place_is_whole_afterwards():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp()

        def forward(self, x):
            return self.body(x.sub_(5).div_(2))

    model, x = InPlace(), torch.randn(60, 16) + 5
    given, twin = x.clone(), mlp()
    nmt.adaprune_(model, "2:4", [x])
    assert torch.equal(x, given)
    nmt.adaprune_(twin, "2:4", [(x - 5) / 2])
    assert same_after(model.body, twin)


@pytest.mark.parametrize("prune", [nmt.adaprune_, nmt.sparsegpt_])
def test_memory_that_two_tensors_share_is_told(prune):
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model[1].weight.data = model[0].weight.data
    refuses(lambda: prune(model, "2:4", [torch.randn(5, 16)]), "0.weight and 1.weight share memory")
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model[1].weight = nn.Parameter(model[0].weight.t().detach())
    refuses(lambda: prune(model, "2:4", [torch.randn(5, 16)]), "0.weight and 1.weight share memory")
    model = nn.Sequential(nn.Linear(16, 16))
    model.register_buffer("view", model[0].weight.detach()[3])
    refuses(lambda: prune(model, "2:4", [torch.randn(5, 16)]), "view", "share memory")


def test_layers_that_compute_something_else_are_told():
    class Normed(nn.Linear):
        def forward(self, x):
            return F.linear(F.layer_norm(x, (16,)), self.weight, self.bias)

    class Scaled(nn.Linear):
        def forward(self, scale, x):
            return scale * super().forward(x)

    class Same(nn.Linear):
        def forward(self, x):
            return F.linear(x.contiguous(), self.weight, self.bias)

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Scaled(16, 16)

        def forward(self, x):
            return self.layer(torch.ones(16), x)

    x = torch.randn(20, 16)
    refuses(
        lambda: nmt.adaprune_(Wrapped(), "2:4", [x]),
        "the forward of Scaled",
        "could not be run",
        "name the layer",
    )
    for model, name in ((nn.Sequential(Normed(16, 8)), "0"), (Wrapped(), "layer")):
        refuses(
            lambda m=model, n=name: nmt.scores.activation(m, [x], include=n),
            f"layer {name} is a",
            "forward is not that of",
        )
        refuses(
            lambda m=model, n=name: nmt.adaprune_(m, {n: "2:4"}, [x]),
            f"layer {name} is a",
            "exclude",
        )
    assert nmt.adaprune_(nn.Sequential(Same(16, 8)), "2:4", [x])


def test_gradients_through_reentrant_checkpoints_are_whole():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.inside = nn.Linear(16, 16), nn.Linear(16, 16)
            self.on = True

        def forward(self, x):
            h = self.layer(x)
            part = lambda h: self.inside(self.layer(h).tanh())  # noqa: E731
            return checkpoint(part, h, use_reentrant=True) if self.on else part(h)

    torch.manual_seed(0)
    model, x = Checkpointed(), torch.randn(9, 16)
    loss = lambda model, x: model(x).square().mean()  # noqa: E731
    found = nmt.scores.gradient(model, [x], loss)
    model.on = False
    wanted = nmt.scores.gradient(model, [x], loss)
    for path in ("layer", "inside"):
        torch.testing.assert_close(found[path], wanted[path])


def test_datasets_without_an_iterator_end():
    class Indexed(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return torch.full((5, 16), float(index + 1))

    found = nmt.scores.activation(mlp(), Indexed())
    assert torch.allclose(
        found["0"], nmt.scores.activation(mlp(), [Indexed()[i] for i in range(4)])["0"]
    )


def test_an_interrupt_at_the_last_moment_takes_everything_back(monkeypatch):
    model = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8))
    before, real, calls = snapshot(model), batch_norm.put, []

    def put(statistics):
        real(statistics)
        calls.append(statistics)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(layerwise, "put", put)
    with pytest.raises(KeyboardInterrupt):
        nmt.adaprune_(model, "2:4", [torch.randn(30, 16)])
    assert len(calls) == 2
    assert not differing(snapshot(model), before)


def test_buffers_of_every_kind_are_left_alone():
    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 8)
            self.register_buffer("adjacency", torch.eye(20).to_sparse())
            self.register_buffer("cache", torch.zeros(3))

        def forward(self, x):
            self.cache.resize_(len(x)).fill_(1.0)
            return self.layer(self.adjacency @ x)

    model, x = Graph(), torch.randn(20, 16)
    nmt.scores.activation(model, [x])
    nmt.adaprune_(model, "2:4", [x])
    assert torch.equal(model.cache, torch.zeros(3))
    assert nmt.verify(model, "2:4")


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_scripted_children_are_no_obstacle():
    scripted = torch.jit.trace(nn.Linear(8, 4), torch.randn(2, 8))
    model = nn.Sequential(nn.Linear(16, 8), scripted)
    plan = nmt.plan(model, "2:4")
    assert plan[1].reason.startswith("scripted")
    nmt.adaprune_(model, plan, [torch.randn(9, 16)])
    assert nmt.verify(model, plan)


@pytest.mark.parametrize("prune", [nmt.adaprune_, nmt.sparsegpt_])
def test_inputs_whose_squares_are_beyond_float64_name_the_layer(prune):
    x = torch.randn(30, 16, dtype=torch.double)
    for items in ([x * 1e160], [x, x * 1e160], [torch.full_like(x, 1e155)]):
        model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 8)).double()
        before = snapshot(model)
        refuses(
            lambda model=model, items=items: prune(model, "2:4", items),
            "layer 0: squares of its inputs leave the range of float64",
            "exclude",
        )
        assert not differing(snapshot(model), before)


@pytest.mark.parametrize("damping", [1e-18, 1e-2])
def test_fewer_samples_than_inputs_do_with_hardly_any_damping(damping):
    model = mlp()
    found = nmt.sparsegpt_(model, "2:4", [torch.randn(3, 16)], damping=damping)
    assert nmt.verify(model, "2:4")
    assert all(layer.after <= layer.before for layer in found)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_scores_that_are_no_plain_tensors_are_refused():
    model, x = mlp(), [torch.randn(5, 16)]
    plain = dict(nmt.scores.magnitude(model))
    for bad in (plain["0"].to_sparse(), plain["0"].to("meta"), plain["0"].to(torch.complex64)):
        refuses(
            lambda bad=bad: nmt.adaprune_(model, "2:4", x, scores=plain | {"0": bad}),
            "scores for layer 0",
        )


def test_weights_made_in_inference_mode_are_refused():
    with torch.inference_mode():
        model = mlp()
    x = [torch.randn(5, 16)]
    refuses(lambda: nmt.adaprune_(model, "2:4", x), "layer 0", "inference_mode")
    refuses(
        lambda: nmt.scores.gradient(model, x, lambda model, x: model(x).mean()),
        "layer 0",
        "inference_mode",
    )


def test_adam_works_inside_inference_mode():
    model, x = mlp(), [mixed(80, 16).float()]
    with torch.inference_mode():
        found = nmt.adaprune_(model, "2:4", x, update=nmt.Adam(steps=100))
    assert all(layer.method == "Adam" and layer.after < layer.before for layer in found)


def test_numbers_of_numpy_are_numbers():
    for limit in (np.int64(300), np.int32(300), np.float32(300)):
        assert nmt.Params(limit).limit == 300
    for limit in (10**400, np.float64("nan"), np.int64(0), True):
        refuses(lambda limit=limit: nmt.Params(limit), "positive number of kept weights")


def test_searches_with_a_loss_that_cannot_be_used_again():
    model, x = mlp(), torch.randn(20, 16)
    loss = model(x).square().mean()
    before = snapshot(model)
    refuses(
        lambda: nmt.domino_search(model, lambda model: loss, nmt.Params(300), m=8),
        "example_inputs=",
    )
    refuses(
        lambda: nmt.domino_search(
            model, lambda model: loss, nmt.Params(300), m=8, example_inputs=x
        ),
        "backward from the loss",
    )
    refuses(
        lambda: nmt.domino_search(model, lambda model: model(x).mean() * 1j, nmt.Params(300), m=8),
        "complex",
    )
    assert not differing(snapshot(model), before)
