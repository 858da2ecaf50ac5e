"""Former names: accepted for one release, with a warning that names the new one."""

import copy
import dataclasses
import inspect
import pickle

import pytest
import torch
from torch import nn

import nmsolve
import nmsolve.torch as nmt
from nmsolve.renamed import renamed

METHODS = (nmt.Fixed, nmt.STE, nmt.SRSTE)


@renamed(old="colour", new="color")
def paint(subject, *, color="red"):
    """Return what is painted."""
    return subject, color


def test_functions_take_the_former_keyword():
    assert paint("wall", color="blue") == ("wall", "blue")
    with pytest.warns(
        DeprecationWarning, match=r"paint\(colour=…\) is renamed to color=…"
    ) as found:
        assert paint("wall", colour="blue") == ("wall", "blue")
    assert found[0].filename == __file__
    with pytest.raises(nmsolve.InputError, match="paint was given color and colour"):
        paint("wall", color="blue", colour="red")
    assert paint.__doc__ == "Return what is painted."
    assert list(inspect.signature(paint).parameters) == ["subject", "color"]


@pytest.mark.parametrize("method", METHODS)
def test_methods_take_and_show_the_former_name(method):
    with pytest.warns(DeprecationWarning, match=r"\(solver=…\) is renamed to mask_method") as found:
        made = method(solver="greedy")
    assert found[0].filename == __file__
    assert made == method(mask_method="greedy")
    assert "mask_method='greedy'" in repr(made)
    assert "solver" not in repr(made)
    with pytest.warns(DeprecationWarning, match=rf"{method.__name__}.solver is renamed") as found:
        assert made.solver == "greedy"
    assert found[0].filename == __file__
    with pytest.raises(nmsolve.InputError, match="mask_method and solver"):
        method(solver="greedy", mask_method="cover")
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.mask_method = "cover"


@pytest.mark.parametrize("method", METHODS)
def test_methods_are_copied_replaced_and_read(method):
    made = method(mask_method="greedy")
    assert copy.deepcopy(made) == pickle.loads(pickle.dumps(made)) == made
    assert dataclasses.replace(made, mask_method="cover") == method(mask_method="cover")
    assert dataclasses.replace(made, score="magnitude") == made
    place, former = b"nmsolve.torch.training.solved_methods", b"nmsolve.torch.training.methods"
    written = pickle.dumps(made, protocol=0)  # whose strings have no length before them
    assert place in written
    with pytest.warns(DeprecationWarning, match="is now nmsolve.torch.training.solved_methods"):
        old = pickle.loads(written.replace(place, former).replace(b"mask_method", b"solver"))
    assert old == made
    assert set(vars(old)) == set(vars(made))


def test_subclasses_with_the_former_names_are_called():
    calls = []
    with pytest.warns(DeprecationWarning, match="is renamed to") as found:

        class Counting(nmt.SRSTE):
            def before(self, step):
                calls.append(("before", len(step.layers)))
                super().before(step)

            def after(self, attachment):
                calls.append(("after", len(attachment.layers)))
                super().after(attachment)

    assert [str(one.message) for one in found] == [
        f"Counting.{old} is renamed to {new}; the old name goes with the next release"
        for old, new in (("before", "before_step"), ("after", "after_step"))
    ]
    assert {one.filename for one in found} == {__file__}
    weights = []
    for method in (Counting(decay=0.5), nmt.SRSTE(decay=0.5)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        nmt.sparsify_(model, "2:4", method).attach(optimizer)
        for _ in range(2):
            model(torch.ones(2, 8)).square().sum().backward()
            optimizer.step()
        weights.append(model[0].weight.detach().clone())
    assert torch.equal(*weights)
    assert calls == [("before", 1), ("after", 1)] * 2


def test_subclasses_may_define_both_names():
    class Both(nmt.STE):
        def after(self, attachment):
            raise AssertionError

        def after_step(self, attachment):
            super().after_step(attachment)

    class Mixed(Both):  # inherits the new one
        pass

    model = nn.Sequential(nn.Linear(8, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = nmt.sparsify_(model, "2:4", Mixed()).attach(optimizer)
    model(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    assert sparse.stats()[0].refreshes == 1


def test_a_subclass_that_gives_the_former_field_a_default_is_heard():
    with pytest.warns(DeprecationWarning, match=r"Covering\.solver is renamed to mask_method"):

        @dataclasses.dataclass(frozen=True)
        class Covering(nmt.STE):
            solver: str = "cover"

    assert Covering().mask_method == "cover"


def test_a_plan_made_by_hand_has_no_weight_that_is_neither_planned_nor_skipped():
    plan = nmt.plan(nn.Linear(8, 8), "2:4")
    entry = plan.layers[0]
    fields = {f.name: getattr(entry, f.name) for f in dataclasses.fields(nmt.LayerPlan)}
    with pytest.raises(nmsolve.InputError, match=r"as nmt.plan makes them; got a LayerPlan"):
        nmt.Plan([nmt.LayerPlan(**fields)])
    with pytest.raises(nmsolve.InputError, match=r"pattern None.* entry\.skipped\(reason\)"):
        dataclasses.replace(entry, pattern=None)
    assert nmt.Plan([entry.skipped("by hand")]).planned == ()
