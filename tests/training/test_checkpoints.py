"""State dicts, whole models and pickles: what they hold, and that training goes on from them bit
for bit.
"""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import nmsolve
import nmsolve.torch as nmt
from nmsolve.torch.training.packed_products import use
from tests.checkpoint.snapshots import differing, snapshot
from tests.training.small_net import ALL, BOTH, METHODS, Net, batch, made, train


@ALL
@BOTH
def test_resumes_bit_for_bit(name, optimizer, tmp_path):
    model, opt, sparse = made(name, optimizer, "1:4")
    train(model, opt, range(3))
    torch.save(
        {"model": model.state_dict(), "optimizer": opt.state_dict()}, tmp_path / "checkpoint.pt"
    )
    train(model, opt, range(3, 7))
    again, other, resumed = made(name, optimizer, "1:4", seed=7)
    held = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    again.load_state_dict(held["model"])
    other.load_state_dict(held["optimizer"])
    train(again, other, range(3, 7))
    assert differing(snapshot(model, opt), snapshot(again, other)) == []
    assert str(sparse.stats()) == str(resumed.stats())
    assert sparse.finalize_().ok
    assert resumed.finalize_().ok
    assert differing(snapshot(model), snapshot(again)) == []


def test_loading_before_attaching_resumes_too():
    model, opt, _ = made("lbc")
    train(model, opt, range(3))
    state, opt_state = copy.deepcopy(model.state_dict()), copy.deepcopy(opt.state_dict())
    train(model, opt, range(3, 6))
    torch.manual_seed(9)
    again = Net()
    other = torch.optim.AdamW(again.parameters(), lr=0.01, weight_decay=0.1)
    sparse = nmt.sparsify_(again, "2:4", METHODS["lbc"]())
    again.load_state_dict(state)
    other.load_state_dict(opt_state)
    sparse.attach(other)
    train(again, other, range(3, 6))
    assert differing(snapshot(model, opt), snapshot(again, other)) == []
    late = torch.optim.AdamW(again.parameters(), lr=0.01)
    sparse.attach(late)
    with pytest.raises(
        nmsolve.InputError, match=r"conv.*in another order.*before sparsify_ or after"
    ):
        late.load_state_dict(opt_state)
    loaded = torch.optim.AdamW(again.parameters(), lr=0.01)
    loaded.load_state_dict(opt_state)
    with pytest.raises(
        nmsolve.InputError, match=r"conv.*in another order.*before sparsify_ or after"
    ):
        sparse.attach(loaded)


def test_state_dict_format():
    """Plain names; the mask in bits, the first entry in the lowest bit; numbers as documented."""
    model = nn.Sequential(nn.Linear(8, 2))
    sparse = nmt.sparsify_(model, "2:4", nmt.STE())
    mask = sparse.layers[0].masked.mask
    state = model.state_dict()
    assert list(state) == ["0.bias", "0.weight", "0.weight_mask", "0.weight_progress"]
    assert torch.equal(state["0.weight"], sparse.layers[0].weight)
    bits = [sum(int(mask[row, col]) << col for col in range(8)) for row in range(2)]
    assert state["0.weight_mask"].tolist() == bits
    assert state["0.weight_progress"].tolist() == [2, -4, 0, 0, 0, 0, 0, 0, 0]
    assert state["0.weight"].data_ptr() == sparse.layers[0].weight.data_ptr()
    assert torch.equal(model[0].weight_mask, state["0.weight_mask"])
    plain = nn.Sequential(nn.Linear(8, 2))
    missing, unexpected = plain.load_state_dict(state, strict=False)
    assert (missing, unexpected) == ([], ["0.weight_mask", "0.weight_progress"])
    with pytest.raises(RuntimeError, match=r"Missing key.*0.weight_mask"):
        model.load_state_dict(plain.state_dict())
    assert "0.weight_mask" in model.load_state_dict(plain.state_dict(), strict=False).missing_keys


@ALL
def test_whole_models_are_saved(name, tmp_path):
    model, opt, sparse = made(name)
    train(model, opt, range(2))
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert differing(snapshot(model), snapshot(again)) == []
    assert type(again.head).__name__ == "ParametrizedLinear"
    model.eval(), again.eval()
    assert torch.equal(model(batch(0)[0]), again(batch(0)[0]))
    once_more = pickle.loads(pickle.dumps(copy.deepcopy(again)))
    assert differing(snapshot(model), snapshot(once_more)) == []
    again.load_state_dict(model.state_dict())
    buffer = io.BytesIO()
    torch.save(again, buffer)
    if name != "lbc":  # whose masks are not 2:4 yet
        sparse.finalize_(again)
        assert [key for key, _ in again.named_parameters()] == [
            key for key, _ in Net().named_parameters()
        ]


