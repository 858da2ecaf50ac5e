"""What users do around masked models: odd assignments, transforms, frozen layers, checkpoints cut
and cast, copies.
"""

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import nmsolve.torch as nmt
from nmsolve import InputError, NMSolveError


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4))


def dense(model, layer=0):
    return model[layer].parametrizations.weight.original


def train(model, optimizer, steps, scale=1.0):
    for step in range(steps):
        optimizer.zero_grad()
        x = scale * torch.randn(5, 8, generator=torch.Generator().manual_seed(step))
        (model(x) - 1).square().mean().backward()
        optimizer.step()


def test_assigning_copies_and_checks():
    a, b = net(), net(1)
    nmt.sparsify_(a, "2:4", nmt.STE())
    sparse = nmt.sparsify_(b, "2:4", nmt.STE()).attach(torch.optim.SGD(b.parameters(), lr=0.1))
    b[0].weight = a[0].weight.detach()
    held = a[0].weight.detach().clone()
    train(b, sparse._attachments[0].optimizer, 2)
    assert torch.equal(a[0].weight, held)
    with pytest.raises(InputError, match=r"shape \(12, 8\); a tensor of shape \(5, 5\)"):
        b[0].weight = torch.zeros(5, 5)
    before = dense(b).detach().clone()
    with pytest.raises(InputError, match=r"parametrizations\.weight\.original"):
        torch.func.functional_call(
            b, {"0.weight": torch.randn(12, 8, requires_grad=True)}, (torch.ones(2, 8),)
        )
    assert torch.equal(dense(b), before)
    w = torch.randn(12, 8, requires_grad=True)
    torch.func.functional_call(
        b, {"0.parametrizations.weight.original": w}, (torch.ones(2, 8),)
    ).sum().backward()
    assert w.grad.count_nonzero() > 0
    with pytest.raises(InputError, match="load_state_dict"):
        b[0].weight_mask = torch.ones(3)


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.*deprecated:DeprecationWarning"
)  # torch.func and torch.export use it themselves
@pytest.mark.parametrize("method", [nmt.STE(), nmt.Fixed()])
def test_transforms(method):
    """Forward-mode derivatives, traces and exports."""
    model = net()
    sparse = nmt.sparsify_(model, "2:4", method)
    x = torch.randn(3, 8)
    weight, mask = dense(model).detach(), sparse.layers[0].masked.mask
    direction = torch.randn_like(weight)
    _, tangent = torch.func.jvp(
        lambda w: torch.func.functional_call(
            model[0], {"parametrizations.weight.original": w}, (x,)
        ),
        (weight,),
        (direction,),
    )
    through = direction if isinstance(method, nmt.STE) else direction * mask
    torch.testing.assert_close(tangent, x @ through.T)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))


@pytest.mark.filterwarnings("ignore:`torch.jit.*deprecated:DeprecationWarning")
def test_traces_of_torch_jit(tmp_path):
    model = net()
    nmt.sparsify_(model, "2:4", nmt.STE())
    x = torch.randn(3, 8)
    torch.jit.trace(model, x).save(tmp_path / "model.pt")
    torch.testing.assert_close(torch.jit.load(tmp_path / "model.pt")(x), model(x))


@pytest.mark.parametrize("method", [nmt.STE(), nmt.SRSTE(decay=0.1), nmt.Fixed()])
def test_layers_that_thaw(method):
    """Frozen at attach, trained later, as by Lightning's BackboneFinetuning."""
    model = net()
    model[0].weight.requires_grad_(False)
    sparse = nmt.sparsify_(model, "2:4", method)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    sparse.attach(optimizer)
    train(model, optimizer, 2)
    assert [layer.step for layer in sparse.stats().layers.values()] == [0, 2]
    dense(model).requires_grad_(True)
    optimizer.add_param_group({"params": [dense(model)], "lr": 0.5})
    train(model, optimizer, 10, scale=3.0)
    assert [layer.step for layer in sparse.stats().layers.values()] == [10, 12]
    layer = sparse.layers[0]
    if isinstance(method, nmt.STE):
        assert torch.equal(layer.masked.mask, nmt.solve(layer.weight, "2:4").mask)
        assert sparse.stats().layers["0"].flips > 0
    else:
        assert not layer.weight[~layer.masked.mask].any()


def test_lbc_refuses_frozen_layers():
    model = net()
    model[0].weight.requires_grad_(False)
    sparse = nmt.sparsify_(model, "2:4", nmt.LBC(t_i=0, t_f=5))
    with pytest.raises(InputError, match=r"weight of 0:.*leave the layers out of the plan$"):
        sparse.attach(torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1))


def test_a_weight_in_two_optimizers():
    model = net()
    one, two = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
    with pytest.raises(InputError, match="layer 0 is in several"):
        nmt.sparsify_(model, "2:4").attach(one, two)


