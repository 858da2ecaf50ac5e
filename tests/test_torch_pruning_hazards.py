"""Models that do unusual things while they are calibrated: found by trying to break what the other tests show."""

import copy

import numpy as np
import pytest
import torch
from snapshots import differing, snapshot
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import nmsolve
import nmsolve.torch as nmt
from nmsolve.torch.pruning import batch_norm, layerwise

pytestmark = pytest.mark.usefixtures("quick")


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)).eval()


def same_after(first, second):
    """Two models hold the same numbers, whatever they call them."""
    return all(torch.allclose(a, b, atol=1e-6) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def refuses(call, *words):
    with pytest.raises(nmsolve.InputError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)


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


def test_batch_norms_that_are_not_reached_keep_their_statistics():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)
            self.aux = nn.BatchNorm1d(8)

        def forward(self, x):
            h = self.norm(self.body(x))
            return (h, self.aux(h)) if self.training else h

    model = Auxiliary()
    for _ in range(5):
        model(torch.randn(32, 8) * 3 + 5)
    before = snapshot(model.aux)
    found = nmt.adaprune_(model, "2:4", [torch.randn(32, 8)])
    assert not differing(snapshot(model.aux), before)
    assert found.batch_norms == 1


@pytest.mark.parametrize("change", [{"padding": (2, 2), "dilation": (2, 2)}, {"padding": "same"}, {"padding": "valid"}])
def test_convolutions_whose_attributes_were_changed(change):
    torch.manual_seed(0)
    conv, x = nn.Conv2d(8, 4, 3, padding=1), torch.randn(3, 8, 9, 9)
    for name, value in change.items():
        setattr(conv, name, value)
    fresh = nn.Conv2d(8, 4, 3, padding=conv.padding, dilation=conv.dilation)
    fresh.load_state_dict(conv.state_dict())
    assert torch.equal(nmt.scores.activation(conv, [x])["weight"], nmt.scores.activation(fresh, [x])["weight"])
    found = nmt.losses(conv, ["2:4"], example_inputs=x)[0].positions
    assert found == conv(x).numel() / 4


