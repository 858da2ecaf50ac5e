"""`verify` of models that were quantized after they were pruned: by the values that their codes
stand for.
"""

import pytest
import torch
from torch import nn
from torch.ao import quantization

import nmsolve
import nmsolve.torch as nmt

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_"),
]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.flat = nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten()
        self.first, self.head = nn.Linear(64, 32), nn.Linear(32, 8)
        self.into, self.out = quantization.QuantStub(), quantization.DeQuantStub()

    def forward(self, x):
        x = self.flat(self.relu(self.conv(self.into(x))))
        return self.out(self.head(self.first(x)))


def pruned(pattern="2:4"):
    torch.manual_seed(0)
    model = Net().eval()
    plan = nmt.plan(model, pattern)
    assert nmt.mask_(model, plan)
    return model, plan


def held(report):
    return {layer.path: layer.dequantized for layer in report.layers}


@pytest.mark.parametrize("pattern", ["2:4", "2:4T"])
def test_layers_that_are_quantized_dynamically(pattern):
    model, plan = pruned(pattern)
    was = nmt.verify(model, plan)
    quantized = quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    report = nmt.verify(quantized, plan)
    assert report
    assert held(report) == {"conv": None, "first": "qint8", "head": "qint8"}
    # Parameters are packed away, and still the model's; small weights have become zeros.
    assert report.coverage == was.coverage
    assert report.density <= was.density
    lines = str(report).splitlines()
    assert lines[0].endswith("dequantized from")
    assert [line.split()[0] for line in lines if "qint8" in line] == ["first", "head"]


def test_layers_of_half_precision_that_are_packed():
    model, plan = pruned()
    quantized = quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.float16)
    report = nmt.verify(quantized, plan)
    assert report
    assert held(report)["first"] == "DynamicQuantizedLinear"


@pytest.mark.parametrize("observer", ["per_tensor", "per_channel", "offset"])
def test_layers_that_are_quantized_statically(observer):
    """An integer zero point represents 0 exactly, wherever it is."""
    model, plan = pruned()
    weights = {
        "per_tensor": quantization.default_weight_observer,
        "per_channel": quantization.default_per_channel_weight_observer,
        "offset": quantization.MinMaxObserver.with_args(
            dtype=torch.qint8, qscheme=torch.per_tensor_affine
        ),
    }[observer]
    model.first.weight.data.add_(0.05 * (model.first.weight != 0))  # no symmetric range
    model.qconfig = quantization.QConfig(quantization.default_observer, weights)
    quantization.fuse_modules(model, [["conv", "relu"]], inplace=True)
    prepared = quantization.prepare(model)
    prepared(torch.randn(4, 8, 4, 4))
    converted = quantization.convert(prepared)
    if observer == "offset":
        assert converted.first.weight().q_zero_point() != 0
    report = nmt.verify(converted, plan)
    assert report
    assert held(report) == {"conv": "qint8", "first": "qint8", "head": "qint8"}
    assert report.coverage.covered == report.coverage.parameters - (16 + 32 + 8)


def test_violations_of_a_quantized_layer_are_found():
    model, plan = pruned()
    dense = Net().eval()
    model.head = dense.head
    quantized = quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    report = nmt.verify(quantized, plan)
    assert not report
    assert report["first"].ok
    assert not report["head"].ok


def test_what_is_quantized_is_in_the_denominator():
    """Layers and recurrent ones that nothing is planned for."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8), "rnn": nn.LSTM(8, 8)})
    plan = nmt.plan(model, "2:4", include="a")
    expected = nmt.mask_(model, plan).coverage
    assert expected.share < 0.15
    model["b"] = quantization.quantize_dynamic(nn.Sequential(model["b"]), {nn.Linear})[0]
    assert nmt.verify(model, plan).coverage == expected
    model["rnn"] = quantization.quantize_dynamic(nn.Sequential(model["rnn"]), {nn.LSTM})[0]
    assert nmt.verify(model, plan).coverage == expected


def per_channel(weight):
    scales = weight.abs().amax(1) / 127
    return torch.quantize_per_channel(weight, scales, torch.zeros(len(weight)), 0, torch.qint8)


def with_float_zero_point(weight):
    """Zero lies between two codes, as in GGUF's Q4_1."""
    low, high = weight.amin(1), weight.amax(1)
    scales = (high - low) / 15
    return torch.quantize_per_channel(weight, scales, -low / scales + 0.4, 0, torch.quint8)


@pytest.mark.parametrize(
    ("quantize", "dtype", "holds"),
    [(per_channel, "qint8", True), (with_float_zero_point, "quint8", False)],
)
def test_parameters_that_are_torchs_quantized_tensors(quantize, dtype, holds):
    model, plan = pruned()
    model.first.weight = nn.Parameter(quantize(model.first.weight.detach()), requires_grad=False)
    report = nmt.verify(model, plan)
    assert held(report) == {"conv": None, "first": dtype, "head": None}
    assert bool(report) is bool(report["first"].ok) is holds
    if not holds:
        assert report["first"].violations == report["first"].groups
        assert report["conv"].ok


