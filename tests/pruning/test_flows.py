"""Pruning models whose layers are not called one after the other: branches, experts, empty batches,
shared layers, batch norms.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import nmsolve.torch as nmt
from tests.checkpoint.snapshots import differing, snapshot
from tests.pruning.deep_models import Keeping
from tests.pruning.pruning_models import mlp, refuses, same_after


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


def test_batch_norms_in_front_of_what_is_pruned_keep_their_statistics():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        nn.Linear(72, 4),
    )
    for _ in range(5):
        model(torch.randn(16, 4, 7, 7) * 3 + 5)
    before = snapshot(model[1])
    items = [torch.randn(16, 4, 7, 7)]
    found = nmt.adaprune_(model, nmt.plan(model, "2:4", exclude="0"), items)
    assert not differing(snapshot(model[1]), before)
    assert found.batch_norms == 1
    assert nmt.adaprune_(model, nmt.plan(model, "2:4", include="6"), items[:1]).batch_norms == 0


def test_batch_norms_called_by_keyword():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)

        def forward(self, x):
            return self.norm(input=self.body(input=x))

    assert nmt.adaprune_(Named(), "2:4", [torch.randn(32, 8)]).batch_norms == 1


class Branched(nn.Module):
    """Norms that some inputs come to: in front of what is pruned, behind it, and at the end."""

    def __init__(self):
        super().__init__()
        self.stem, self.usual, self.front, self.behind, self.last = (
            nn.BatchNorm1d(8) for _ in range(5)
        )
        self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        rare = x[0, 0] > 0
        h = self.body((self.front if rare else self.stem)(x))
        y = self.head((self.behind if rare else self.usual)(h))
        return self.last(y) if rare else y


@pytest.mark.parametrize("options", [{}, {"sequential": False}])
def test_batch_norms_that_only_some_items_come_to(options):
    torch.manual_seed(0)
    model = Branched()
    usual, rare = torch.randn(2, 40, 8)
    usual[0, 0], rare[0, 0] = -1, 1
    before = [snapshot(norm) for norm in (model.stem, model.front)]
    found = nmt.adaprune_(model, "2:4", [usual, rare, rare + 1, usual], **options)
    assert found.batch_norms == 3
    assert not any(
        differing(snapshot(norm), then)
        for norm, then in zip((model.stem, model.front), before, strict=True)
    )
    model.eval()
    given = [model.body(model.front(x)) for x in (rare, rare + 1)]
    torch.testing.assert_close(
        model.behind.running_mean, torch.stack([h.mean(0) for h in given]).mean(0)
    )
    ended = [model.head(nn.functional.batch_norm(h, None, None, training=True)) for h in given]
    torch.testing.assert_close(
        model.last.running_var, torch.stack([y.var(0) for y in ended]).mean(0)
    )


def test_batch_norms_that_only_some_items_come_to_need_more_than_one_value():
    for norm in ("behind", "last"):
        model = Branched()
        if norm == "last":
            model.behind = nn.Identity()
        before, usual, rare = snapshot(model), torch.randn(40, 8), torch.ones(1, 8)
        usual[0, 0] = -1
        refuses(
            lambda model=model, usual=usual, rare=rare: nmt.adaprune_(model, "2:4", [usual, rare]),
            f"batch norm {norm} is given one value a channel by calibration item 1",
        )
        assert not differing(snapshot(model), before)


class Boxes(nn.Module):
    """A detector's head: images in which nothing is found give it a batch of none."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return self.head(self.stem(x[x.mean((1, 2, 3)) > 0]))


def test_convolutions_of_empty_batches():
    torch.manual_seed(0)
    x = torch.rand(3, 4, 6, 6)
    with_empty, without = [x, -x, x + 0.1], [x, x + 0.1]
    scores = [nmt.scores.activation(seeded_boxes(), items) for items in (with_empty, without)]
    assert all(torch.equal(scores[0][path], scores[1][path]) for path in ("stem", "head"))
    rises = [
        nmt.losses(seeded_boxes(), ["2:4", "1:4"], calibration=items, example_inputs=x)
        for items in (with_empty, without)
    ]
    assert rises[0] == rises[1]
    for prune in (nmt.adaprune_, nmt.sparsegpt_):
        models = [seeded_boxes(), seeded_boxes()]
        for model, items in zip(models, (with_empty, without), strict=True):
            prune(model, "2:4", items)
        assert same_after(*models)
    refuses(
        lambda: nmt.scores.activation(seeded_boxes(), [-x]),
        "layers stem, head are never reached by the calibration",
    )
    refuses(
        lambda: nmt.losses(seeded_boxes(), ["2:4"], calibration=[-x]),
        "layers stem, head are never reached",
    )


def seeded_boxes():
    torch.manual_seed(0)
    return Boxes()


class Rare(nn.Module):
    """A branch that only some inputs take, between layers that all do."""

    def __init__(self):
        super().__init__()
        self.first, self.common, self.rare, self.head = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        h = self.first(x)
        return self.head((self.rare if x[0, 0] > 0 else self.common)(h).relu())


