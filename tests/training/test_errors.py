"""Bad use of training: a clear error that names the layer and the remedy, and everything as it
was.
"""

import copy
import math

import pytest
import torch
from torch import nn

import nmsolve.torch as nmt
from nmsolve import InputError, MissingDependencyError, NMSolveError, PatternError, SolverError
from nmsolve.torch.training import lbc


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))


def state(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_unchanged(model, before):
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())


def step(model, optimizer, value=1.0):
    optimizer.zero_grad()
    model(torch.full((2, 16), value)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda model: torch.optim.SGD(net().parameters(), lr=0.1),
            r"SGD does not hold the weight of 0, 2: make it from the parameters",
        ),
        (
            lambda model: torch.optim.AdamW(model[0].parameters(), lr=0.1),
            "AdamW does not hold the weight of 2:",
        ),
        (lambda model: "adam", "torch optimizers, got str"),
    ],
)
def test_attach_to_an_optimizer_that_does_not_hold_the_weights(make, message):
    model = net()
    sparse = nmt.sparsify_(model, "2:4")
    good = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse.attach(good)
    bad = make(model)
    with pytest.raises(InputError, match=message):
        sparse.attach(bad)
    assert not getattr(bad, "_optimizer_step_pre_hooks", None)
    step(model, good)  # what was attached before still is
    assert sparse.stats().step == 1
    with pytest.raises(InputError, match="takes the optimizer"):
        sparse.attach()


def test_attaching_again_replaces():
    model = net()
    first, second = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
    sparse = nmt.sparsify_(model, "2:4").attach(first)
    sparse.attach(second)
    assert not first._optimizer_step_post_hooks
    sparse.attach(second)
    step(model, second)
    assert sparse.stats().step == 1
    sparse.detach()
    step(model, second)
    assert sparse.stats().step == 1


def test_sparsify_twice():
    model = net()
    sparse = nmt.sparsify_(model, "2:4")
    before = state(model)
    with pytest.raises(InputError, match=r"sparsified already \(0, 2\).*finalize_"):
        nmt.sparsify_(model, "2:4")
    with pytest.raises(InputError, match="already"):
        nmt.sparsify_(nn.Sequential(model, nn.Linear(8, 8)), "1:4")
    assert_unchanged(model, before)
    sparse.finalize_()
    nmt.sparsify_(model, "1:4").finalize_()
    assert nmt.verify(model, "1:4").ok


@pytest.mark.parametrize("method", [nmt.STE(), nmt.SRSTE()])
def test_training_without_attach(method):
    """Masks are those of the first weights: finalize_ warns of it, unless they were chosen anew."""
    for refreshed in (False, True):
        model = net()
        sparse = nmt.sparsify_(model, "2:4", method)
        step(model, torch.optim.SGD(model.parameters(), lr=0.01))
        if refreshed:
            sparse.refresh_()
            assert sparse.finalize_().ok
        else:
            with pytest.warns(
                UserWarning,
                match=r"weights have changed since sparsify_.*sparse\.attach\(optimizer\)",
            ):
                assert sparse.finalize_().ok


def test_finalize_twice():
    model = net()
    sparse = nmt.sparsify_(model, "2:4")
    twin = copy.deepcopy(model)
    sparse.finalize_()
    before = state(model)
    for call in (
        sparse.finalize_,
        sparse.stats,
        lambda: sparse.attach(torch.optim.SGD(model.parameters(), lr=0.1)),
    ):
        with pytest.raises(InputError, match="finalized"):
            call()
    assert_unchanged(model, before)
    sparse.finalize_(twin)
    with pytest.raises(InputError, match="has no mask of this plan: it is finalized already"):
        sparse.finalize_(twin)