def test_a_schedule_of_lbc_that_is_over_when_it_resumes():
    """Masks become n:m at the next step, whatever the step counter says."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    nmt.sparsify_(model, "2:4", nmt.LBC(t_i=0, t_f=100)).attach(optimizer)
    train(model, optimizer, 20)
    again = net(1)
    sparse = nmt.sparsify_(again, "2:4", nmt.LBC(t_i=0, t_f=15))
    again.load_state_dict(model.state_dict())
    optimizer = torch.optim.SGD(again.parameters(), lr=0.1)
    sparse.attach(optimizer)
    train(again, optimizer, 1)
    assert sparse.finalize_().ok


def test_checkpoints_of_lbc_loaded_after_attaching():
    fresh = net()
    nmt.sparsify_(fresh, "2:4", nmt.LBC(t_i=0, t_f=6))
    state = copy.deepcopy(fresh.state_dict())  # no candidates yet
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = nmt.sparsify_(model, "2:4", nmt.LBC(t_i=0, t_f=6)).attach(optimizer)
    train(model, optimizer, 2)
    model.load_state_dict(state)
    train(model, optimizer, 6)
    assert sparse.finalize_().ok
    other = net()
    other_optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    nmt.sparsify_(other, "2:4", nmt.LBC(t_i=0, t_f=6, criterion="gradient")).attach(other_optimizer)
    train(other, other_optimizer, 2)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    nmt.sparsify_(model, "2:4", nmt.LBC(t_i=0, t_f=6, momentum=0.0)).attach(optimizer)
    model.load_state_dict(other.state_dict())
    with pytest.raises(InputError, match="layer 0: the checkpoint's candidates"):
        train(model, optimizer, 1)


def test_a_state_dict_without_the_duplicates_of_tied_weights():
    """As safetensors.torch.save_model writes it."""

    def tied():
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        model[1].weight = model[0].weight
        return model

    model = tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = nmt.sparsify_(model, "2:4", nmt.LBC(t_i=0, t_f=20)).attach(optimizer)
    train(model, optimizer, 8)
    state = {
        key: value
        for key, value in model.state_dict().items()
        if key not in ("1.weight", "1.weight_alive", "1.weight_scores")
    }
    again = tied()
    resumed = nmt.sparsify_(again, "2:4", nmt.LBC(t_i=0, t_f=20))
    again.load_state_dict(state, strict=False)
    assert resumed.layers[0].masked.candidates.left == sparse.layers[0].masked.candidates.left < 6


def test_fixed_resumes_in_any_order():
    """Momenta are masked by the masks that belong to them, loaded before or after, attached before
    or after.
    """
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    nmt.sparsify_(model, "2:4", nmt.Fixed()).attach(optimizer)
    train(model, optimizer, 3)
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, 4)
    for order in itertools.permutations(("attach", "model", "optimizer")):
        again = net(5)
        other = torch.optim.AdamW(again.parameters(), lr=0.05)
        sparse = nmt.sparsify_(again, "2:4", nmt.Fixed())
        for what in order:
            if what == "attach":
                sparse.attach(other)
            elif what == "model":
                again.load_state_dict(state[0])
            else:
                other.load_state_dict(copy.deepcopy(state[1]))  # which is shared otherwise
        train(again, other, 4)
        assert torch.equal(dense(again), dense(model)), order


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s | {"0.weight_progress": s["0.weight_progress"].half()}, "was cast or cut"),
        (lambda s: s | {"0.weight_progress": s["0.weight_progress"][:3]}, "was cast or cut"),
        (lambda s: s | {"0.weight_progress": s["0.weight_progress"] * math.nan}, "not finite"),
        (lambda s: s | {"0.weight_mask": s["0.weight_mask"].float()}, "was cast or cut"),
        (
            lambda s: s | {"0.weight_progress": torch.zeros(9, dtype=torch.float64)},
            "pattern 0:0, the plan 2:4",
        ),
    ],
)
def test_spoiled_checkpoints(spoil, message):
    model = net()
    nmt.sparsify_(model, "2:4")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(InputError, match=message):
        model.load_state_dict(spoil(dict(before)))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_parametrizations_added_later():
    class Twice(nn.Module):
        def forward(self, x):
            return 2 * x

    for name in ("bias", "weight"):
        model = net()
        sparse = nmt.sparsify_(model, "2:4")
        parametrize.register_parametrization(model[0], name, Twice())
        with pytest.raises(InputError, match="layer 0 has parametrizations besides its mask"):
            sparse.finalize_()
        assert parametrize.is_parametrized(model[0])


def test_attributes_that_are_called_like_ours():
    model = net()
    model[0].register_buffer("weight_mask", torch.ones(12, 8))
    with pytest.raises(InputError, match="layer 0 has an attribute weight_mask of its own"):
        nmt.sparsify_(model, "2:4")
    assert not parametrize.is_parametrized(model[0])


def test_plans_that_do_not_know_of_ties():
    def pair(second):
        return nn.ModuleDict({"a": second, "b": nn.Linear(8, 8)})

    plan = nmt.plan(pair(nn.Linear(8, 8)), {"a": "2:4", "b": "1:4"})
    model = pair(nn.Linear(8, 8))
    model["b"].weight = model["a"].weight
    with pytest.raises(InputError, match="a, b are one weight"):
        nmt.sparsify_(model, plan)
    plan = nmt.plan(pair(nn.Embedding(8, 8)), "2:4")
    model = pair(nn.Embedding(8, 8))
    model["b"].weight = model["a"].weight
    with pytest.raises(InputError, match="a, b are one weight"):
        nmt.sparsify_(model, plan)


def test_accelerating_what_is_masked(warned_already):
    model = net()
    nmt.sparsify_(model, "2:4")
    table = nmt.accelerate_(model, torch.ones(2, 8))
    assert {layer.reason for layer in table} == {
        "masks are on it: finalize_ first, or sparsify_(…, accelerate=True)"
    }


def test_small_things():
    model = net()
    with torch.inference_mode():
        sparse = nmt.sparsify_(model, "2:4", nmt.STE())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse.attach(optimizer)
    train(model, optimizer, 2)
    assert sparse.stats().step == 2
    twin = copy.copy(model[0])
    assert torch.equal(twin.weight, model[0].weight)
    copied = copy.deepcopy(model)
    sparse.finalize_(copied)
    assert not copied._load_state_dict_pre_hooks
    for make in (
        lambda: nmt.LBC(t_i=0, t_f=5, momentum="a"),
        lambda: nmt.plan(net(), "2:4", include=3),
        lambda: nmt.plan(net(), {0: "2:4"}),
    ):
        with pytest.raises(NMSolveError):
            make()


def test_decoupled_decay_counts_once_a_step_of_lbfgs():
    """Which evaluates its closure several times: the gradient is not zero where weights are kept,
    and is where they are dropped.
    """
    torch.manual_seed(0)
    kept = torch.tensor([1.0, 1.0, 0.0, 0.0]).repeat(2)
    model = nn.Sequential(nn.Linear(8, 4, bias=False))
    with torch.no_grad():
        model[0].weight.mul_(0.1).add_(kept)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.0, max_iter=4)
    sparse = nmt.sparsify_(model, "2:4", nmt.SRSTE(decay=0.5, decoupled=True)).attach(optimizer)
    optimizer.param_groups[0]["lr"] = 0.1
    before = sparse.layers[0].weight[:, kept == 0].detach().clone()
    calls = []

    def closure():
        calls.append(model[0].weight.detach().clone())
        optimizer.zero_grad()
        loss = (model(kept * torch.arange(8)) - 1).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert len(calls) > 1
    after = sparse.layers[0].weight[:, kept == 0].detach()
    torch.testing.assert_close(after, before * (1 - 0.1 * 0.5))


def test_finalizing_whatever_became_of_other_parameters():
    """A bias pruned, deleted or made a buffer, parameters added: masks come off whole, parameters
    keep their order.
    """

    def finalized(change):
        model = net()
        sparse = nmt.sparsify_(model, "2:4", nmt.STE())
        change(model[0])
        masked = model[0].weight.detach().clone()
        assert sparse.finalize_().ok
        assert torch.equal(model[0].weight, masked)
        return list(model[0]._parameters)

    def to_buffer(layer):
        del layer.bias
        layer.register_buffer("bias", torch.zeros(12))

    def more(layer):
        for name in ("p2", "p1", "p4", "p3"):
            layer.register_parameter(name, nn.Parameter(torch.zeros(1)))

    assert finalized(lambda layer: prune.l1_unstructured(layer, "bias", 0.5)) == [
        "weight",
        "bias_orig",
    ]
    assert finalized(to_buffer) == ["weight"]
    assert finalized(more) == ["weight", "bias", "p2", "p1", "p4", "p3"]


def test_a_shallow_copy_outlives_its_original():
    model = net()
    sparse = nmt.sparsify_(model, "2:4", nmt.STE())
    layer, x = copy.copy(model[0]), torch.randn(3, 8)
    before = layer(x)
    sparse.finalize_()
    assert torch.equal(layer(x), before)


def test_names_with_brackets():
    model = nn.Sequential()
    model.add_module("blk[0]", nn.Linear(8, 8))
    model.add_module("head", nn.Linear(8, 8))
    assert [layer.path for layer in nmt.plan(model, "2:4", exclude="blk[0]").planned] == ["head"]


def test_a_model_without_weights():
    assert len(nmt.plan(nn.ReLU(), "2:4")) == 0
    with pytest.raises(InputError, match="the plan has nothing to do"):
        nmt.sparsify_(nn.ReLU(), "2:4")