def test_branches_come_before_what_they_lead_to():
    torch.manual_seed(0)
    model, x = Rare(), torch.randn(20, 8)
    x[0, 0] = -1
    other = x.clone()
    other[0, 0] = 1
    found = nmt.adaprune_(copy.deepcopy(model), "2:4", [x, other])
    assert [layer.name for layer in found] == ["first", "rare", "common", "head"]
    offered = nmt.losses(
        model, ["2:4"], calibration=[x, other]
    )  # counted for the first item, which does not reach all
    assert [layer.positions for layer in offered] == [20, 20, None, 20]
    assert nmt.allocate(offered, budget=nmt.Params(128)).status.value == "optimal"
    refuses(
        lambda: nmt.allocate(offered, budget=nmt.FLOPs(9999)),
        "no multiply-adds are known of layer rare",
    )
    refuses(
        lambda: nmt.losses(model, ["2:4"], calibration=[x, other], example_inputs=x),
        "layer rare is never reached by the ex",
    )


def test_shared_layers_between_others_keep_the_order():
    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x):
            return self.c(self.a(self.b(self.a(x))))

    assert [layer.name for layer in nmt.adaprune_(Again(), "2:4", [torch.randn(20, 8)])] == [
        "a",
        "b",
        "c",
    ]


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
            self.a, self.b, self.head, self.features = (
                nn.Linear(16, 16),
                nn.Linear(16, 16),
                nn.Linear(32, 8),
                [],
            )
            for layer in (self.a, self.b):
                layer.register_forward_hook(
                    lambda module, args, output: self.features.append(output)
                )

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
    assert (
        nmt.allocate(
            Shared(), ["2:4", "1:4"], nmt.FLOPs(40), calibration=x, example_inputs=x[0][:1]
        ).status.value
        == "optimal"
    )


class Past(nn.Module):
    """Multiplies by weights without calling their modules, as the attention of Swin and BEiT
    does.
    """

    def __init__(self, past):
        super().__init__()
        self.past = past
        self.qkv, self.proj, self.norm = nn.Linear(8, 24), nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x):
        if self.past:
            q, k, v = F.linear(input=x, weight=self.qkv.weight, bias=self.qkv.bias).chunk(3, -1)
        else:
            q, k, v = self.qkv(x).chunk(3, -1)
        x = self.norm(x + F.scaled_dot_product_attention(q, k, v))
        return F.linear(x, self.proj.weight, self.proj.bias) if self.past else self.proj(x)


def test_weights_that_are_read_past_their_modules():
    torch.manual_seed(0)
    models = [Past(False), Past(True)]
    models[1].load_state_dict(models[0].state_dict())
    x = [torch.randn(3, 5, 8), torch.randn(2, 5, 8)]
    scores = [nmt.scores.activation(model, x) for model in models]
    assert all(torch.equal(scores[0][path], scores[1][path]) for path in ("qkv", "proj"))
    assert nmt.losses(models[0], ["2:4", "1:4"], calibration=x) == nmt.losses(
        models[1], ["2:4", "1:4"], calibration=x
    )
    for model in models:
        nmt.adaprune_(model, "2:4", x)
    assert same_after(*models)


def test_samples_without_rows_reach_nothing():
    refuses(
        lambda: nmt.adaprune_(mlp(), "2:4", [torch.randn(0, 16)]), "layers 0, 2 are never reached"
    )
    assert nmt.adaprune_(mlp(), "2:4", [torch.randn(0, 16), torch.randn(5, 16)])


@pytest.mark.parametrize("twice", [False, True])
def test_a_tenth_of_the_items_that_give_a_layer_rows_is_held_out(twice):
    class Expert(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x):
            h = self.a(x).tanh()
            if twice:  # forwards are not stopped then
                h = self.a(h).tanh()
            return self.b(h[: len(h) * int(x[0, 0] > 0)])

    items = [torch.randn(20, 16) for _ in range(20)]
    for i, x in enumerate(items):
        x[0, 0] = -1.0 if i % 2 else 1.0
    found = nmt.adaprune_(Expert(), "2:4", items)
    assert ("whole passes" in found.way) == twice
    assert found.of("b").samples == 9 * 20
    assert found.of("b").held_out_after is not None


@pytest.mark.parametrize("around", [False, True])
def test_an_expert_that_loses_an_item_once_others_are_pruned_keeps_its_tenth(around):
    """Ten items come to it in the dense model, nine in the pruned one."""

    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.expert, self.out = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 8)
            self.least = [-99.0] * 10

        def forward(self, x):
            h = self.a(x)
            if h[0, 0] > self.least[int(x[0, 0])]:
                h = h + self.expert(h)
            return self.out(h)

    torch.manual_seed(1)
    model, items = Routed(), [torch.randn(40, 16) for _ in range(10)]
    for i, x in enumerate(items):
        x[0, 0] = i + 0.5  # tells the item
    first = copy.deepcopy(model)
    nmt.adaprune_(first, {"a": "2:4"}, items)
    for i, x in enumerate(items):  # the first that loses
        dense, pruned = (one.a(x)[0, 0].item() for one in (model, first))
        if dense > pruned:
            model.least[i] = (dense + pruned) / 2
            break
    found = nmt.adaprune_(Keeping(model) if around else model, "2:4", items)
    assert ("whole passes" in found.way) == around
    expert = found[1]
    assert expert.path.endswith("expert")
    assert expert.held_out_after is not None
    assert expert.samples == 9 * 36
