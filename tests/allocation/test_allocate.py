"""`allocate`: against every plan there is, for each kind of loss and budget; plans that work; every
error.
"""

import itertools
import math

import pytest
import torch
from torch import nn

import nmsolve.torch as nmt
from nmsolve import InputError, Pattern, PatternError, Status
from nmsolve.torch.allocation.allocated import Allocation
from nmsolve.torch.allocation.budget import FLOPs, Latency, Params
from nmsolve.torch.allocation.exact import allocate
from nmsolve.torch.allocation.mask_losses import losses


class Net(nn.Module):
    """A stem that nothing fits, a convolution, a weight that two layers share, a head that takes no
    blocks.
    """

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 16, 3, stride=2)
        self.first = nn.Linear(16, 16)
        self.again = nn.Linear(16, 16)
        self.again.weight = self.first.weight
        self.head = nn.Linear(16, 6)

    def forward(self, x):
        x = self.conv(self.stem(x).relu()).relu().mean((2, 3))
        return self.head(self.again(self.first(x).relu()).relu())


CANDIDATES = ("1:4", "2:4", "2:4T", "4:8T", "dense")
SIZES = {"conv": 8 * 16 * 9, "first": 256, "head": 96}
#: Multiply-adds of a weight in a run with one 9 × 9 image: 4 × 4 output positions, two uses, one.
TIMES = {"conv": 16, "first": 2, "head": 1}
DENSITY = {"1:4": 0.25, "2:4": 0.5, "2:4T": 0.5, "4:8T": 0.5, "dense": 1.0}
IMAGE = torch.randn(1, 3, 9, 9, generator=torch.Generator().manual_seed(1))


def table(found):
    """{path: {name: loss}} of losses."""
    named = {
        layer.path: {str(o.pattern or "dense"): o.loss for o in layer.options} for layer in found
    }
    return {path: row for path, row in named.items() if row}


def best(lost, cost, limit):
    """The least loss of every choice there is."""
    found = math.inf
    for names in itertools.product(*(lost[path] for path in lost)):
        pairs = list(zip(lost, names, strict=True))
        if math.fsum(cost(path, name) for path, name in pairs) <= limit:
            found = min(found, math.fsum(lost[path][name] for path, name in pairs))
    return found


def chosen(plan):
    return {layer.path: str(layer.pattern or "dense") for layer in plan if layer.path in SIZES}


def check(plan, lost, cost, limit):
    names = chosen(plan)
    assert plan.status is Status.OPTIMAL
    assert plan.objective == pytest.approx(best(lost, cost, limit), rel=1e-9)
    assert plan.objective == pytest.approx(
        math.fsum(lost[path][name] for path, name in names.items()), rel=1e-12
    )
    assert plan.cost == pytest.approx(
        math.fsum(cost(path, name) for path, name in names.items()), rel=1e-12
    )
    assert plan.cost <= limit
    assert plan.bound <= plan.objective
    assert 0 <= plan.gap <= 1e-9


@pytest.mark.parametrize("share", [0.25, 0.4, 0.5, 0.7, 0.97, 1.0, 2.0])
@pytest.mark.parametrize("calibrated", [False, True])
def test_every_plan_there_is(share, calibrated):
    model = Net()
    calibration = [IMAGE, torch.cat([IMAGE, 2 * IMAGE])] if calibrated else None
    found = losses(model, CANDIDATES, calibration=calibration, example_inputs=IMAGE)
    lost = table(found)
    assert {path: set(row) for path, row in lost.items()} == {
        "conv": set(CANDIDATES),
        "first": set(CANDIDATES),
        "head": {"1:4", "2:4", "dense"},
    }

    def weights(path, name):
        return SIZES[path] * DENSITY[name]

    def multiplied(path, name):
        return TIMES[path] * weights(path, name)

    def latency(path, name):
        return 1e-6 + 1.1e-9 * SIZES[path] * (1 if name in ("dense", "1:4") else 0.6)

    measured = {path: {name: latency(path, name) for name in row} for path, row in lost.items()}
    for make, cost in (
        (Params, weights),
        (FLOPs, multiplied),
        (lambda k: Latency(measured, k), latency),
    ):
        low, high = (
            math.fsum(pick(cost(path, name) for name in lost[path]) for path in lost)
            for pick in (min, max)
        )
        limit = low + (share - 0.25) / 0.75 * (high - low)
        limit = math.nextafter(limit, math.inf) if share == 0.25 else limit
        check(allocate(found, budget=make(limit)), lost, cost, limit)
    limit = 376 + int(1000 * (share - 0.25))
    check(allocate(model, CANDIDATES, Params(limit), calibration=calibration), lost, weights, limit)
    some = {
        path: {name: loss for name, loss in row.items() if name in ("2:4T", "1:4")}
        for path, row in lost.items()
    }
    check(allocate(found, ["1:4", "2:4T"], Params(600)), some, weights, 600)


