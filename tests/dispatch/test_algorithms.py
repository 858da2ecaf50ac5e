"""cuSPARSELt's algorithms: which is taken, what a layer remembers and when it holds, and that the
number arrives.
"""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from nmsolve.torch.dispatch.algorithms import (
    MARGIN,
    fastest,
    named,
    offered,
    recall,
    remembered,
    sorted_out,
)
from nmsolve.torch.dispatch.availability import Machine
from nmsolve.torch.dispatch.masked_product import (
    masked_linear,
    sparse_linear,
    sparse_linear_grad_input,
)
from nmsolve.torch.dispatch.packed_linear import PackedLinear
from nmsolve.torch.dispatch.packing import pack_unchecked, packed_linear
from nmsolve.torch.dispatch.sparse_linear import SparseLinear
from tests.dispatch.layers import mask_of, operands, packed_layer, sparse_layer

pytestmark = pytest.mark.usefixtures("warned_already")

HOPPER = Machine(no_gpu=None, capability=(9, 0), hip=None, cusparselt=801, triton=None)
OTHERS = [
    Machine(no_gpu=None, capability=(8, 0), hip=None, cusparselt=801, triton=None),
    Machine(no_gpu=None, capability=(9, 0), hip=None, cusparselt=800, triton=None),
    Machine(
        no_gpu="this torch is a CPU build", capability=None, hip=None, cusparselt=None, triton=None
    ),
]
CPU = torch.device("cpu")
MEMORY = remembered(HOPPER, torch.bfloat16, 1000, 3, 5) + remembered(
    HOPPER, torch.bfloat16, 64, 0, 7
)


def test_what_is_remembered_holds_where_it_was_measured():
    def recalled(tokens, machine=HOPPER, dtype=torch.bfloat16, memory=MEMORY):
        return [recall(memory, machine, dtype, tokens, backward) for backward in (False, True)]

    assert recalled(1000) == [3, 5]
    assert recalled(994) == recalled(993) == [3, 5]  # padded to 1000, so the same product
    assert recalled(64) == [0, 7]
    assert recalled(992) == recalled(1001) == recalled(1) == [0, 0]
    assert recalled(1000, dtype=torch.float16) == recalled(1000, dtype=torch.float32) == [0, 0]
    assert [recalled(1000, machine) for machine in OTHERS] == [[0, 0]] * 3
    assert recalled(1000, memory=()) == [0, 0]
    assert recalled(64, memory=list(MEMORY)) == [0, 7]  # as an operator is given it


def test_inference_measures_nothing_for_backward():
    memory = remembered(HOPPER, torch.float16, 8, 4)
    assert recall(memory, HOPPER, torch.float16, 8) == 4
    assert recall(memory, HOPPER, torch.float16, 8, backward=True) == 0
    assert named("cusparselt", memory) == "cusparselt/4"


@given(st.lists(st.floats(1, 100), min_size=1, max_size=20))
def test_the_fastest_is_taken_if_it_is_faster_than_the_default(times):
    taken = fastest(dict(enumerate(times)))
    assert times[taken] <= times[0]
    assert taken == 0 or times[taken] == min(times) <= (1 - MARGIN) * times[0]
    assert (taken == 0) == (min(times) > (1 - MARGIN) * times[0])


def test_wrong_ones_are_told_from_right_ones():
    def wrong(algorithm):
        if algorithm == 6:
            raise RuntimeError(
                "CUDA error: CUSPARSE_STATUS_NOT_SUPPORTED when calling "
                "`cusparseLtMatmulAlgSetAttribute`"
            )
        return f"y is off by {algorithm}" if algorithm in (2, 4) else None

    assert sorted_out(4, wrong, CPU) == ([0, 1, 3], {2: "y is off by 2"})
    assert sorted_out(9, wrong, CPU) == (
        [0, 1, 3, 5],
        {2: "y is off by 2", 4: "y is off by 4"},
    )  # the first refused one ends it


