"""What is written through module.weight while a mask is on it reaches the dense weight, or is an error with the layer's name."""

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

METHODS = {"fixed": nmt.Fixed(), "ste": nmt.STE(), "srste": nmt.SRSTE(), "lbc": nmt.LBC(t_i=0, t_f=4)}
EVERY = pytest.mark.parametrize("name", METHODS)


def made(method):
    """A layer under a mask, its optimizer, its dense weight as it was."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model[0].weight.detach().clone()
    sparse = nmt.sparsify_(model, "2:4" if isinstance(method, nmt.LBC) else "2:4T", method).attach(optimizer)
    return model, optimizer, sparse, before


def dense_of(model):
    return model[0].parametrizations.weight.original.detach()


def mask_of(model):
    return model[0].parametrizations.weight[0].mask


NEW = torch.arange(1.0, 65.0).reshape(8, 8)


def copy_into_data(layer):
    layer.weight.data.copy_(NEW)


def add_to_data(layer):
    layer.weight.data += NEW - layer.weight.detach()


def assign_data(layer):
    layer.weight.data = NEW.clone()


def set_entries_of_data(layer):
    layer.weight.data[...] = NEW


def keep_data(layer):
    held = layer.weight.data
    held.zero_()
    held.add_(NEW)


def rows_of_data(layer):
    for row, new in zip(layer.weight.data, NEW, strict=True):
        row.copy_(new)


def in_place(layer):
    with torch.no_grad():
        layer.weight.mul_(0).add_(NEW)


def by_function(layer):
    with torch.no_grad():
        torch._foreach_copy_([layer.weight], [NEW])


def in_inference_mode(layer):
    with torch.inference_mode():
        layer.weight.copy_(NEW)


def through_detach(layer):
    layer.weight.detach().copy_(NEW)


def through_views(layer):
    layer.weight.view(-1)[:32].data.copy_(NEW.view(-1)[:32])
    layer.weight.T[:, 4:].data.copy_(NEW.T[:, 4:])


def through_rows(layer):
    for i in range(8):
        layer.weight[i].data.copy_(NEW[i])


def through_chunks(layer):
    for part, new in zip(layer.weight.chunk(2), NEW.chunk(2), strict=True):
        part.data[:] = new


def through_numpy(layer):
    layer.weight.detach().numpy()[...] = NEW.numpy()


def through_numpy_of_data(layer):
    layer.weight.data.numpy()[...] = NEW.numpy()


def through_dlpack(layer):
    torch.from_dlpack(layer.weight.detach()).copy_(NEW)


def through_a_storage(layer):
    torch.tensor([], dtype=torch.float32).set_(layer.weight.untyped_storage()).copy_(NEW.view(-1))


def set_item(layer):
    with torch.no_grad():
        layer.weight[:] = NEW


def assign(layer):
    layer.weight = NEW.clone()


def state_dict(layer):
    layer.load_state_dict({"weight": NEW.clone()}, strict=False)


WRITES = [
    copy_into_data, add_to_data, assign_data, set_entries_of_data, keep_data, rows_of_data, in_place,
    by_function, in_inference_mode, through_detach, through_views, through_rows, through_chunks,
    through_numpy, through_numpy_of_data, through_dlpack, through_a_storage, set_item, assign,
    state_dict,
]  # fmt: skip


@EVERY
@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_writes(name, write):
    """The dense weight holds what was written as soon as anything reads it through the layer, a state dict or a step."""
    model, _, sparse, _ = made(METHODS[name])
    parameter = model[0].parametrizations.weight.original
    write(model[0])
    mask = mask_of(model)
    torch.testing.assert_close(model.state_dict()["0.weight"], NEW)
    assert model[0].parametrizations.weight.original is parameter
    torch.testing.assert_close(model[0].weight.detach(), NEW * mask)
    torch.testing.assert_close(model(torch.eye(8)), (NEW * mask).T)
    if name == "fixed":
        assert sparse.finalize_().ok
    else:
        nmt.remove_masks_(model)
    torch.testing.assert_close(model[0].weight.detach(), NEW * mask)


@EVERY
def test_a_write_before_a_step(name):
    """What is written between two steps is where the next one starts from, kept entries and dropped ones as the method says."""
    model, optimizer, _, _ = made(METHODS[name])
    twin, other, _, _ = made(METHODS[name])
    for net, opt in ((model, optimizer), (twin, other)):
        net(torch.ones(2, 8)).square().sum().backward()
        opt.step()
        opt.zero_grad()
    model[0].weight.data.copy_(NEW)
    with torch.no_grad():
        twin[0].parametrizations.weight.original.copy_(NEW)
    for net, opt in ((model, optimizer), (twin, other)):
        net(torch.ones(2, 8)).square().sum().backward()
        opt.step()
    assert torch.equal(dense_of(model), dense_of(twin))
    assert torch.equal(mask_of(model), mask_of(twin))


def test_only_written_entries_change():
    """What a mask drops reads as zero; where nothing else was written there, the dense weight keeps its value."""
    model, _, _, before = made(nmt.STE())
    model[0].weight.data.mul_(2)
    mask = mask_of(model)
    assert torch.equal(dense_of(model), torch.where(mask, 2 * before, before))
    model[0].weight.data[0, 0] = 7
    assert dense_of(model)[0, 0] == 7


@pytest.mark.parametrize(
    "initialise", [lambda layer: layer.reset_parameters(), lambda layer: nn.init.xavier_uniform_(layer.weight)]
)
def test_initialisation(initialise):
    """nn.init and reset_parameters give the dense weight that they give a plain layer."""
    model, _, _, before = made(nmt.SRSTE())
    plain = nn.Linear(8, 8, bias=False)
    for layer in (plain, model[0]):
        torch.manual_seed(3)
        initialise(layer)
    assert torch.equal(dense_of(model), plain.weight)
    assert not torch.equal(before, plain.weight)


ZEROS = {
    "zero_": lambda layer: layer.weight.data.zero_(),
    "init": lambda layer: nn.init.zeros_(layer.weight),
    "data =": lambda layer: setattr(layer.weight, "data", torch.zeros(8, 8)),
    "copy_": lambda layer: layer.weight.detach().copy_(torch.zeros(8, 8)),
    "set item": lambda layer: layer.weight.data.__setitem__(slice(None), 0),
    "numpy": lambda layer: layer.weight.detach().numpy().fill(0),
    "rows": lambda layer: [row.data.zero_() for row in layer.weight],
    "weight =": lambda layer: setattr(layer, "weight", torch.zeros(8, 8)),
}


@pytest.mark.parametrize("write", ZEROS)
def test_zeros_are_written_too(write):
    """What a mask drops reads as zero already; a zero that is written there reaches the dense weight all the same."""
    model, _, sparse, _ = made(nmt.STE())
    ZEROS[write](model[0])
    assert int(model.state_dict()["0.weight"].count_nonzero()) == 0
    sparse.refresh_()
    assert int(model[0].weight.count_nonzero()) == 0


def test_a_part_of_zeros():
    model, _, _, before = made(nmt.STE())
    nn.init.eye_(plain := torch.empty(8, 8))
    model[0].weight.data.zero_()
    model[0].weight.data.fill_diagonal_(1)
    assert torch.equal(dense_of(model), plain)
    model, _, _, before = made(nmt.STE())
    model[0].weight.data[:4].zero_()
    expected = before.clone()
    expected[:4] = 0
    assert torch.equal(dense_of(model), expected)


def test_views_that_functions_make():
    """They are written to in the end if they are still there, else an error says so."""
    model, _, _, before = made(nmt.STE())
    view = torch.flatten(model[0].weight)
    with torch.no_grad():
        view.fill_(5)
    assert torch.equal(model.state_dict()["0.weight"], torch.full((8, 8), 5.0))
    with torch.no_grad():
        view.fill_(6)
    assert torch.equal(model.state_dict()["0.weight"], torch.full((8, 8), 6.0))
    model, _, _, before = made(nmt.STE())
    for part in torch.chunk(model[0].weight, 2):
        nn.init.xavier_uniform_(part)
    del part
    with pytest.raises(nmsolve.InputError, match=r"layer 0: something was written into a view of its weight that is gone"):
        model.state_dict()
    assert torch.equal(dense_of(model), before)
    out = model(torch.ones(1, 8))  # autograd holds such a view too
    model(torch.ones(1, 8))
    out.sum().backward()
    model.state_dict()


@pytest.mark.parametrize("take", [copy.deepcopy, lambda model: AveragedModel(model).module])
def test_copies_have_what_was_written(take):
    model, _, _, _ = made(nmt.STE())
    held = model[0].weight
    held.data.copy_(NEW)
    assert torch.equal(dense_of(take(model)), NEW)


def test_in_time():
    """What was written before a checkpoint is loaded, or the model converted, was written in time."""
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
        lambda w: w.data.abs().sum(), lambda w: w.detach().numpy().sum(), lambda w: w.T @ w, lambda w: w[0].tolist(),
        repr, copy.copy, list, lambda w: w.data.numpy().copy(), lambda w: w.untyped_storage().nbytes(),
        lambda w: np.asarray(w.detach()), lambda w: w.to(torch.float64).sum(),
    ):  # fmt: skip
        read(model[0].weight)
    model[0].weight = model[0].weight
    assert torch.equal(dense_of(model), before)
    model.state_dict()
    assert torch.equal(dense_of(model), before)
    assert dense_of(model)._version <= version + 1


def test_a_late_write_is_an_error():
    """What was read before a step and is written after it would undo the step: it is refused, by name, at whatever comes next."""
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
        with pytest.raises(nmsolve.InputError, match=r"layer 0: something was written .* Read module\.weight again"):
            use(model, sparse, optimizer)
        assert torch.equal(dense_of(model), after)
        held.fill_(2)  # told once for each write
        with pytest.raises(nmsolve.InputError, match="layer 0"):
            use(model, sparse, optimizer)


def test_held_and_written_within_its_time():
    """What is held may be written again and again while the dense weight does not change otherwise."""
    model, _, _, _ = made(nmt.STE())
    held, data = model[0].weight, model[0].weight.data
    del held
    for value in (1.0, 2.0, 3.0):
        data.fill_(value)
        assert torch.equal(model.state_dict()["0.weight"], torch.full((8, 8), value))


def test_one_way_after_another():
    """A copy that is taken for the second way must not hide what the first has written."""
    model, _, _, before = made(nmt.STE())
    held = model[0].weight
    with torch.no_grad():
        held.mul_(2)
    held.data[0] = 1
    expected = torch.where(mask_of(model), 2 * before, before)
    expected[0] = 1
    assert torch.equal(model.state_dict()["0.weight"], expected)


def test_wrong_shapes_are_refused():
    model, _, _, before = made(nmt.STE())
    with pytest.raises(
        nmsolve.InputError,
        match=r"layer 0: the weight is float32 of shape \(8, 8\) on cpu; .data = … was given float32 of shape \(4, 8\)",
    ):
        model[0].weight.data = torch.ones(4, 8)
    with pytest.raises(nmsolve.InputError, match="was given float16"):  # it would be rounded, and stay float32
        model[0].weight.data = model[0].weight.data.half()
    with pytest.raises(nmsolve.InputError, match=r"no other Parameter can take its place(.|\n)*remove_masks_"):
        model[0].weight = nn.Parameter(NEW.clone())
    with pytest.raises(nmsolve.InputError, match="other memory"):
        model[0].weight.set_(torch.ones(8, 8))
    assert torch.equal(dense_of(model), before)


def test_beside_the_mask():
    """A tensor put into module._parameters is read by nobody."""
    model, _, _, _ = made(nmt.STE())
    model[0]._parameters["weight"] = nn.Parameter(NEW.clone())
    with pytest.raises(nmsolve.InputError, match=r"layer 0: module._parameters\['weight'\]"):
        model.state_dict()


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
    """Under plain names it assigns a weight, and then what it had read: the dense weight is what it was."""
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