def test_the_plan_is_one_like_any_other():
    model = Net()
    plan = allocate(model, CANDIDATES, Params(900), exclude="head")
    assert isinstance(plan, Allocation)
    assert isinstance(plan, nmt.Plan)
    assert len(plan) == 5
    by_path = {layer.path: layer for layer in plan}
    assert by_path["stem"].reason == "3 input channels do not consist of groups of 4"
    assert by_path["head"].reason == "excluded"
    assert by_path["again"].pattern == by_path["first"].pattern
    assert by_path["again"].tied_to == "first"
    assert plan == allocate(model, CANDIDATES, Params(900), exclude="head")
    assert hash(plan) == hash(allocate(model, CANDIDATES, Params(900), exclude="head"))
    again = nmt.plan(model, plan.patterns)
    assert [(x.path, x.pattern, x.axis, x.padding) for x in again] == [
        (x.path, x.pattern, x.axis, x.padding) for x in plan
    ]
    sparse = nmt.sparsify_(model, plan)
    model(IMAGE).sum().backward()
    assert nmt.verify(model, plan).ok
    assert sparse.finalize_().ok
    assert nmt.verify(model, plan).ok
    kept = sum(int((model.get_submodule(path).weight != 0).sum()) for path in ("conv", "first"))
    assert kept == plan.cost <= 900


def test_layers_left_dense_say_so_and_print():
    model = Net()
    plan = allocate(model, ["2:4", "dense"], Params(1152 + 128 + 48), example_inputs=IMAGE)
    text = str(plan)
    assert plan.patterns == {
        "stem": None,
        "conv": None,
        "first": Pattern(2, 4),
        "again": Pattern(2, 4),
        "head": Pattern(2, 4),
    }
    assert (
        next(layer for layer in plan if layer.path == "conv").reason
        == "left dense by the allocation"
    )
    assert "left dense by the allocation" in text
    assert "shares weight and mask with first" in text
    last = text.splitlines()[-1]
    assert last.startswith("optimal: loss ")
    assert last.endswith("cost 1328 of at most 1328 kept weights")
    assert repr(plan).startswith("<Allocation: 3 of 5 weights have a pattern, optimal")
    whole = allocate(model, ["2:4", "dense"], Params(10**9))
    assert (whole.objective, whole.bound, whole.gap, whole.planned) == (0, 0, 0, ())


def test_scores_go_with_the_plan():
    model = nn.Sequential(nn.Linear(8, 8))
    scores = {"0": torch.rand(8, 8, generator=torch.Generator().manual_seed(0))}
    plan = allocate(model, ["2:4"], Params(32), scores=scores)
    assert plan.scores is scores
    nmt.sparsify_(model, plan, nmt.Fixed()).finalize_()
    assert torch.equal(model[0].weight != 0, nmt.solve(scores["0"], "2:4").mask)


def test_paths_inside_paths_keep_their_own_pattern():
    class Inner(nn.Linear):
        def __init__(self):
            super().__init__(8, 8)
            self.inside = nn.Linear(8, 8)

    model = nn.Sequential(Inner())
    found = losses(model, ["1:4", "2:4"])
    values = {"0": {"1:4": 0, "2:4": 0}, "0.inside": {"1:4": 9, "2:4": 0}}
    plan = allocate(found.with_values(values), budget=Params(16 + 32))
    assert [str(layer.pattern) for layer in plan] == ["1:4", "2:4"]
    assert [str(layer.pattern) for layer in nmt.plan(model, plan.patterns)] == ["1:4", "2:4"]


def test_measured_losses_without_a_model():
    lost = {"a": {"2:4": 1.0, "dense": 0.0}, "b": {Pattern(2, 4): 5.0, None: 0.0, "1:4": 6.0}}
    times = {
        "a": {"2:4": 0.1, "dense": 0.2},
        "b": {"2:4": 0.2, "1:4": 0.1, "dense": 0.3},
        "c": {"2:4": 9},
    }
    limit = math.fsum([0.1, 0.3])
    plan = allocate(lost, budget=Latency(times, limit))
    assert plan.patterns == {"a": Pattern(2, 4), "b": None}
    assert (plan.objective, plan.cost) == (1.0, limit)
    assert "in the table's unit" in str(plan)
    assert allocate(lost, ["2:4"], Latency(times, 1)).patterns == {
        "a": Pattern(2, 4),
        "b": Pattern(2, 4),
    }
    only = allocate(lost, ["1:4", "dense"], Latency(times, 0.1))
    assert only[0].reason == "none of 1:4, dense fits it"
    assert only.cost == 0.1
    with pytest.raises(InputError, match=r"a mapping of losses has no shapes.*with_values"):
        allocate(lost, budget=Params(3))