@pytest.mark.parametrize(
    ("at", "said"),
    [(0, "refused"), (0, "an illegal memory access"), (2, "an illegal memory access")],
)
def test_what_no_search_survives_is_raised(at, said):
    def wrong(algorithm):
        if algorithm == at:
            raise RuntimeError(said)

    with pytest.raises(RuntimeError, match=said):
        sorted_out(5, wrong, CPU)


def test_one_algorithm_where_there_is_no_search():
    packed = pack_unchecked(torch.randn(32, 64).half() * mask_of(32, 64), "cutlass")
    assert offered(packed.packed, torch.randn(8, 64).half()) == 1


class Seen(TorchDispatchMode):
    """Which algorithms torch's operator is given."""

    def __init__(self):
        super().__init__()
        self.algorithms = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._cslt_sparse_mm.default:
            names = [argument.name for argument in function._schema.arguments]
            self.algorithms.append(
                dict(zip(names, args, strict=False), **(kwargs or {})).get("alg_id", 0)
            )
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("tokens", [7, 16])
def test_the_number_arrives_at_torch(tokens):
    """Without a GPU: on tensors without values, for which torch knows the operator too."""
    x, bias = (
        torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in ((tokens, 64), (32,))
    )
    values = torch.empty(32, 36, dtype=torch.bfloat16, device="meta")
    for algorithm in (0, 3):
        with Seen() as seen:
            y = packed_linear(x, values, None, bias, (32, 64), "cusparselt", algorithm=algorithm)
        assert seen.algorithms == [algorithm]
        assert y.shape == (tokens, 32)


def copies(layer):
    return (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        nn.Sequential(layer).to(torch.float64)[0],
    )


@pytest.mark.parametrize("kind", [SparseLinear, PackedLinear])
def test_layers_keep_what_they_remember(kind):
    source = sparse_layer()
    mask = {"mask": source.mask} if kind is SparseLinear else {}
    layer = kind.from_linear(source, **mask, backend="cusparselt", algorithms=MEMORY)
    for other in (layer, *copies(layer)):
        assert other.algorithms == MEMORY
    layer.load_state_dict(layer.state_dict())
    assert layer.algorithms == MEMORY
    plain = sparse_layer() if kind is SparseLinear else packed_layer()
    assert plain.algorithms == ()
    assert "algorithms" not in layer.state_dict()
    del plain.algorithms  # as in a pickle from before there were any
    assert pickle.loads(pickle.dumps(plain)).algorithms == ()


def test_the_layer_shows_them():
    layer = SparseLinear.from_linear(
        nn.Linear(8, 12), mask_of(12, 8), backend="cusparselt", algorithms=MEMORY
    )
    assert "backend=cusparselt/3,5,0,7" in repr(layer)
    assert "backend=dense" in repr(sparse_layer())
    assert "backend=dense" in repr(
        PackedLinear.from_linear(layer, "cusparselt", algorithms=MEMORY)
    )  # on a CPU it is not packed
    built = SparseLinear(8, 12, mask=mask_of(12, 8), backend="cusparselt", algorithms=MEMORY)
    assert built.algorithms == MEMORY


def test_operators_take_what_a_layer_remembers():
    x, w, mask, b = operands(5)
    torch.library.opcheck(sparse_linear, (x, w, mask, b, "dense", False, list(MEMORY)))
    torch.library.opcheck(
        sparse_linear_grad_input, (torch.randn(5, 12), w, mask, "dense", False, list(MEMORY))
    )
    x, w, mask, b = operands(3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x, w, b: masked_linear(x, w, mask, b, algorithms=MEMORY), (x, w, b)
    )
    assert torch.autograd.gradgradcheck(
        lambda x, w, b: masked_linear(x, w, mask, b, algorithms=MEMORY), (x, w, b)
    )


def test_compilers_do_not_see_the_number_of_tokens():
    """Looked up outside the operators, the measured size would be a guard, and a graph of its
    own.
    """
    layer = SparseLinear.from_linear(
        nn.Linear(8, 12), mask_of(12, 8), backend="dense", algorithms=MEMORY
    )
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counting)
    for tokens in (5, 64, 7, 1000):
        x = torch.randn(tokens, 8)
        torch.testing.assert_close(compiled(x), layer(x))
    assert len(graphs) == 1
    torch._dynamo.reset()
