"""What pruning refuses, and that the model is then as it was."""

from functools import partial

import pytest
import torch
from torch import nn

import nmsolve
import nmsolve.torch as nmt
from tests.checkpoint.snapshots import differing, snapshot


class Branches(nn.Module):
    """A batch norm, a dropout, and a layer that only inputs with a positive first entry reach."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.second, self.rare = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x):
        h = self.drop(self.norm(self.first(x)))
        return self.rare(h) if x[0, 0] > 0 else self.second(h)


def inputs(first=-1.0, size=6, seed=0):
    x = torch.randn(size, 8, generator=torch.Generator().manual_seed(seed))
    x[0, 0] = first
    return x


def with_nan():
    x = inputs(1.0)
    x[3, 2] = torch.nan
    return x


class Shrinking:
    """Gives fewer batches each time."""

    def __init__(self, size):
        self.size = size

    def __iter__(self):
        self.size -= 1
        return iter([inputs(-1.0), inputs(1.0), inputs(1.0)][: self.size])


class Failing:
    """Raises in the middle of a later run."""

    def __init__(self, error, run):
        self.error, self.left = error, run

    def __iter__(self):
        self.left -= 1
        yield inputs(-1.0)
        if not self.left:
            raise self.error
        yield inputs(1.0)


def exhausted():
    batches = (x for x in [inputs()])
    next(batches)
    return batches


BOTH = [inputs(-1.0), inputs(1.0)]


@pytest.mark.parametrize("prune", [nmt.adaprune_, nmt.sparsegpt_])
@pytest.mark.parametrize(
    ("calibration", "words"),
    [
        (list, ["gave no inputs", "empty or exhausted"]),
        (exhausted, ["gave no inputs"]),
        (lambda: [inputs(-1.0), with_nan()], ["the input of layer first is nan", "item 1"]),
        (
            lambda: [inputs(), inputs()[:, :3]],
            ["item 1", "Branches(float32 tensor (6, 3) on cpu)", "RuntimeError"],
        ),
        (lambda: [(inputs(), torch.zeros(6))], ["item 0", "TypeError", "inputs alone"]),
        (lambda: [{"y": inputs()}], ["item 0", "TypeError", "y=float32 tensor (6, 8)"]),
        (lambda: inputs(), ["a tensor of shape (6, 8)", "pass [inputs]"]),
        (lambda: Shrinking(4), ["gave 3 inputs before and 2 now"]),
        (lambda: None, ["got None"]),
        (
            lambda: [*BOTH, inputs(1.0, size=1)],
            [
                "batch norm norm is given one value a channel by calibration item 2",
                "larger batches",
            ],
        ),
    ],
    ids=[
        "empty",
        "exhausted",
        "nan",
        "shape",
        "targets",
        "keyword",
        "tensor",
        "shrinking",
        "none",
        "batch norm",
    ],
)
def test_calibration_that_does_not_do_is_refused(prune, calibration, words):
    torch.manual_seed(0)
    model = Branches()
    before, random = snapshot(model), torch.get_rng_state()
    with pytest.raises(nmsolve.InputError) as caught:
        prune(model, "2:4", calibration())
    for word in words:
        assert word in str(caught.value)
    untouched(model, before)
    assert torch.equal(torch.get_rng_state(), random)


def test_arguments_that_were_mixed_up_are_told_shortly():
    model, x = nn.Sequential(nn.Linear(8, 8)), [torch.randn(20, 8)]
    found = nmt.scores.activation(model, x)
    allocated = nmt.allocate(
        {"0": {"2:4": 1.0, "dense": 0.0}}, budget=nmt.Latency({"0": {"2:4": 1, "dense": 2}}, 1)
    )
    offered = nmt.losses(model, ["2:4"], calibration=x)
    for call, message in (
        (lambda: nmt.adaprune_(model, x, "2:4"), "cannot read the pattern [tensor"),
        (
            lambda: nmt.adaprune_(model, "2:4", x, scores=nmt.scores.activation),
            "scores must be what nmt.scores gives",
        ),
        (lambda: nmt.adaprune_(model, "2:4", x, scores=found["0"]), "got Tensor"),
        (lambda: nmt.plan(model, "2:4", scores=found["0"]), "scores map layer paths to tensors"),
        (
            lambda: nmt.solve(model[0].weight, "2:4", found),
            "pass that of the layer, scores[…] (it has 0)",
        ),
        (lambda: nmt.adaprune_(model, allocated, x), "pass nmt.plan(model, plan.patterns)"),
        (lambda: nmt.allocate(offered, nmt.Params(32)), "pass budget=Params(limit=32)"),
        (
            lambda: nmt.Latency(3.0, {"0": {"2:4": 1.0}}),
            "Latency(table, limit) takes a positive number of seconds, got a dict",
        ),
        (lambda: nmt.domino_search(model, x, nmt.Params(3)), "got a list"),
        (lambda: nmt.losses(model, ["2:4"], calibration=[(x[0], 1)]), "calibration item 0"),
        (
            lambda: nmt.scores.fisher(model, x, nn.functional.cross_entropy),
            "item 0, called as loss(model, item), failed",
        ),
    ):
        with pytest.raises(nmsolve.NMSolveError) as caught:
            call()
        assert message in str(caught.value)
        assert len(str(caught.value)) < 400


def untouched(model, before):
    assert not differing(snapshot(model), before)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert model.norm.momentum == 0.1
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, OSError("disk"), nmsolve.SolverError("inside")]
)
@pytest.mark.parametrize("run", [1, 2])
@pytest.mark.parametrize("sequential", [True, False])
def test_whatever_interrupts_leaves_the_model_as_it_was(error, run, sequential):
    """Items are gone through for pruning, and once more for batch norms."""
    torch.manual_seed(0)
    model = Branches()
    before = snapshot(model)
    with pytest.raises(error if isinstance(error, type) else type(error)):
        nmt.adaprune_(model, "2:4", Failing(error, run), sequential=sequential)
    untouched(model, before)
    calibration = Failing(error, 3)
    nmt.adaprune_(model, "2:4", calibration, sequential=sequential)
    assert calibration.left == 1
    assert nmt.verify(model, "2:4")


class Interrupted(nmt.LeastSquares):
    """Raises when it is asked for the solution of a later layer, as Ctrl-C does."""

    left = 0

    def solve(self, *arguments):
        type(self).left -= 1
        if not type(self).left:
            raise KeyboardInterrupt
        return nmt.LeastSquares.solve(self, *arguments)


class Again(Branches):
    """Comes to a layer twice with some items, so that whole passes are run once it is pruned."""

    def forward(self, x):
        return super().forward(torch.cat([x[:1], self.first(x[1:])]) if x[0, 0] > 0 else x)


@pytest.mark.parametrize(("kind", "way"), [(Branches, "every item once"), (Again, "whole passes")])
@pytest.mark.parametrize("sequential", [True, False])
def test_interrupts_between_layers_leave_the_model_as_it_was(kind, way, sequential):
    torch.manual_seed(0)
    model, at = kind(), 1
    before = snapshot(model)
    items = [inputs(sign, 60, seed) for seed in range(3) for sign in (-1.0, 1.0)]
    while True:
        Interrupted.left = at
        try:
            found = nmt.adaprune_(model, "2:4", items, update=Interrupted(), sequential=sequential)
        except KeyboardInterrupt:
            untouched(model, before)
            at += 1
        else:
            break
    assert at > len(found) == 3  # more damping is tried for some
    assert found.way.startswith(way)
    assert nmt.verify(model, "2:4")


def test_inputs_of_too_low_a_rank_need_damping():
    torch.manual_seed(0)
    model = Branches()
    before = snapshot(model)
    x = [inputs(-1.0, 60), inputs(1.0, 60, seed=1)]
    for item in x:
        item[:, 5] = item[:, 4] + item[:, 3]
    with pytest.raises(nmsolve.InputError) as caught:
        nmt.adaprune_(model, "2:4", x, update=nmt.LeastSquares(damping=0))
    assert "layer first: its 8 inputs have rank 7" in str(caught.value)
    assert "damping=1e-2" in str(caught.value)
    untouched(model, before)
    found = nmt.adaprune_(model, "2:4", x, update=nmt.LeastSquares(tolerance=1e-9))
    assert all(layer.residual <= 1e-9 for layer in found)
    assert all(layer.held_out_after <= layer.held_out_before for layer in found)


def test_few_samples_do_with_damping():
    torch.manual_seed(0)
    layer = nn.Linear(64, 8)
    found = nmt.adaprune_(layer, "2:4", [torch.randn(3, 64)])[0]
    assert found.after < 0.1 * found.before
    assert nmt.verify(layer, "2:4")


def refuses(call, *words):
    with pytest.raises(nmsolve.InputError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)


def test_models_and_plans_that_do_not_fit_are_refused():
    torch.manual_seed(0)
    model, other = nn.Sequential(nn.Linear(8, 4)), nn.Sequential(nn.Linear(12, 4))
    x = [torch.randn(5, 8)]
    refuses(lambda: nmt.adaprune_(model[0].weight, "2:4", x), "nn.Module", "Parameter")
    refuses(lambda: nmt.adaprune_(model, nmt.plan(other, "2:4"), x), "another model", "(4, 8)")
    refuses(
        lambda: nmt.adaprune_(nn.Sequential(nn.Linear(6, 4)), "2:4", x),
        "nothing to do",
        "6 input channels",
    )
    refuses(lambda: nmt.adaprune_(model, "2:4", x, update="lasso"), "'lasso'", "least_squares")
    refuses(lambda: nmt.adaprune_(model, "2:4", x, scores="wanda"), "'wanda'", "activation")
    refuses(lambda: nmt.adaprune_(model, "2:4", x, criterion="wanda"), "'wanda'", "'activation'")
    refuses(
        lambda: nmt.adaprune_(
            model, "2:4", x, criterion="activation", scores=nmt.scores.magnitude(model)
        ),
        "criterion='activation' and scores",
    )
    refuses(
        lambda: nmt.adaprune_(model, "2:4", x, update="adam", solver="adam"), "update and solver"
    )
    for name, value, words in (
        ("targets", "both", "'dense' or 'own'"),
        ("unreached", "skip", "'magnitude' or 'error'"),
        ("moments", torch.float16, "torch.float32 or torch.float64"),
        ("offload", "/nowhere", "an existing folder"),
        ("weights", "attention_mask", "a function from a calibration item"),
    ):
        for prune in (nmt.adaprune_, nmt.sparsegpt_):
            call = partial(prune, model, "2:4", x, **{name: value})
            refuses(call, name, words, "" if name == "weights" else repr(value))
    refuses(lambda: nmt.adaprune_(model, "2:4", x, scores={}), "no scores for layer 0")
    refuses(lambda: nmt.adaprune_(model, "2:4", x, scores={"0": torch.zeros(3)}), "shape (3,)")
    sparse = nmt.sparsify_(model, "2:4")
    refuses(lambda: nmt.adaprune_(model, "2:4T", x), "layer 0", "finalize_()")
    sparse.finalize_()
    nmt.adaprune_(model, "2:4T", x)
    with torch.no_grad():
        model[0].weight[1, 2] = torch.inf
    refuses(lambda: nmt.adaprune_(model, "2:4", x), "weight of layer 0 is inf at [1, 2]")


@pytest.mark.parametrize(
    "make",
    [
        lambda: nmt.LeastSquares(damping=-1),
        lambda: nmt.LeastSquares(damping="little"),
        lambda: nmt.LeastSquares(tolerance=float("nan")),
        lambda: nmt.LeastSquares(iterations=0),
        lambda: nmt.Adam(steps=0),
        lambda: nmt.Adam(batch=1.5),
        lambda: nmt.Adam(lr=0),
    ],
)
def test_settings_that_make_no_sense_are_refused(make):
    with pytest.raises(nmsolve.InputError, match="must be a"):
        make()