def test_smallest_budgets_are_reachable():
    found = losses(Net(), ["1:4", "2:4T"], example_inputs=IMAGE)
    floor = (1152 + 256 + 96) // 4
    assert allocate(found, budget=Params(floor)).cost == floor
    message = (
        rf"^nmt\.Params\({floor - 1}\) is below the smallest reachable, {floor} kept weights, with "
        rf"the cheapest candidate "
        r"everywhere \(1:4 for conv, first, head\)\. Raise"
    )
    with pytest.raises(InputError, match=message):
        allocate(found, budget=Params(floor - 1))
    floor = (1152 * 16 + 256 * 2 + 96) // 4
    assert allocate(found, budget=FLOPs(floor)).cost == floor
    with pytest.raises(
        InputError,
        match=rf"nmt\.FLOPs\({floor - 1}\) is below the smallest reachable, {floor} multiply-adds",
    ):
        allocate(found, budget=FLOPs(floor - 1))
    times = {
        path: {"1:4": 0.1 * k, "2:4T": 0.3} for k, path in enumerate(("conv", "first", "head"), 1)
    }
    with pytest.raises(
        InputError,
        match=r"nmt\.Latency\(…, 0\.1\) is below.*reachable, 0\.6\d* in the table's unit",
    ) as caught:
        allocate(found, budget=Latency(times, 0.1))
    floor = float(str(caught.value).split("reachable, ")[1].split(" ")[0])
    assert allocate(found, budget=Latency(times, floor)).cost == floor


def test_errors():
    model = Net()
    found = losses(model, ["1:4", "2:4"])
    times = {path: {"1:4": 1.0, "2:4": 2.0} for path in ("conv", "first", "head")}
    for arguments, message in (
        ((model, ["2:4"]), r"budget says what it limits: nmt\.Params\(…\).*got None"),
        ((model, ["2:4"], 500), r"nmt\.Params\(500\)"),
        ((model, None, Params(9)), "a model needs candidates"),
        ((model, [], Params(9)), "candidates are an iterable"),
        ((model, ["2:4"], FLOPs(9)), "pass example_inputs"),
        ((found, None, FLOPs(9)), "no multiply-adds are known of layer conv: pass example_inputs"),
        ((found, ["2:8"], Params(9)), "no losses for 2:8; there are some for 1:4, 2:4"),
        ((3, ["2:4"], Params(9)), "allocate takes a model.*got a int"),
        (
            (found, None, Latency({**times, "conv": {"2:4": 1}}, 9)),
            "the latency table has nothing for layer conv with 1:4; it has 2:4",
        ),
        (
            (found, None, Latency({"conv": times["conv"]}, 9)),
            "the latency table has nothing for layer first; it has conv",
        ),
        (
            (found, None, Latency({**times, "head": {"1:4": -1, "2:4": 1}}, 9)),
            "has -1.0 for layer head with 1:4: times are not neg",
        ),
        (
            (found, None, Latency({**times, "head": {"1:4": math.inf}}, 9)),
            "has inf for layer head with 1:4",
        ),
        (({}, None, Latency(times, 9)), "nothing to allocate"),
        (({"a": {}}, None, Latency(times, 9)), "no candidate for layer a"),
        (({"a": {"2:4": math.nan}}, None, Latency(times, 9)), "has nan for layer a with 2:4"),
    ):
        with pytest.raises(InputError, match=message):
            allocate(*arguments)
    with pytest.raises(InputError, match="calibration is for a model"):
        allocate(found, budget=Params(999), calibration=[IMAGE])
    with pytest.raises(InputError, match="time_limit takes a positive"):
        allocate(found, budget=Params(999), time_limit=0)
    with pytest.raises(
        InputError, match=r"(?s)fits any layer of this Sequential:.*no weight with two axes"
    ):
        allocate(nn.Sequential(nn.ReLU()), ["2:4"], Params(9))
    with pytest.raises(PatternError, match="two of four"):
        allocate(model, ["two of four"], Params(9))
    with torch.no_grad():
        model.first.weight[0, 0] = math.inf
    with pytest.raises(InputError, match=r"layer first: .*inf"):
        allocate(model, ["2:4"], Params(999))


def test_layers_that_share_a_weight_say_alike_why_no_candidate_fits():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 8), nn.Linear(8, 4))
    model[1].weight = model[0].weight
    plan = allocate(losses(model, ["1:2", "2:4", "dense"]), ["2:4", "dense"], Params(16))
    assert [layer.reason for layer in plan] == [*["none of 2:4, dense fits it"] * 3, None]
    assert [layer.tied_to for layer in plan] == [None, "0", None, None]
    assert plan["3"] is plan.planned[0]