class Codes(torch.Tensor):
    """A quantized weight as torchao's classes are: codes and scales behind a float's face, with
    `dequantize`, `detach` and little else.
    """

    @staticmethod
    def __new__(cls, codes, scale, low):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=scale.dtype)

    def __init__(self, codes, scale, low):
        self.codes, self.scale, self.low = codes, scale, low

    def __repr__(self):
        return f"{type(self).__name__}({tuple(self.shape)})"

    @classmethod
    def of(cls, weight, offset):
        if offset:
            low = weight.amin(1, keepdim=True)
            scale = (weight.amax(1, keepdim=True) - low) / 14.7
        else:
            low, scale = torch.zeros(len(weight), 1), weight.abs().amax(1, keepdim=True) / 7
        return cls(((weight - low) / scale).round().to(torch.int8), scale, low)

    def dequantize(self):
        return self.codes * self.scale + self.low

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return type(args[0])(args[0].codes, args[0].scale, args[0].low)
        raise NotImplementedError(f"{cls.__name__} does not serve {func}")


class Unreadable(Codes):
    """As torchao's NF4Tensor, whose dequantize is a function of codes and tables."""

    @staticmethod
    def dequantize(value, nf4):
        raise AssertionError("not to be called")


class Flat(Codes):
    def dequantize(self):
        return super().dequantize().flatten()


@pytest.mark.parametrize("offset", [False, True])
def test_classes_of_tensors_that_dequantize(offset):
    model, plan = pruned()
    codes = Codes.of(model.first.weight.detach(), offset)
    model.first.weight = nn.Parameter(codes, requires_grad=False)
    report = nmt.verify(model, plan)
    assert held(report)["first"] == "Codes"
    assert report["first"].ok is not offset
    assert report["head"].ok
    assert report.coverage == pruned_coverage(plan)
    assert nmt.verify(model, "2:4")["first"].ok is not offset


def pruned_coverage(plan):
    return nmt.verify(pruned()[0], plan).coverage


class Int8Linear(nn.Linear):
    """As bitsandbytes': int8 codes in the very parameter."""


def codes_as_numbers(model):
    layer = Int8Linear(64, 32)
    codes = (model.first.weight.detach() * 500).round().to(torch.int8)
    layer.weight = nn.Parameter(codes, requires_grad=False)
    return layer


class PackedBuffers(nn.Module):
    """As GPTQ's layers are."""

    def __init__(self):
        super().__init__()
        self.register_buffer("qweight", torch.zeros(8, 32, dtype=torch.int32))
        self.register_buffer("scales", torch.ones(1, 32))


class FourBits(nn.Linear):
    """As bitsandbytes' Linear4bit: codes, two a byte, in one column."""

    def __init__(self):
        super().__init__(64, 32)
        self.weight = nn.Parameter(torch.zeros(1024, 1, dtype=torch.uint8), requires_grad=False)


def of_class(kind):
    def exchanged(model):
        codes = kind.of(model.first.weight.detach(), False)
        model.first.weight = nn.Parameter(codes, requires_grad=False)
        return model.first

    return exchanged


@pytest.mark.parametrize(
    ("exchange", "words"),
    [
        (of_class(Unreadable), ["Linear", "Unreadable", "could not be dequantized (TypeError"]),
        (of_class(Flat), ["Flat", "gives a tensor of shape (2048,) instead of shape (32, 64)"]),
        (codes_as_numbers, ["a Int8Linear", "torch.int8", "codes"]),
        (lambda model: PackedBuffers(), ["it has no first", "a PackedBuffers now"]),
        (lambda model: FourBits(), ["has shape (1024, 1), not (32, 64)", "a FourBits now"]),
    ],
    ids=["fails", "shape", "int8", "packed buffers", "four bits"],
)
def test_codes_that_say_nothing_are_refused_by_name(exchange, words):
    model, plan = pruned()
    model.first = exchange(model)
    with pytest.raises(nmsolve.InputError) as caught:
        nmt.verify(model, plan)
    for word in ("first", *words, "model.dequantize()"):
        assert word in str(caught.value)


def test_a_pattern_alone_does_not_know_packed_layers():
    model, plan = pruned()
    quantized = quantization.quantize_dynamic(nn.Sequential(model.first), {nn.Linear})
    with pytest.raises(nmsolve.InputError, match="such as 0, are in no plan: verify them with the"):
        nmt.verify(quantized, "2:4")
    # Where others are left, the report tells how little it is about.
    quantized = quantization.quantize_dynamic(model, {nn.Linear})
    report = nmt.verify(quantized, "2:4")
    assert [layer.path for layer in report.layers] == ["conv"]
    assert report.coverage.share < 0.4
    assert nmt.verify(quantized, plan).coverage.share > 0.95


@pytest.mark.parametrize(
    "change",
    [nmt.mask_, nmt.sparsify_, lambda model, plan: nmt.adaprune_(model, plan, [torch.ones(1)])],
    ids=["mask_", "sparsify_", "adaprune_"],
)
def test_quantized_layers_are_not_masked(change):
    model, plan = pruned()
    packed = quantization.quantize_dynamic(model, {nn.Linear})
    with pytest.raises(nmsolve.InputError, match="first, a DynamicQuantizedLinear now, was quanti"):
        change(packed, plan)
    model.head.weight = nn.Parameter(
        Codes.of(model.head.weight.detach(), False), requires_grad=False
    )
    with pytest.raises(nmsolve.InputError, match=r"weight of layer head .* is a Codes"):
        change(model, plan)
