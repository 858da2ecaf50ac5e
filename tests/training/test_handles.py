"""What module.weight gives of a masked layer: read, held, copied, transformed; and when it is too
late to write to it.
"""

import copy
import io
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim.swa_utils import AveragedModel

import nmsolve
import nmsolve.torch as nmt
from tests.training.masked_layer import NEW, dense_of, made, mask_of


@pytest.mark.parametrize("take", [copy.deepcopy, lambda model: AveragedModel(model).module])
def test_copies_have_what_was_written(take):
    model, _, _, _ = made(nmt.STE())
    held = model[0].weight
    held.data.copy_(NEW)
    assert torch.equal(dense_of(take(model)), NEW)


def test_in_time():
    """What was written before a checkpoint is loaded, or the model converted, was written in
    time.
    """
    model, _, _, _ = made(nmt.STE())
    state = {key: value.clone() for key, value in model.state_dict().items()}
    held = model[0].weight
    held.data.copy_(NEW)
    model.load_state_dict(state)
    assert torch.equal(model.state_dict()["0.weight"], state["0.weight"])
    held = model[0].weight
    held.data.copy_(NEW)
    model.double()
    assert torch.equal(dense_of(model), NEW.double())


def test_late_after_an_assignment():
    model, _, _, _ = made(nmt.STE())
    held = model[0].weight
    model[0].weight = NEW
    held.data.fill_(9)
    with pytest.raises(nmsolve.InputError, match="layer 0: something was written"):
        model.state_dict()
    assert torch.equal(dense_of(model), NEW)


def test_late_after_the_end():
    """Nothing asks any more once the masks are off; so it is a warning."""
    model, _, sparse, _ = made(nmt.Fixed())
    held = model[0].weight
    sparse.finalize_()
    held.data.fill_(9)
    with pytest.warns(UserWarning, match="layer 0: something was written"):
        del held


def test_assigning_what_was_read():
    """module.weight = module.weight changes nothing, not even what the mask drops."""
    model, _, _, before = made(nmt.STE())
    for read in (lambda w: w, lambda w: w.data, lambda w: w.detach()):
        model[0].weight = read(model[0].weight)
        assert torch.equal(dense_of(model), before)
    model[0].weight = model[0].weight.data.clone()
    assert torch.equal(dense_of(model), before * mask_of(model))


def test_parameters_of_what_was_read():
    """As with a plain layer, a Parameter of a detached weight shares its memory."""
    model, _, _, _ = made(nmt.STE())
    other = nn.Parameter(model[0].weight.detach())
    assert type(other) is nn.Parameter
    torch.optim.SGD([other], lr=1.0).zero_grad()
    with torch.no_grad():
        other.copy_(NEW)
    assert torch.equal(model.state_dict()["0.weight"], NEW)


def test_transformations():
    """A compiled function takes what was read, and make_fx traces a masked layer."""
    model, _, _, _ = made(nmt.STE())
    x = torch.ones(2, 8)
    compiled = torch.compile(nn.functional.linear, backend="eager")
    with warnings.catch_warnings():  # dynamo looks at the gradient of what is no leaf
        warnings.simplefilter("ignore")
        torch.testing.assert_close(compiled(x, model[0].weight), model(x))
    traced = make_fx(lambda x: model(x))(x)
    torch.testing.assert_close(traced(x), model(x))


def test_a_gradient_of_its_own():
    """A handle that was asked to keep its gradient has it: under Fixed, that of all entries."""
    model, _, _, _ = made(nmt.Fixed())
    weight = model[0].weight
    weight.retain_grad()
    nn.functional.linear(torch.ones(1, 8), weight).sum().backward()
    assert torch.equal(weight.grad, torch.ones(8, 8))
    assert torch.equal(model[0].weight.grad, mask_of(model).float())


def test_a_reader_changes_nothing():
    """Whatever only reads leaves the dense weight's bits and version alone."""
    model, _, _, before = made(nmt.STE())
    version = dense_of(model)._version
    for read in (
        lambda w: w.data.abs().sum(), lambda w: w.detach().numpy().sum(), lambda w: w.T @ w,
        lambda w: w[0].tolist(), repr, copy.copy, list, lambda w: w.data.numpy().copy(),
        lambda w: w.untyped_storage().nbytes(),
        lambda w: np.asarray(w.detach()), lambda w: w.to(torch.float64).sum(),
    ):  # fmt: skip
        read(model[0].weight)
    model[0].weight = model[0].weight
    assert torch.equal(dense_of(model), before)
    model.state_dict()
    assert torch.equal(dense_of(model), before)
    assert dense_of(model)._version <= version + 1


