"""`mask_`: the masks of `Fixed` in one call, all of them or none, and nothing else changes."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import nmsolve
import nmsolve.torch as nmt
from tests.training.small_net import Net

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor):
    """A tensor's bits, which tell 0.0 from -0.0."""
    return tensor.detach().contiguous().view(BITS[tensor.element_size()])


def same(one, other):
    return all(
        torch.equal(bits(p), bits(q))
        for p, q in zip(one.parameters(), other.parameters(), strict=True)
    )


def linear():
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))


def with_negative_zeros():
    model = linear()
    with torch.no_grad():
        model[0].weight[:, ::4] = -0.0
        model[0].weight[0] = -0.0  # kept ones too
    return model


def channels_last():
    return nn.Sequential(nn.Conv2d(8, 16, 3), nn.Conv2d(16, 8, 3, groups=2)).to(
        memory_format=torch.channels_last
    )


def attention():
    model = nn.ModuleDict({"own": nn.MultiheadAttention(16, 2)})
    model["other"] = nn.MultiheadAttention(16, 2, kdim=8, vdim=8)
    return model


def tied():
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 4))
    model[2].weight = model[0].weight
    return model


def transposed_memory():
    layer = nn.Linear(16, 8)
    layer.weight = nn.Parameter(torch.randn(16, 8).t())
    return layer


MODELS = {
    "linear": linear,
    "negative zeros": with_negative_zeros,
    "convolutions": channels_last,
    "conv1d": lambda: nn.Conv1d(8, 16, 3),
    "attention": attention,
    "tied": tied,
    "transposed": transposed_memory,
    "bfloat16": lambda: linear().bfloat16(),
    "float64": lambda: linear().double(),
    "all at once": Net,
    "frozen": lambda: linear().requires_grad_(False),
}


@pytest.mark.parametrize("pattern", ["2:4", "2:4T", "<=2:4T", "1:4"])
@pytest.mark.parametrize("name", MODELS)
def test_the_bits_are_those_of_fixed(name, pattern):
    torch.manual_seed(0)
    model = MODELS[name]()
    other = copy.deepcopy(model)
    plan = nmt.plan(model, pattern)
    report = nmt.mask_(model, plan)
    expected = nmt.sparsify_(other, plan, nmt.Fixed()).finalize_()
    assert report
    assert same(model, other)
    assert str(report) == str(expected)
    assert {layer.path for layer in report.layers} == {entry.path for entry in plan.planned}


@pytest.mark.parametrize("padding", ["pad", "dense"])
@pytest.mark.parametrize("pattern", ["2:4", "2:4T"])
def test_padding_and_scores(pattern, padding):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 7), nn.Linear(7, 9), nn.Conv2d(6, 5, 2))
    other = copy.deepcopy(model)
    scores = {name: torch.randn(model[int(name)].weight.shape) for name in "012"}
    plan = nmt.plan(model, pattern, padding=padding, scores=scores)
    assert nmt.mask_(model, plan)
    nmt.sparsify_(other, plan, nmt.Fixed()).finalize_()
    assert same(model, other)
    by_magnitude = copy.deepcopy(other)
    nmt.mask_(by_magnitude, nmt.plan(other, pattern, padding=padding))
    assert nmt.verify(by_magnitude, plan)


def test_what_is_kept_is_the_best_and_as_it_was():
    torch.manual_seed(0)
    model = linear()
    dense = copy.deepcopy(model)
    scores = {"0": torch.randn(32, 16), "2": torch.randn(8, 32)}
    nmt.mask_(model, nmt.plan(model, "1:4", scores=scores))
    for name, given in scores.items():
        kept = model[int(name)].weight != 0
        assert torch.equal(
            kept, given == given.view(-1, 4).amax(1).repeat_interleave(4).view_as(given)
        )
        assert torch.equal(model[int(name)].weight[kept], dense[int(name)].weight[kept])
    model = copy.deepcopy(dense)
    assert nmt.mask_(model, {"0": "2:4", "*": None}).layers[0].path == "0"
    assert torch.equal(model[2].weight, dense[2].weight)
    groups, before = model[0].weight.view(-1, 4).abs(), dense[0].weight.view(-1, 4).abs()
    assert torch.equal(groups.sum(1), before.topk(2).values.sum(1))