def test_a_plan_with_nothing_to_do():
    model = nn.Sequential(nn.Linear(6, 6), nn.Embedding(4, 4))
    before = state(model)
    with pytest.raises(InputError, match=r"nothing to do.*\n.*\n.*6 input channels.*\n.*embedding"):
        nmt.sparsify_(model, "2:4")
    with pytest.raises(InputError, match="nothing to verify"):
        nmt.verify(model, "2:4")
    assert_unchanged(model, before)


def test_a_plan_made_for_another_model():
    plan = nmt.plan(net(), "2:4")
    other = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 8))
    before = state(other)
    for use in (nmt.sparsify_, nmt.verify):
        with pytest.raises(
            InputError,
            match=r"another model than this Sequential: its 0 has shape \(32, 16\), not \(16, "
            r"16\); it has no 2",
        ):
            use(other, plan)
    assert_unchanged(other, before)
    wrapper = nn.Module()
    wrapper.module = net()
    with pytest.raises(InputError, match=r"it has no 0.*\.module"):
        nmt.verify(wrapper, plan)
    conv = nn.Sequential(nn.Embedding(16, 16), nn.ReLU(), nn.Linear(16, 8))
    with pytest.raises(InputError, match="0 is a Embedding, planned was a Linear"):
        nmt.sparsify_(conv, plan)
    normed = net()
    nn.utils.parametrizations.weight_norm(normed[0])
    with pytest.raises(
        InputError, match="0 is a ParametrizedLinear, planned was a Linear: make a new plan"
    ):
        nmt.sparsify_(normed, plan)


@pytest.mark.parametrize("saved", ["1:4", "2:4T", "4:8", "<=2:4"])
def test_a_checkpoint_with_masks_of_another_pattern(saved):
    source = net()
    nmt.sparsify_(source, saved)
    model = net()
    with torch.no_grad():
        model[0].weight.add_(1)
    sparse = nmt.sparsify_(model, "2:4")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse.attach(optimizer)
    before = state(model)
    for strict in (True, False):
        with pytest.raises(
            InputError,
            match=rf"nothing was loaded into the sparsified model: 0\.weight: .* pattern {saved}, "
            rf"the plan 2:4; sparsify",
        ):
            model.load_state_dict(source.state_dict(), strict=strict)
        assert_unchanged(model, before)
    step(model, optimizer)
    broken = model.state_dict()
    broken["2.weight_mask"] = broken["2.weight_mask"][:3]
    before = state(model)
    with pytest.raises(InputError, match="3 bytes"):
        model.load_state_dict(broken)
    assert_unchanged(model, before)
    inner = nn.Sequential(nn.Linear(16, 16))
    nmt.sparsify_(inner, "1:4")
    with pytest.raises(RuntimeError, match="pattern 1:4"):  # a part of the model, loaded on its own
        model[0].load_state_dict(inner[0].state_dict())


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("2:4T", "layer 0: .*not 2:4T"),
        ("<=2:4", "layer 0: .*not <=2:4"),
        ("32:64", "layer 0: .*candidates.*GiB"),
    ],
)
def test_lbc_with_a_pattern_that_it_cannot_serve(pattern, message):
    model = nn.Sequential(nn.Linear(64, 64))
    before = state(model)
    with pytest.raises(PatternError, match=message):
        nmt.sparsify_(model, pattern, nmt.LBC(t_i=0, t_f=10))
    assert_unchanged(model, before)


def test_lbc_that_does_not_fit_in_memory():
    """8:16 takes 812 bytes a weight: the real figure of this machine's memory decides."""
    free = lbc.free_bytes(torch.device("cpu"))
    if free is None:
        pytest.skip("this system does not tell how much memory is free")
    side = 16 * math.ceil(math.sqrt(2 * free / (8 + math.comb(16, 8) / 16)) / 16)
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(side, side, bias=False))
    model = model.to_empty(device="cpu")  # not touched, so it takes no memory
    with pytest.raises(
        InputError,
        match=r"candidates would take [\d,.]+ GiB on cpu, where [\d,.]+ GiB are free: pattern 8:16 "
        r"takes 812 bytes",
    ):
        nmt.sparsify_(model, "8:16", nmt.LBC(t_i=0, t_f=10))
    assert type(model[0]) is nn.Linear


