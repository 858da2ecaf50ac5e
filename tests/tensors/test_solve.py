"""`nmt.solve` and `nmt.verify`: tensors in, the core's result out; what is refused, and how."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nmsolve
import nmsolve.torch as nmt
from nmsolve.torch.masks import engine_name
from nmsolve.torch.tensors import as_array
from tests.core.families import FAMILIES, HALF_FAMILIES, draw, matrix, parse
from tests.tensors.engines import tensor

PATTERNS = ("2:4", "<=2:4", "2:4T", "4:8T")
WEIGHT_DTYPES = ("float16", "bfloat16", "normal32", "normal64", "int8", "int32", "uint8")


def assert_same(ours, core):
    assert isinstance(ours, nmsolve.MaskResult)
    assert np.array_equal(ours.mask.numpy(), core.mask)
    for name in ("status", "objective", "bound", "gap", "method", "pattern", "padding", "scored"):
        assert getattr(ours, name) == getattr(core, name)


@pytest.mark.parametrize("text", PATTERNS)
@settings(max_examples=10)
@given(name=st.sampled_from(sorted({**FAMILIES, **HALF_FAMILIES})), seed=st.integers(0, 2**32 - 1))
def test_the_core_decides(text, name, seed):
    pattern = parse(text)
    W = matrix(draw(name, seed, (8, pattern.rows, pattern.m)), 4)
    assert_same(nmt.solve(tensor(W), text), nmsolve.solve(W, text))


@pytest.mark.parametrize("name", WEIGHT_DTYPES)
def test_memory_is_shared(name):
    W = tensor(draw(name, 0, (2, 8, 8)))
    array = as_array(W)
    assert array.__array_interface__["data"][0] == W.data_ptr()
    assert np.array_equal(nmt.solve(W, "2:4").mask.numpy(), nmsolve.solve(array, "2:4").mask)


def test_arguments_and_results_of_every_kind():
    rng = np.random.default_rng(1)
    W, S = rng.standard_normal((3, 10, 14)), rng.standard_normal((3, 10, 14))
    for options in (
        {"padding": "pad"},
        {"padding": "dense", "duals": True},
        {"at_most": True, "padding": "pad", "threads": 1},
        {"method": "greedy", "padding": "pad"},
        {"method": "min_cost_flow", "padding": "pad", "duals": True},
    ):
        ours, core = nmt.solve(tensor(W), "2:4T", **options), nmsolve.solve(W, "2:4T", **options)
        assert_same(ours, core)
        assert ours.verify(tensor(W))
        if core.duals is not None:
            assert np.array_equal(ours.duals.rows.numpy(), core.duals.rows)
            assert np.array_equal(ours.duals.columns.numpy(), core.duals.columns)
    ours = nmt.solve(tensor(W), "2:4", scores=tensor(S), padding="pad", duals=True)
    assert_same(ours, nmsolve.solve(W, "2:4", scores=S, padding="pad"))
    assert ours.verify(tensor(W), tensor(S))
    assert ours.duals.columns is None


def test_grad_and_parameters():
    leaf = torch.nn.Parameter(torch.randn(8, 8))
    for W in (leaf, leaf * 2, torch.nn.Linear(8, 8).weight):
        result = nmt.solve(W, "2:4T")
        assert not result.mask.requires_grad
        assert result.verify(W)
    (leaf * nmt.solve(leaf, "2:4").mask).sum().backward()
    assert leaf.grad.sum() == 32


@pytest.mark.parametrize("shape", [(8, 12, 3, 3), (8, 12, 1, 5), (8, 4, 2, 3, 3)])
@pytest.mark.parametrize("text", ["2:4", "2:4T"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_convolution_weights_are_matrices_a_kernel_position(shape, text, channels_last):
    W = torch.randn(shape)
    if channels_last:
        W = W.to(memory_format=torch.channels_last if len(shape) == 4 else torch.channels_last_3d)
    result = nmt.solve(W, text, duals=True)
    assert result.mask.shape == W.shape
    assert result.mask.stride() == W.stride()
    for index in np.ndindex(*shape[2:]):
        place = (slice(None), slice(None), *index)
        assert torch.equal(result.mask[place], nmt.solve(W[place].contiguous(), text).mask)
    assert result.duals.rows.shape == (*shape[2:], shape[0], shape[1] // 4)
    assert result.verify(W)
    assert nmt.verify(result.mask, text)
    assert nmt.verify(W * result.mask, text)
    assert not nmt.verify(W, text)


def test_non_contiguous_views():
    base = torch.randn(24, 32)
    for view in (
        base.t(),
        base[::2, ::2],
        base[:, 4:-4],
        torch.randn(1, 8).expand(8, 8),
        torch.randn(2, 8, 3, 8)[:, :, 0],
    ):
        assert torch.equal(nmt.solve(view, "2:4T").mask, nmt.solve(view.contiguous(), "2:4T").mask)
    imaginary = torch.randn(8, 8, dtype=torch.complex64).conj().imag  # carries a pending minus sign
    assert imaginary.is_neg()
    assert (
        nmt.solve(imaginary, "2:4", scores=imaginary).objective
        == nmt.solve(imaginary, "2:4", scores=imaginary.clone()).objective
    )


class Wrapped(torch.Tensor):
    """A tensor subclass that only adds Python attributes."""


def test_plain_subclasses_work():
    W = torch.randn(8, 8).as_subclass(Wrapped)
    result = nmt.solve(W, "2:4")
    assert type(result.mask) is torch.Tensor


def quantized():
    return torch.quantize_per_tensor(torch.randn(8, 8), 0.1, 0, torch.qint8)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.empty(8, 8, device="meta"), ["meta device", "to_empty"]),
        (lambda: torch.randn(8, 8).to_sparse(), ["sparse (sparse_coo)", "to_dense()"]),
        (lambda: torch.randn(8, 8).to_sparse_csr(), ["sparse (sparse_csr)", "to_dense()"]),
        (
            lambda: torch.randn(8, 8, dtype=torch.complex64),
            ["complex", "complex64", "weights.abs()"],
        ),
        (quantized, ["quantized", "dequantize()"]),
        (
            lambda: torch.nested.nested_tensor([torch.randn(4, 4), torch.randn(8, 4)]),
            ["nested", "unbind()"],
        ),
        (lambda: torch.nn.LazyLinear(8).weight, ["not initialised", "lazy"]),
        (
            lambda: torch.zeros(8, 8, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
            ["float4_e2m1fn_x2", "two values", "unpack"],
        ),
        (
            lambda: torch.zeros(8, 8, dtype=torch.uint8).view(torch.int4),
            ["torch.int4", "unpack", "int8"],
        ),
        (lambda: torch.zeros(8, 8, dtype=torch.uint8).view(torch.bits8), ["torch.bits8", "unpack"]),
        (lambda: torch.ones(8, 8, dtype=torch.bool), ["bool", "torch.uint8"]),
        (lambda: torch.randn(8), ["(8,)", "weights[None, :]"]),
        (lambda: torch.tensor(1.0), ["()"]),
        (lambda: torch.randn(2, 2, 2, 2, 4, 4), ["(2, 2, 2, 2, 4, 4)", "batch"]),
        (lambda: torch.randn(0, 8), ["(0, 8)", "without any element"]),
        (lambda: np.ones((4, 4)), ["ndarray", "torch.as_tensor"]),
        (lambda: [[1.0, 2.0]], ["list", "torch.as_tensor"]),
        (lambda: torch.randn(7, 6), ["(7, 6)", "padding='pad'"]),
    ],
)
def test_what_is_refused_by_name(make, words):
    with pytest.raises(nmsolve.InputError) as caught:
        nmt.solve(make(), "2:4T")
    for word in words:
        assert word in str(caught.value)


def test_fake_tensors_are_refused():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        W = torch.empty(8, 8)
    with pytest.raises(nmsolve.InputError, match="FakeTensor"):
        nmt.solve(W, "2:4")


def test_transforms_are_refused():
    with pytest.raises(nmsolve.InputError, match=r"torch\.func"):
        torch.func.vmap(lambda W: nmt.solve(W, "2:4").mask)(torch.randn(2, 8, 8))


def test_three_axes_are_a_batch_and_errors_say_so():
    with pytest.raises(nmsolve.InputError, match=r"unsqueeze\(2\)"):
        nmt.solve(torch.nn.Conv1d(16, 32, 3).weight, "2:4")
    W = torch.nn.Conv1d(16, 32, 3).weight
    assert nmt.solve(W.unsqueeze(2), "2:4").mask.sum(1).eq(8).all()


def test_the_core_points_to_this_layer():
    with pytest.raises(nmsolve.InputError, match=r"nmsolve\.torch"):
        nmsolve.solve(torch.randn(8, 8, dtype=torch.bfloat16), "2:4")


def test_scores_must_fit():
    W = torch.randn(8, 8)
    with pytest.raises(
        nmsolve.InputError, match=re.escape("scores have shape (8, 4), weights (8, 8)")
    ):
        nmt.solve(W, "2:4", scores=torch.randn(8, 4))
    with pytest.raises(nmsolve.InputError, match=r"scores .* meta device"):
        nmt.solve(W, "2:4", scores=torch.randn(8, 8, device="meta"))


def test_errors_of_convolutions_show_their_shape():
    W = torch.randn(8, 8, 3, 3)
    W[5, 6, 1, 2] = float("nan")
    with pytest.raises(nmsolve.InputError, match=r"weights\[1, 2, 5, 6\] is nan.*\(8, 8, 3, 3\)"):
        nmt.solve(W, "2:4")
    with pytest.raises(nmsolve.InputError, match=r"6 columns.*\(8, 6, 3, 3\)"):
        nmt.solve(W[:, :6], "2:4")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pattern", "5:4"),
        ("pattern", "2:4X"),
        ("method", "best"),
        ("padding", "no"),
        ("threads", 0),
    ],
)
def test_options_are_checked_as_in_the_core(name, value):
    W = torch.randn(8, 8)
    options = {"pattern": "2:4", name: value}
    with pytest.raises((nmsolve.InputError, nmsolve.PatternError)) as ours:
        nmt.solve(W, **options)
    with pytest.raises(type(ours.value)) as core:
        nmsolve.solve(W.numpy(), **options)
    assert str(ours.value) == str(core.value)


def test_results_are_checked_on_return():
    import dataclasses

    W = torch.randn(16, 16)
    result = nmt.solve(W, "4:8T", duals=True)
    assert "4:8T on (16, 16): optimal" in str(result)
    lies = [
        {"objective": result.objective + 1},
        {"mask": ~result.mask & torch.randint(0, 2, W.shape).bool()},
        {"mask": result.mask.numpy()},
        {"bound": result.bound * 2, "gap": 0.5},
        {"duals": nmt.TensorDuals(rows=result.duals.rows + 1, columns=result.duals.columns)},
    ]
    for lie in lies:
        with pytest.raises(nmsolve.SolverError):
            dataclasses.replace(result, **lie).verify(W)
    with pytest.raises(nmsolve.InputError):
        result.verify(W, W)


@pytest.mark.parametrize("text", ["2:4", "2:4T", "<=4:8T"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_worse_mask_of_one_tiny_block_fails(text, dtype):
    import dataclasses

    W = torch.randn(32, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    W[8:16, 16:24] *= 1e-9
    result = nmt.solve(W, text)
    assert result.verify(W)
    mask = result.mask.clone()
    mask[8:16, 16:24] = mask[8:16, 16:24].flip(1)
    value = float((W.double().abs() * mask).sum())
    lie = dataclasses.replace(
        result, mask=mask, objective=value, gap=max(0.0, (result.bound - value) / result.bound)
    )
    with pytest.raises(nmsolve.SolverError, match=r"optimal.*block at index \[8, "):
        lie.verify(W)


@pytest.mark.parametrize(
    "wrong", [torch.complex128, torch.float32, torch.bfloat16, "an array", "nothing"], ids=str
)
def test_duals_of_another_kind_fail(wrong):
    import dataclasses

    W = torch.randn(8, 8)
    result = nmt.solve(W, "2:4T", duals=True)
    other = {"an array": result.duals.rows.numpy(), "nothing": None}
    rows = other[wrong] if isinstance(wrong, str) else result.duals.rows.to(wrong)
    for duals in (dataclasses.replace(result.duals, rows=rows), "x"):
        with pytest.raises(nmsolve.SolverError, match="duals"):
            dataclasses.replace(result, duals=duals).verify(W)


def test_verify_takes_masks_and_weights():
    mask = torch.tensor([[True, False, True, False], [True, True, True, False]])
    report = nmt.verify(mask, "2:4")
    assert (report.ok, report.violations, report.first) == (False, 1, ((1, 0), 3))
    assert nmt.verify(mask[:1].to(torch.bfloat16), "2:4")
    assert not nmt.verify(torch.tensor([[True, False, False, False]]), "2:4")
    assert nmt.verify(torch.tensor([[-0.0, 0.0, 0.0, -2.0]]), "2:4").density == 0.25
    assert nmt.verify(
        torch.ones(3, 6, dtype=torch.bool)[:, :5] & torch.tensor([True, True, False, False, True]),
        "2:4",
        padding="dense",
    )
    with pytest.raises(nmsolve.InputError, match="meta"):
        nmt.verify(torch.empty(4, 4, device="meta"), "2:4")
    with pytest.raises(nmsolve.InputError, match="padding"):
        nmt.verify(torch.ones(4, 6), "2:4")


def test_compiled_callers_fall_back_to_eager():
    @torch.compile(backend="eager")
    def masked(W):
        return W * nmt.solve(W, "2:4").mask

    W = torch.randn(8, 8)
    assert torch.equal(masked(W), W * nmt.solve(W, "2:4").mask)


def test_import_is_lazy_about_compilers():
    import subprocess
    import sys

    code = (
        "import sys, nmsolve.torch; "
        "heavy = {'numba', 'triton', 'torch._dynamo', 'scipy', 'ortools'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_engines_of_devices():
    """Large transposable blocks are the host's, whatever device they are on; large groups are
    not.
    """
    cuda, other = torch.device("cuda"), torch.device("privateuseone")
    for device, pattern, name in (
        (cuda, "16:32T", "triton"),
        (cuda, "16:33T", None),
        (cuda, "32:64T", None),
        (cuda, "32:64", "torch"),
        (other, "4:8T", "torch"),
        (other, "32:64T", None),
        (torch.device("cpu"), "2:4", None),
        (torch.device("mps"), "2:4T", None),
    ):
        assert engine_name(device, nmsolve.Pattern.parse(pattern)) == name


#: A solve that a process has no memory for: the weights take 4 bytes, their mask would take 900 MB.
OUT_OF_MEMORY = """
import resource, sys, torch
import nmsolve, nmsolve.torch as nmt
nmt.solve(torch.ones(64, 64), "2:4")
weights = torch.ones(1).expand(30000, 30000)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 2**28, -1))
try:
    nmt.solve(weights, "2:4", threads=1)