class Random(nn.Module):
    """Draws numbers in eval mode too."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        return self.second(F.dropout(self.first(x), 0.5))


def test_both_runs_of_an_item_draw_the_same_numbers():
    torch.manual_seed(0)
    model, x = Random(), torch.randn(800, 16)
    dense = model.second.weight.norm().item()
    found = nmt.adaprune_(model, "2:4", [x])
    assert model.second.weight.norm().item() > 0.8 * dense
    assert found.of("second").before < 0.5


def test_forwards_run_to_their_end():
    """Features that hooks collect are cleared at the end of a forward that was not cut off."""

    class Collecting(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head, self.features = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(32, 8), []
            for layer in (self.a, self.b):
                layer.register_forward_hook(lambda module, args, output: self.features.append(output))

        def forward(self, x):
            self.b(self.a(x).relu())
            y = self.head(torch.cat(self.features, -1))
            self.features.clear()
            return y

    model, x = Collecting(), torch.randn(50, 16)
    y = model(x)
    nmt.adaprune_(model, nmt.plan(model, "4:4"), [x, x])
    assert torch.allclose(model(x), y, atol=1e-5)
    assert not model.features


def test_autocast_around_it_does_not_hide_what_was_pruned():
    model, x = mlp(), torch.randn(100, 16)
    other = copy.deepcopy(model)
    plain = nmt.adaprune_(model, "1:4", [x])
    with torch.autocast("cpu", torch.bfloat16):
        found = nmt.adaprune_(other, "1:4", [x])
        nmt.adaprune_(mlp(), "1:4", [x], nmt.Adam(steps=3))
    for one, two in zip(plain, found, strict=True):
        assert two.before == pytest.approx(one.before, rel=0.05)
    seen = []

    def train_step(model):
        seen.append(model(x).detach())
        return model(x).square().mean()

    with torch.autocast("cpu", torch.bfloat16):
        nmt.domino_search(mlp(), train_step, nmt.Params(200), m=8, decay=20.0, penalty_every=1, check_every=1)
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


def test_experts_that_choose_other_tokens_once_pruned():
    """Their inputs keep their shape, and have nothing to do with the dense model's."""

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.gate = nn.Linear(16, 16), nn.Linear(16, 2)
            self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))

        def forward(self, x):
            h = self.stem(x)
            out, scores = torch.zeros_like(h), self.gate(h)
            for i, expert in enumerate(self.experts):
                top = scores[:, i].topk(len(x) // 2).indices
                out[top] += expert(h[top])
            return out

    torch.manual_seed(0)
    model, x = Experts(), torch.randn(200, 16)
    norms = [expert.weight.norm().item() for expert in model.experts]
    found = nmt.adaprune_(model, "1:4", [x])
    for i, norm in enumerate(norms):
        assert model.experts[i].weight.norm().item() > 0.7 * norm
        assert found.of(f"experts.{i}").before < 1


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
    for model, name in ((nn.Sequential(Normed(16, 8)), "0"), (Wrapped(), "layer")):
        refuses(lambda model=model: nmt.scores.activation(model, [x]), f"layer {name} is a", "forward is not that of Linear")
        refuses(lambda model=model: nmt.adaprune_(model, "2:4", [x]), f"layer {name} is a", "exclude")
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
    assert torch.allclose(found["0"], nmt.scores.activation(mlp(), [Indexed()[i] for i in range(4)])["0"])


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


def test_hessians_that_cannot_be_inverted_name_the_layer():
    model = mlp()
    before = snapshot(model)
    x = torch.randn(3, 16)
    refuses(lambda: nmt.sparsegpt_(model, "2:4", [x], damping=1e-18), "layer 0", "more damping")
    assert not differing(snapshot(model), before)


def test_scores_that_are_no_plain_tensors_are_refused():
    model, x = mlp(), [torch.randn(5, 16)]
    plain = dict(nmt.scores.magnitude(model))
    for bad in (plain["0"].to_sparse(), plain["0"].to("meta"), plain["0"].to(torch.complex64)):
        refuses(lambda bad=bad: nmt.adaprune_(model, "2:4", x, scores=plain | {"0": bad}), "scores for layer 0")


def test_weights_made_in_inference_mode_are_refused():
    with torch.inference_mode():
        model = mlp()
    x = [torch.randn(5, 16)]
    refuses(lambda: nmt.adaprune_(model, "2:4", x), "layer 0", "inference_mode")
    refuses(lambda: nmt.scores.gradient(model, x, lambda model, x: model(x).mean()), "layer 0", "inference_mode")


def test_adam_works_inside_inference_mode():
    model, x = mlp(), [torch.randn(50, 16)]
    with torch.inference_mode():
        found = nmt.adaprune_(model, "2:4", x, nmt.Adam(steps=100))
    assert all(layer.after < layer.before for layer in found)


def test_numbers_of_numpy_are_numbers():
    for limit in (np.int64(300), np.int32(300), np.float32(300)):
        assert nmt.Params(limit).limit == 300
    for limit in (10**400, np.float64("nan"), np.int64(0), True):
        refuses(lambda limit=limit: nmt.Params(limit), "positive number of kept weights")


def test_a_shared_weight_needs_one_use_only():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.a(x)

    x = [torch.randn(9, 8)]
    assert len(nmt.adaprune_(Shared(), "2:4", x)) == 1
    assert set(nmt.scores.activation(Shared(), x)) == {"a", "b"}
    assert nmt.allocate(Shared(), ["2:4", "1:4"], nmt.FLOPs(40), calibration=x, example_inputs=x[0][:1]).status.value == "optimal"


def test_samples_without_rows_reach_nothing():
    refuses(lambda: nmt.adaprune_(mlp(), "2:4", [torch.randn(0, 16)]), "layers 0, 2 are never reached")
    assert nmt.adaprune_(mlp(), "2:4", [torch.randn(0, 16), torch.randn(5, 16)])


def test_searches_with_a_loss_that_cannot_be_used_again():
    model, x = mlp(), torch.randn(20, 16)
    loss = model(x).square().mean()
    before = snapshot(model)
    refuses(lambda: nmt.domino_search(model, lambda model: loss, nmt.Params(300), m=8), "")
    refuses(lambda: nmt.domino_search(model, lambda model: model(x).mean() * 1j, nmt.Params(300), m=8), "complex")
    assert not differing(snapshot(model), before)