def test_lbc_that_is_not_done():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sparse = nmt.sparsify_(model, "2:4", nmt.LBC(t_i=0, t_f=9))
    with pytest.raises(
        InputError, match="0 has 6 candidates a group alive after 0 steps; train to step t_f=9"
    ):
        sparse.finalize_()
    sparse.attach(optimizer)
    for _ in range(2):
        step(model, optimizer)
    assert not nmt.verify(model, sparse.plan)
    before = state(model)
    with pytest.raises(InputError, match="LBC is not done"):
        sparse.finalize_()
    assert_unchanged(model, before)
    for _ in range(7):
        step(model, optimizer)
    assert sparse.finalize_().ok


def test_lbc_and_padding():
    plan = nmt.plan(nn.Sequential(nn.Linear(10, 8)), "2:4", padding="pad")
    with pytest.raises(InputError, match=r"padding='pad'.*padding='skip'"):
        nmt.sparsify_(nn.Sequential(nn.Linear(10, 8)), plan, nmt.LBC(t_i=0, t_f=3))


def test_resuming_lbc_with_another_criterion():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    nmt.sparsify_(model, "2:4", nmt.LBC(t_i=0, t_f=5, criterion="magnitude")).attach(optimizer)
    again = net()
    sparse = nmt.sparsify_(again, "2:4", nmt.LBC(t_i=0, t_f=5))
    again.load_state_dict(model.state_dict())
    with pytest.raises(
        InputError, match=r"layer 0: the checkpoint's candidates.*criterion 'learned'"
    ):
        sparse.attach(torch.optim.SGD(again.parameters(), lr=0.01))


@pytest.mark.parametrize("replace", ["parameter", "assign"])
@pytest.mark.parametrize(
    "method", [nmt.STE(), nmt.Fixed(), nmt.SRSTE(decay=0.1), nmt.LBC(t_i=0, t_f=4)]
)
def test_a_parameter_replaced_behind_our_back(replace, method):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = nmt.sparsify_(model, "2:4", method).attach(optimizer)
    step(model, optimizer)
    if replace == "assign":
        model.load_state_dict(state(model), assign=True)
    else:
        model[0].parametrizations.weight.original = nn.Parameter(torch.ones(16, 16))
        model[2].parametrizations.weight.original = nn.Parameter(torch.ones(8, 16))
    before = state(model)
    with pytest.raises(
        InputError, match=r"weight of 0, 2 is no longer the tensor that the SGD holds.*attach"
    ):
        step(model, optimizer)
    assert_unchanged(model, before)
    fresh = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse.attach(fresh)
    step(model, fresh)
    assert sparse.stats().step == 2


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "method",
    [
        nmt.STE(),
        nmt.SRSTE(decay=0.1),
        nmt.LBC(t_i=0, t_f=9),
        nmt.LBC(t_i=0, t_f=9, criterion="magnitude"),
    ],
)
def test_weights_that_are_not_finite_at_a_refresh(value, method):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sparse = nmt.sparsify_(model, "2:4", method).attach(optimizer)
    step(model, optimizer)
    masks = [layer.masked.mask.clone() for layer in sparse.layers]
    stats = str(sparse.stats())
    backup = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    optimizer.zero_grad()
    loss = model(torch.ones(2, 16)).square().sum()
    loss.backward()
    model[2].parametrizations.weight.original.grad[1, 3] = value
    for _ in range(2):  # LBC's schedule may not remove at every step
        try:
            optimizer.step()
        except NMSolveError as error:
            message = str(error)
            break
    else:
        pytest.fail("no error")
    assert "layer 2: " in message
    assert "resume from the last checkpoint, with a lower learning rate" in message
    assert [
        torch.equal(a, layer.masked.mask) for a, layer in zip(masks, sparse.layers, strict=True)
    ] == [True, True]
    assert str(sparse.stats()) == stats
    model.load_state_dict(backup[0])  # from here training goes on
    optimizer.load_state_dict(backup[1])
    step(model, optimizer)
    assert sparse.stats().step == 2