def test_nothing_else_of_the_model_changes():
    torch.manual_seed(0)
    model = Net()
    x = torch.randn(3, 1, 4, 4)
    calls = []
    model.head.register_forward_hook(lambda *_: calls.append(1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model(x).sum().backward()
    optimizer.step()
    model.conv.weight.requires_grad_(False)
    plan = nmt.plan(model, "2:4")
    planned = {f"{entry.name}.{entry.parameter}" for entry in plan.planned}
    before = {
        name: (p, p.data_ptr(), p.requires_grad, p.dtype, p.stride(), p.grad, p.grad.clone())
        for name, p in model.named_parameters()
    }
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = copy.deepcopy(optimizer.state_dict()["state"])
    classes = [type(module) for module in model.modules()]
    random = torch.get_rng_state()
    nmt.mask_(model, plan)
    for name, p in model.named_parameters():
        tensor, place, trained, dtype, stride, grad, was = before[name]
        assert (p is tensor, p.data_ptr(), p.requires_grad) == (True, place, trained)
        assert (p.dtype, p.stride(), p.grad is grad) == (dtype, stride, True)
        assert torch.equal(p.grad, was)
    changed = {
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, values[name])
    }
    assert changed == planned
    assert classes == [type(module) for module in model.modules()]
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    found = optimizer.state_dict()["state"]
    assert all(
        torch.equal(torch.as_tensor(found[i][k]), torch.as_tensor(states[i][k]))
        for i in states
        for k in states[i]
    )
    calls.clear()
    model(x)
    assert calls == [1]
    assert not any(nn.utils.parametrize.is_parametrized(module) for module in model.modules())


def test_a_shared_weight_gets_one_mask_and_counts_once():
    torch.manual_seed(0)
    model = tied()
    report = nmt.mask_(model, "2:4")
    assert model[2].weight is model[0].weight
    assert [layer.path for layer in report.layers] == ["0", "2", "3"]
    assert report.coverage.covered == 16 * 16 + 16 * 4
    assert report.coverage.parameters == sum(p.numel() for p in model.parameters())


class Interrupting(TorchDispatchMode):
    """Raises in place of the operation of a number, once."""

    def __init__(self, at, error):
        super().__init__()
        self.at, self.error, self.count = at, error, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        if self.count == self.at:
            raise self.error
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")])
def test_whenever_it_is_interrupted_all_layers_are_masked_or_none(error):
    torch.manual_seed(0)
    dense = nn.Sequential(linear(), nn.Conv2d(4, 8, 2))
    masked, plan = copy.deepcopy(dense), nmt.plan(dense, "2:4")
    with Interrupting(0, error) as counting:
        nmt.mask_(masked, plan)
    assert counting.count > 20
    outcomes = []
    for at in range(1, counting.count + 1):
        model = copy.deepcopy(dense)
        with pytest.raises((type(error), nmsolve.NMSolveError)), Interrupting(at, error):
            nmt.mask_(model, plan)
        assert same(model, dense) or same(model, masked), at
        outcomes.append(same(model, masked))
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {False, True}


def test_errors_in_a_later_layer_leave_all_as_it_was():
    torch.manual_seed(0)
    model = linear()
    dense = copy.deepcopy(model)
    scores = {"0": torch.rand(32, 16), "2": torch.rand(8, 32)}
    plan = nmt.plan(model, "2:4", scores=scores)
    scores["2"][3, 5] = torch.nan
    with pytest.raises(nmsolve.InputError, match=r"layer 2: scores\[3, 5\] is nan"):
        nmt.mask_(model, plan)
    assert same(model, dense)
    with torch.no_grad():
        model[2].weight[1, 2] = torch.inf
    dense = copy.deepcopy(model)
    with pytest.raises(nmsolve.InputError, match=r"weight of layer 2 is inf at \[1, 2\]"):
        nmt.mask_(model, "2:4")
    assert same(model, dense)


def shares_memory():
    memory = torch.randn(128)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[0].weight, model[1].weight = (
        nn.Parameter(memory[:64].view(8, 8)),
        nn.Parameter(memory[32:96].view(8, 8)),
    )
    return model, "2:4"


def expanded():
    layer = nn.Linear(8, 8)
    layer.weight = nn.Parameter(torch.randn(1, 8).expand(8, 8))
    return nn.Sequential(nn.Linear(8, 8), layer), "2:4"


def masked_already():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    nmt.sparsify_(model, {"1": "2:4"})
    return model, "2:4"


def another_models():
    return nn.Linear(8, 8), nmt.plan(linear(), "2:4")


def inference():
    with torch.inference_mode():
        return nn.Linear(8, 8), "2:4"


def converted():
    model = linear()
    plan = nmt.plan(model, "2:4")
    model[2] = nn.Embedding(8, 32)
    return model, plan


def scores_of_another_layer():
    plan = nmt.plan(linear(), "2:4")
    return linear(), nmt.Plan(plan.layers, {"0": torch.ones(32, 16)})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: (torch.randn(8, 8), "2:4"), "model must be an nn.Module, got Tensor"),
        (lambda: (nn.Linear(6, 4), "2:4"), "nothing to do"),
        (another_models, "another model than this Linear: it has no 0"),
        (masked_already, "layer 1 has a mask"),
        (inference, "torch.inference_mode"),
        (shares_memory, "share memory without being one parameter"),
        (expanded, r"layer 1 has entries that share memory \(strides \(0, 1\)\)"),
        (converted, "layer 2 is a Embedding, planned was a Linear"),
        (scores_of_another_layer, "no scores for layer 2"),
        (lambda: (nn.Linear(8, 4, device="meta"), "2:4"), "meta device"),
    ],
)
def test_what_is_refused_is_left_as_it_was(make, words):
    torch.manual_seed(0)
    model, plan = make()
    was = (
        []
        if isinstance(model, torch.Tensor)
        else [(p, p.detach().clone()) for p in model.parameters()]
    )
    with pytest.raises(nmsolve.InputError, match=words):
        nmt.mask_(model, plan)
    assert all(p.is_meta or torch.equal(p, before) for p, before in was)


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.first, self.second = nn.Embedding(16, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 16, bias=False)

    def forward(self, x):
        return self.head(self.second(self.first(self.embed(x))))