except nmsolve.SolverError as error:
    print(error)
assert nmt.solve(torch.ones(64, 64), "2:4")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_memory_that_runs_out_is_told_with_the_tensor():
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "out of memory on the host with weights of shape (30000, 30000), torch.float32, on cpu, "
        "pattern 2:4: "
    )


if torch.cuda.is_available():

    @pytest.mark.gpu
    def test_a_gpu_whose_memory_runs_out_in_the_middle_goes_on():
        torch.cuda.empty_cache()
        W = torch.randint(-99, 99, (8192, 8192), dtype=torch.int16, device="cuda")
        before = W.clone()
        total = torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 2**27) / total)
        try:
            with pytest.raises(
                nmsolve.SolverError,
                match=r"memory on cuda:0 \(.* GiB free\) with weights of shape \(8192, 8192\)",
            ):
                nmt.solve(W, "4:8T")
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        assert torch.equal(W, before)
        assert nmt.solve(W, "4:8T").verify(W).ok


def test_a_triton_that_cannot_be_imported_is_done_without(tmp_path):
    """As `backends` says of it."""
    (tmp_path / "triton.py").write_text(
        "raise OSError('libcuda.so.1: cannot open shared object file')"
    )
    code = """
import torch, nmsolve
from nmsolve.torch.masks import engine_name
print(engine_name(torch.device("cuda"), nmsolve.Pattern.parse("4:8T")))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert done.stdout.strip() == "torch", done.stderr