def test_weights_that_are_not_finite_at_the_start():
    model = net()
    with torch.no_grad():
        model[2].weight[3, 5] = math.nan
    before = copy.deepcopy(model)
    with pytest.raises(InputError, match=r"layer 2: weights\[3, 5\] is nan"):
        nmt.sparsify_(model, "2:4")
    assert [type(module) for module in model] == [type(module) for module in before]


@pytest.mark.parametrize(
    "score", [lambda weight, gradient: weight[0], lambda weight, gradient: 3.0]
)
def test_a_score_that_is_none(score):
    model = net()
    with pytest.raises(InputError, match="layer 0: the score function gave"):
        nmt.sparsify_(model, "2:4", nmt.STE(score=score))
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nmt.STE(update_every=0), "update_every counts optimizer steps.*got 0"),
        (lambda: nmt.STE(update_every=2.0), r"got 2\.0"),
        (lambda: nmt.SRSTE(freeze_after=-1), "freeze_after"),
        (lambda: nmt.SRSTE(decay=-1e-4), "decay must be"),
        (lambda: nmt.SRSTE(decay="x"), "decay must be"),
        (lambda: nmt.SRSTE(decoupled="yes"), "decoupled"),
        (lambda: nmt.LBC(t_i=5, t_f=5), "t_i must be less than t_f, got t_i=5, t_f=5"),
        (lambda: nmt.LBC(t_i=0, t_f=5, criterion="best"), "criterion must be one of 'learned'"),
        (lambda: nmt.LBC(t_i=0, t_f=5, momentum=1.0), "momentum"),
        (lambda: nmt.sparsify_(net(), "2:4", nmt.STE(mask_method="magic")), "magic"),
        (lambda: nmt.sparsify_(net(), "2:4", nmt.STE(score="taylor")), "score must be"),
        (lambda: nmt.sparsify_(net(), "2:4", "srste"), r"nmt\.Fixed\(\).*got 'srste'"),
        (lambda: nmt.sparsify_("net", "2:4"), r"nn\.Module, got str"),
        (
            lambda: nmt.verify(torch.ones(4, 4), nmt.plan(net(), "2:4")),
            "one pattern, such as '2:4', not a Plan",
        ),
        (lambda: nmt.verify(net(), "2:4", padding="pad"), "for tensors"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(NMSolveError, match=message):
        make()


def test_masks_that_someone_spoiled_are_found():
    model = net()
    sparse = nmt.sparsify_(model, "2:4", nmt.Fixed())
    sparse.layers[0].masked.mask[0, :4] = True
    before = state(model)
    assert not nmt.verify(model, sparse.plan)
    with pytest.raises(
        SolverError, match=r"nothing was finalized(.|\n)*from index \[0, 0\]: keeps 4"
    ):
        sparse.finalize_()
    assert_unchanged(model, before)


def test_a_missing_library_says_which_extra(monkeypatch):
    import sys

    for name, extra in (("TrainerCallback", "huggingface"), ("LightningCallback", "lightning")):
        for module in ("transformers", "lightning", "lightning.pytorch", "pytorch_lightning"):
            monkeypatch.setitem(sys.modules, module, None)
        for module in ("hugging_face", "lightning"):
            monkeypatch.delitem(sys.modules, f"nmsolve.torch.training.{module}", raising=False)
        with pytest.raises(MissingDependencyError, match=rf"nmsolve\[{extra}\]"):
            getattr(nmt, name)
    with pytest.raises(AttributeError, match="no attribute 'Callback'"):
        nmt.Callback  # noqa: B018