def to_embedding(model):
    model.head.weight = model.embed.weight


def to_each_other(model):
    model.second.weight = model.first.weight


PRUNE = {
    "mask_": lambda model, plan, items: nmt.mask_(model, plan),
    "adaprune_": nmt.adaprune_,
    "sparsegpt_": nmt.sparsegpt_,
}


@pytest.mark.parametrize("prune", PRUNE)
@pytest.mark.parametrize(
    ("tie", "words"),
    [
        (to_embedding, "embed, head are one weight"),
        (to_each_other, "layer second shares its weight with other layers than when"),
    ],
)
def test_weights_that_were_tied_since_they_were_planned(prune, tie, words):
    """An embedding would lose half of its entries."""
    torch.manual_seed(0)
    model = Decoder()
    plan = nmt.plan(model, "2:4")
    tie(model)
    was = [(p, p.detach().clone()) for p in model.parameters()]
    with pytest.raises(nmsolve.InputError, match=words):
        PRUNE[prune](model, plan, [torch.randint(0, 16, (4, 32))])
    assert all(torch.equal(p, before) for p, before in was)


@pytest.mark.parametrize("prune", PRUNE)
def test_weights_that_are_tied_no_more(prune):
    torch.manual_seed(0)
    model = Decoder()
    to_each_other(model)
    plan = nmt.plan(model, "2:4")
    model.second.weight = nn.Parameter(model.first.weight.detach().clone() + 1)
    with pytest.raises(nmsolve.InputError, match="layer second shares its weight with other"):
        PRUNE[prune](model, plan, [torch.randint(0, 16, (4, 32))])
    assert int((model.first.weight == 0).sum()) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's memory off /proc")
def test_memory_is_a_byte_a_weight_and_one_layer():
    code = """
import torch
from torch import nn
import nmsolve.torch as nmt
def held(name):  # of this process alone: getrusage tells its parent's peak, too
    lines = dict(line.split(":") for line in open("/proc/self/status"))
    return int(lines[name].split()[0]) * 1024
size, layers = 2048, 24
nmt.mask_(nn.Linear(size, size), "2:4")
model = nn.Sequential(*[nn.Linear(size, size) for _ in range(layers)])
resident = held("VmRSS")
assert nmt.mask_(model, "2:4")
print((held("VmHWM") - resident) / (size * size), layers)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    bytes_a_layer, layers = map(float, done.stdout.split())
    assert bytes_a_layer < 2 * layers  # copies of what is dropped alone would make it 3 * layers


if torch.cuda.is_available():

    @pytest.mark.gpu
    def test_masks_are_those_on_the_cpu():
        torch.manual_seed(0)
        model = Net()
        there = copy.deepcopy(model).cuda()
        assert nmt.mask_(model, "2:4")
        assert nmt.mask_(there, "2:4")
        assert same(model, there.cpu())