def test_a_late_write_is_an_error():
    """What was read before a step and is written after it would undo the step: it is refused, by
    name, at whatever comes next.
    """
    for use in (
        lambda m, s, o: m.state_dict(),
        lambda m, s, o: m(torch.ones(1, 8)),
        lambda m, s, o: s.finalize_(),
        lambda m, s, o: o.step(),
    ):
        model, optimizer, sparse, _ = made(nmt.Fixed())
        held = model[0].weight.data
        model(torch.ones(2, 8)).sum().backward()
        optimizer.step()
        after = dense_of(model).clone()
        held.fill_(1)
        with pytest.raises(
            nmsolve.InputError, match=r"layer 0: something was written .* Read module\.weight again"
        ):
            use(model, sparse, optimizer)
        assert torch.equal(dense_of(model), after)
        held.fill_(2)  # told once for each write
        with pytest.raises(nmsolve.InputError, match="layer 0"):
            use(model, sparse, optimizer)


def test_held_and_written_within_its_time():
    """What is held may be written again and again while the dense weight does not change
    otherwise.
    """
    model, _, _, _ = made(nmt.STE())
    held, data = model[0].weight, model[0].weight.data
    del held
    for value in (1.0, 2.0, 3.0):
        data.fill_(value)
        assert torch.equal(model.state_dict()["0.weight"], torch.full((8, 8), value))


def test_gradients_and_flags_are_the_dense_weights():
    """module.weight.grad, requires_grad and hooks are those of what is trained."""
    model, _, _, _ = made(nmt.STE())
    seen = []
    handle = model[0].weight.register_hook(lambda gradient: seen.append(gradient.clone()))
    model(torch.ones(1, 8)).sum().backward()
    handle.remove()
    gradient = model[0].parametrizations.weight.original.grad
    assert torch.equal(model[0].weight.grad, gradient)
    assert torch.equal(seen[0], gradient)
    model[0].weight.grad = None
    assert model[0].parametrizations.weight.original.grad is None
    assert model[0].weight.requires_grad
    model[0].weight.requires_grad_(False)
    assert not model[0].parametrizations.weight.original.requires_grad
    assert not model(torch.ones(1, 8)).requires_grad
    model[0].weight.requires_grad = True
    assert model(torch.ones(1, 8)).requires_grad


def test_what_is_detached_is_independent_but_for_its_memory():
    """A leaf made of a detached weight has a gradient of its own."""
    model, _, _, before = made(nmt.STE())
    leaf = model[0].weight.detach().requires_grad_()
    leaf.square().sum().backward()
    torch.testing.assert_close(leaf.grad, 2 * before * mask_of(model))
    assert model[0].parametrizations.weight.original.grad is None
    leaf = model[0].weight.detach()
    leaf.data = torch.ones(2)
    assert torch.equal(dense_of(model), before)


def test_functional_call_puts_back_the_dense_weight():
    """Under plain names it assigns a weight, and then what it had read: the dense weight is what it
    was.
    """
    model, _, _, before = made(nmt.STE())
    with torch.no_grad():
        out = functional_call(model, {"0.weight": NEW}, (torch.eye(8),))
    torch.testing.assert_close(out, (NEW * mask_of(model)).T)
    assert torch.equal(dense_of(model), before)


def test_handles_are_saved_and_copied_as_plain_tensors():
    model, _, _, _ = made(nmt.STE())
    file = io.BytesIO()
    torch.save({"weight": model[0].weight}, file)
    file.seek(0)
    loaded = torch.load(file)["weight"]
    assert type(loaded) is torch.Tensor
    assert torch.equal(loaded, model[0].weight)
    with torch.no_grad():
        assert type(copy.deepcopy(model[0].weight)) is torch.Tensor


def test_memory_is_let_go():
    """A masked weight that was read, or written, is freed with the last that reaches it."""
    model, _, _, _ = made(nmt.STE())
    for touch in (
        lambda: model[0].weight,
        lambda: model[0].weight.data,
        lambda: model[0].weight.data.add_(1),
        lambda: model[0].weight[0].data,
    ):
        touch()
        written = model[0].parametrizations.weight[0].written
        assert [reference for reference in written._living if reference() is not None] == []
        assert written._reachable == []