@ALL
def test_a_sparse_model_is_copied_and_pickled_with_its_model(name):
    """As launchers that spawn processes do; the copy is attached to nothing."""
    model, opt, sparse = made(name)
    train(model, opt, range(3))
    for twin in (pickle.loads(pickle.dumps(sparse)), copy.deepcopy(sparse)):
        other = torch.optim.AdamW(twin.model.parameters(), lr=0.01)
        train(twin.model, other, range(1))
        assert twin.stats().step == 3
        twin.attach(other)
        train(twin.model, other, range(3, 6))
        assert twin.stats().step == 6
        assert twin.finalize_().ok
        assert twin.model is not model
    assert sparse.stats().step == 3


@pytest.mark.parametrize("method", [nmt.Fixed(), nmt.LBC(t_i=0, t_f=9)])
def test_a_checkpoint_of_another_shape(method):
    """As many bits, but another weight's: nothing is taken."""
    one, two = nn.Sequential(nn.Linear(8, 16)), nn.Sequential(nn.Linear(16, 8))
    sparse = nmt.sparsify_(one, "2:4", method).attach(torch.optim.SGD(one.parameters(), lr=0.1))
    nmt.sparsify_(two, "2:4", method).attach(torch.optim.SGD(two.parameters(), lr=0.1))
    held = snapshot(one)
    with pytest.raises(nmsolve.InputError, match=r"weight has shape \(8, 16\), this one \(16, 8\)"):
        one.load_state_dict(two.state_dict())
    with pytest.raises(RuntimeError, match=r"weight has shape \(8, 16\), this one \(16, 8\)"):
        one[0].load_state_dict(two[0].state_dict())  # past the model
    assert differing(snapshot(one), held) == []
    assert nmt.verify(sparse.model, sparse.plan).ok == isinstance(method, nmt.Fixed)


def test_keys_are_plain_where_they_are_missing(tmp_path):
    """What safetensors compares with the names that it left out for tied weights."""
    from safetensors.torch import load_model, save_model

    def tied():
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        model[1].weight = model[0].weight
        nmt.sparsify_(model, "2:4")
        return model

    assert "0.weight" in tied().load_state_dict({}, strict=False).missing_keys
    assert (
        "weight" in nn.Sequential(tied())[0][0].load_state_dict({}, strict=False).missing_keys[-1]
    )
    model, again = tied(), tied()
    save_model(model, tmp_path / "model.safetensors")
    load_model(again, tmp_path / "model.safetensors")
    assert differing(snapshot(again), snapshot(model)) == []


def test_parametrizations_behind_the_mask_are_saved():
    model = nn.Sequential(nn.Linear(8, 8))
    nmt.sparsify_(model, "2:4", nmt.STE())
    nn.utils.parametrizations.spectral_norm(model[0])
    model.load_state_dict(model.state_dict())
    assert "0.parametrizations.weight.1._u" in model.state_dict()


def test_casting_everything_leaves_masks_alone():
    model = nn.Sequential(nn.Linear(8, 12))
    sparse = nmt.sparsify_(model, "2:4")
    mask = sparse.layers[0].masked.mask.clone()
    for cast in (
        lambda: model.type(torch.float64),
        lambda: model._apply(lambda tensor: tensor.half()),
    ):
        cast()
        assert torch.equal(sparse.layers[0].masked.mask, mask)
        assert model.state_dict()["0.weight_mask"].numel() == 12
    model.load_state_dict(model.state_dict())


def test_assigned_to_a_model_on_meta():
    model = nn.Sequential(nn.Linear(8, 12))
    nmt.sparsify_(model, "2:4")
    with torch.no_grad():
        model[0].parametrizations.weight.original.mul_(-1)
    empty = copy.deepcopy(model).to("meta")
    assert empty.state_dict()["0.weight_mask"].is_meta
    empty.load_state_dict(model.state_dict(), assign=True)
    x = torch.randn(3, 8)
    assert torch.equal(empty(x), model(x))


@pytest.mark.parametrize("loading", [False, True])
def test_lbc_goes_on_after_inference_mode(loading):
    model = nn.Sequential(nn.Linear(8, 12))
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = nmt.sparsify_(model, "2:4", nmt.LBC(t_i=0, t_f=4))
    if loading:
        sparse.attach(opt)
        state = copy.deepcopy(model.state_dict())
        with torch.inference_mode():
            model.load_state_dict(state)
    else:
        with torch.inference_mode():
            sparse.attach(opt)
    for _ in range(4):
        opt.zero_grad()
        model(torch.randn(3, 8)).square().sum().backward()
        opt.step()
    assert sparse.finalize_().ok


def test_accelerated_layers_are_pickled_as_such():
    model = nn.Sequential(nn.Linear(8, 8))
    sparse = nmt.sparsify_(model, "2:4T")
    use(sparse.layers[0], "dense")
    again = pickle.loads(pickle.dumps(model))
    assert type(again[0]).forward is type(model[0]).forward is not nn.Linear.forward
    x = torch.randn(3, 8)
    assert torch.equal(again(x), model(x))
