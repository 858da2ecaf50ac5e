"""What is written through module.weight while a mask is on it reaches the dense weight, or is an
error with the layer's name.
"""

import pytest
import torch
from torch import nn

import nmsolve
import nmsolve.torch as nmt
from tests.training.masked_layer import NEW, dense_of, made, mask_of

METHODS = {
    "fixed": nmt.Fixed(),
    "ste": nmt.STE(),
    "srste": nmt.SRSTE(),
    "lbc": nmt.LBC(t_i=0, t_f=4),
}
EVERY = pytest.mark.parametrize("name", METHODS)


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
    copy_into_data, add_to_data, assign_data, set_entries_of_data, keep_data, rows_of_data,
    in_place,
    by_function, in_inference_mode, through_detach, through_views, through_rows, through_chunks,
    through_numpy, through_numpy_of_data, through_dlpack, through_a_storage, set_item, assign,
    state_dict,
]  # fmt: skip


@EVERY
@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_writes(name, write):
    """The dense weight holds what was written as soon as anything reads it through the layer, a
    state dict or a step.
    """
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
    """What is written between two steps is where the next one starts from, kept entries and dropped
    ones as the method says.
    """
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
    """What a mask drops reads as zero; where nothing else was written there, the dense weight keeps
    its value.
    """
    model, _, _, before = made(nmt.STE())
    model[0].weight.data.mul_(2)
    mask = mask_of(model)
    assert torch.equal(dense_of(model), torch.where(mask, 2 * before, before))
    model[0].weight.data[0, 0] = 7
    assert dense_of(model)[0, 0] == 7


@pytest.mark.parametrize(
    "initialise",
    [lambda layer: layer.reset_parameters(), lambda layer: nn.init.xavier_uniform_(layer.weight)],
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
    """What a mask drops reads as zero already; a zero that is written there reaches the dense
    weight all the same.
    """
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
    with pytest.raises(
        nmsolve.InputError,
        match=r"layer 0: something was written into a view of its weight that is gone",
    ):
        model.state_dict()
    assert torch.equal(dense_of(model), before)
    out = model(torch.ones(1, 8))  # autograd holds such a view too
    model(torch.ones(1, 8))
    out.sum().backward()
    model.state_dict()


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
        match=r"layer 0: the weight is float32 of shape \(8, 8\) on cpu; .data = … was given "
        r"float32 of shape \(4, 8\)",
    ):
        model[0].weight.data = torch.ones(4, 8)
    with pytest.raises(
        nmsolve.InputError, match="was given float16"
    ):  # it would be rounded, and stay float32
        model[0].weight.data = model[0].weight.data.half()
    with pytest.raises(
        nmsolve.InputError, match=r"no other Parameter can take its place(.|\n)*remove_masks_"
    ):
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
