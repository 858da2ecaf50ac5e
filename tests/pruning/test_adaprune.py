"""Masks changed without retraining: models of every kind, what layers are given, and the report."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import nmsolve
import nmsolve.torch as nmt
from tests.training.small_net import Net


def relative_error(model, dense, x):
    with torch.no_grad():
        return float(
            (model(x).double() - dense(x).double()).square().sum()
            / dense(x).double().square().sum()
        )


@pytest.mark.parametrize("pattern", ["2:4", "2:4T"])
@pytest.mark.parametrize("update", ["least_squares", "adam"])
@pytest.mark.parametrize("sequential", [True, False])
def test_a_whole_model_comes_closer_to_the_dense_one(pattern, update, sequential):
    torch.manual_seed(0)
    model = Net().eval()
    items = [torch.randn(16, 1, 6, 6) for _ in range(4)]
    nmt.adaprune_(
        copy.deepcopy(model), "2:4", items
    )  # batch norm's statistics, for both to compare on
    dense = copy.deepcopy(model)
    settings = nmt.Adam(steps=150) if update == "adam" else update
    plan = nmt.plan(model, pattern)
    plain = copy.deepcopy(model)
    nmt.sparsify_(plain, plan, nmt.Fixed()).finalize_()
    parameters = dict(model.named_parameters())
    storage = {name: p.data_ptr() for name, p in parameters.items()}
    found = nmt.adaprune_(model, plan, items, update=settings, sequential=sequential)
    assert nmt.verify(model, plan)
    assert {layer.path for layer in found} == {layer.path for layer in plan.planned}
    assert found[0].path == "conv"
    assert all(layer.held_out_after <= layer.held_out_before for layer in found)
    assert all(layer.after <= layer.before for layer in found)
    assert dict(model.named_parameters()).keys() == parameters.keys()
    assert all(
        p is parameters[name] and p.data_ptr() == storage[name]
        for name, p in model.named_parameters()
    )
    assert not any(module._forward_pre_hooks or module.training for module in model.modules())
    x = torch.randn(64, 1, 6, 6)
    for net in (dense, plain, model):
        net.norm.reset_running_stats()
        net.norm.train()
        with torch.no_grad():
            net(torch.cat(items))
        net.eval()
    assert relative_error(model, dense, x) < 0.8 * relative_error(plain, dense, x)


def test_sequential_layers_make_up_for_those_before_them():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)
    ).double()
    x = torch.randn(400, 16, dtype=torch.double)
    dense, errors = copy.deepcopy(model), {}
    for sequential in (True, False):
        pruned = copy.deepcopy(dense)
        nmt.adaprune_(pruned, "1:4", [x], sequential=sequential)
        errors[sequential] = relative_error(pruned, dense, x)
    assert errors[True] < errors[False]


def test_unstructured_and_otherwise_masked_models_are_converted():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    x = torch.randn(200, 16)
    unstructured = copy.deepcopy(dense)
    for layer in (unstructured[0], unstructured[2]):
        prune.l1_unstructured(layer, "weight", 0.6)
        prune.remove(layer, "weight")
    row_wise = copy.deepcopy(dense)
    nmt.adaprune_(row_wise, "2:4", [x])
    for start in (unstructured, row_wise):
        model, plain = copy.deepcopy(start), copy.deepcopy(start)
        nmt.sparsify_(plain, "2:4T", nmt.Fixed()).finalize_()
        nmt.adaprune_(model, "2:4T", [x])
        assert nmt.verify(model, "2:4T")
        assert relative_error(model, start, x) < relative_error(plain, start, x)
    assert int((row_wise[0].weight != 0).sum()) == 256


def test_kept_weights_that_were_zero_may_move():
    """The support is the mask, not what was nonzero on it."""
    torch.manual_seed(0)
    layer = nn.Linear(8, 4)
    with torch.no_grad():
        layer.weight[:, :4] = 0
    shared = torch.randn(50, 4)
    nmt.adaprune_(layer, "2:4", [torch.cat([shared, shared + 0.1 * torch.randn(50, 4)], 1)])
    assert int((layer.weight[:, :4] != 0).sum()) == 8


def test_scores_choose_the_mask():
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(8, 4))
    x = torch.randn(40, 8) * torch.tensor([1.0, 9, 1, 1, 1, 1, 9, 1])
    found = nmt.scores.activation(base, [x])
    wanted = nmt.solve(base[0].weight, "2:4", found["0"]).mask
    assert not torch.equal(wanted, nmt.solve(base[0].weight, "2:4").mask)
    plan = nmt.plan(base, "2:4", scores=found)
    for given_plan, rule in (
        (plan, {}),
        ("2:4", {"scores": found}),
        ("2:4", {"criterion": "activation"}),
        ("2:4", {}),
    ):
        model = copy.deepcopy(base)
        nmt.adaprune_(model, given_plan, [x], **rule)
        assert torch.equal(model[0].weight != 0, wanted)
    model = copy.deepcopy(base)
    nmt.adaprune_(model, plan, [x], criterion="magnitude")
    assert not torch.equal(model[0].weight != 0, wanted)


def test_former_names_are_taken_with_a_warning():
    torch.manual_seed(0)
    base, x = nn.Sequential(nn.Linear(8, 4)), [torch.randn(40, 8)]
    for former, now in (
        ({"solver": nmt.Adam(steps=3)}, {"update": nmt.Adam(steps=3)}),
        ({"scores": "activation"}, {"criterion": "activation"}),
    ):
        models = [copy.deepcopy(base) for _ in range(2)]
        with pytest.warns(DeprecationWarning, match=f"renamed to {next(iter(now))}") as caught:
            nmt.adaprune_(models[0], "2:4", x, **former)
        assert [warning.filename for warning in caught] == [__file__]
        nmt.adaprune_(models[1], "2:4", x, **now)
        assert torch.equal(models[0][0].weight, models[1][0].weight)


def test_batch_norms_get_the_statistics_of_the_pruned_model():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8, momentum=0.3), nn.Dropout(0.5), nn.Conv2d(8, 8, 1)
    ).train()
    items = [torch.randn(6, 4, 5, 5) for _ in range(3)]
    found = nmt.adaprune_(model, "2:4", items)
    assert found.batch_norms == 1
    assert "statistics of 1 batch norms" in str(found)
    outputs = [model[0](x).detach() for x in items]
    torch.testing.assert_close(
        model[1].running_mean, torch.stack([y.mean((0, 2, 3)) for y in outputs]).mean(0)
    )
    torch.testing.assert_close(
        model[1].running_var, torch.stack([y.var((0, 2, 3)) for y in outputs]).mean(0)
    )
    assert model[1].momentum == 0.3
    assert model[1].training
    assert model[2].training


def test_a_layer_that_is_called_several_times_sees_all_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.layer = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.layer(self.layer(self.first(x)).tanh())

    torch.manual_seed(0)
    model = Twice().double()
    dense = copy.deepcopy(model)
    x = torch.randn(60, 8, dtype=torch.double)
    plain = copy.deepcopy(model)
    nmt.sparsify_(plain, "2:4", nmt.Fixed()).finalize_()
    nmt.adaprune_(model, "2:4", [x])
    assert relative_error(model, dense, x) < relative_error(plain, dense, x)


def test_one_shot_iterators_and_keyword_arguments_are_taken():
    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 4), nn.Linear(4, 4)

        def forward(self, x, scale=1.0):
            return self.b(self.a(x) * scale)

    model = Keywords()
    found = nmt.adaprune_(model, "2:4", ({"x": torch.randn(6, 8), "scale": 2.0} for _ in range(3)))
    assert len(found) == 2
    nmt.adaprune_(Keywords(), "2:4", [(torch.randn(6, 8), 2.0)])


class Items:
    """Counts how often it is gone through."""

    def __init__(self, items):
        self.items, self.times = items, 0

    def __iter__(self):
        self.times += 1
        return iter(self.items)


@pytest.mark.parametrize("prune", [nmt.adaprune_, nmt.sparsegpt_])
@pytest.mark.parametrize("sequential", [True, False])
def test_items_are_gone_through_once_and_once_more_for_batch_norms(prune, sequential):
    for middle, times in ((nn.ReLU(), 1), (nn.BatchNorm1d(8), 2)):
        model = nn.Sequential(nn.Linear(16, 8), middle, nn.Linear(8, 8), nn.Linear(8, 4))
        items = Items(torch.randn(60, 16).split(20))
        prune(model, "2:4", items, sequential=sequential)
        assert items.times == times


def test_it_repeats_bit_for_bit_and_draws_no_random_numbers():
    torch.manual_seed(0)
    last, x = nn.Linear(8, 8), torch.randn(90, 16)
    base = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), last)
    for call, again in (
        (nmt.adaprune_, []),
        (nmt.adaprune_, [last]),  # twice, so that whole passes are run
        (lambda *args: nmt.adaprune_(*args, update=nmt.Adam(steps=20)), []),
        (lambda *args: nmt.adaprune_(*args, sequential=False), []),
        (nmt.sparsegpt_, []),
    ):
        state, results = torch.get_rng_state(), []
        for _ in range(2):
            model = copy.deepcopy(nn.Sequential(*base, *again))
            call(model, "2:4", x.split(9))
            results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        assert torch.equal(*results)
        assert torch.equal(torch.get_rng_state(), state)


def test_padding_follows_the_plan():
    torch.manual_seed(0)
    x = torch.randn(50, 10)
    for padding, kept in (("pad", 6), ("dense", 6)):
        model = nn.Sequential(nn.Linear(10, 8))
        plan = nmt.plan(model, "2:4", padding=padding)
        nmt.adaprune_(model, plan, [x])
        assert nmt.verify(model, plan)
        assert (model[0].weight != 0).sum(1).unique().tolist() == [kept]


@pytest.mark.parametrize("prune", [nmt.adaprune_, nmt.sparsegpt_])
def test_progress_is_shown_if_asked_for(prune, capsys):
    for progress in (None, False, True):
        prune(
            nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)),
            "2:4",
            [torch.randn(9, 8)],
            progress=progress,
        )
        shown = capsys.readouterr().err
        assert ("pruning" in shown and "/2" in shown) == (progress is True)


def test_the_report_names_layers_and_prints():
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
    found = nmt.adaprune_(model, "2:4", [torch.randn(9, 8)])
    assert [layer.path for layer in found] == ["0", "2"]
    assert [layer.name for layer in found] == ["0", "2"]
    assert found["2"] is found.of("2") is found[1]
    assert found.of("2").shape == (4, 8)
    assert found.of("2").pattern == nmsolve.Pattern.parse("2:4")
    assert "error before" in str(found)
    assert found.seconds > 0
    with pytest.raises(KeyError, match="there are 0, 2"):
        found.of("1")
