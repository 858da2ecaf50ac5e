"""What a user does to an offloaded model: it is written, or refused; nothing is lost in silence."""

import threading

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

import nmsolve
import nmsolve.torch as nmt
from tests.offload.offloaded_models import empty_like, items_of, made, mlp, reads, run, same, save
from tests.pruning.pruning_models import refuses

WIDE = (16, 32, 32, 32, 32, 8)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return mlp(WIDE).eval()


@pytest.fixture
def offload(model, tmp_path):
    """A model with far more weights than are in memory at a time."""
    source = save(model, tmp_path / "source")

    def start(**options):
        empty = empty_like(model)
        return empty, nmt.offloaded(empty, source, out=tmp_path / "out", **options)

    return start


def by_operator(p):
    with torch.no_grad():
        p.mul_(2)


def by_data(p):
    p.data.mul_(2)


def by_data_of_data(p):
    p.data.data.mul_(2)


def by_detached(p):
    p.detach()[:].mul_(2)


def by_numpy(p):
    np.multiply(p.detach().numpy(), 2, out=p.data.numpy())


def by_other_values(p):
    p.data = p.data * 2


def by_out(p):
    with torch.no_grad():
        torch.mul(p, 2, out=p)


def by_list(p):
    with torch.no_grad():
        torch._foreach_mul_([p], 2)


def by_copy(p):
    with torch.no_grad():
        p.copy_(p * 2)


def in_inference_mode(p):
    with torch.inference_mode():
        p.mul_(2)


def by_result(p):
    with torch.no_grad():
        p.mul_(1).mul_(2)


def by_optimizer(p):
    p.grad = -p.detach().clone()
    torch.optim.SGD([p], lr=1.0).step()


WAYS = [
    by_operator,
    by_data,
    by_data_of_data,
    by_detached,
    by_numpy,
    by_other_values,
    by_out,
    by_list,
    by_copy,
    in_inference_mode,
    by_result,
    by_optimizer,
]


@pytest.mark.parametrize("change", WAYS)
def test_every_way_to_change_a_weight(change, model, offload, tmp_path):
    empty, block = offload()
    x = items_of("mlp")[0]
    with block:
        for part in empty[::2]:
            change(part.weight)
        found = run(empty, x)
    with torch.no_grad():
        for part in model[::2]:
            part.weight.mul_(2)
    assert torch.equal(found, run(model, x))
    assert not same(model, tmp_path / "out")


@pytest.mark.parametrize("view", [lambda p: p.data[1:], lambda p: p.detach().numpy(), torch.t])
def test_views_that_are_held_are_written_to_later(view, model, offload, tmp_path):
    empty, block = offload()
    x = items_of("mlp")[0]
    with block:
        with torch.no_grad():
            held = view(empty[0].weight)
        for _ in range(2):
            run(empty, x)  # everything else needs the room
        held *= 3
        del held
        run(empty, x)
    with torch.no_grad():
        changed = view(model[0].weight)
        changed *= 3
    assert not same(model, tmp_path / "out")


def test_results_of_in_place_operators_are_the_parameter(offload):
    empty, block = offload()
    with block, torch.no_grad():
        p = empty[0].weight
        assert p.mul_(2) is p
        assert nn.init.zeros_(p) is p
        assert torch.add(p, 1, out=p) is p
        assert float(p.min()) == 1


def test_initialising_and_loading(model, offload, tmp_path):
    empty, block = offload()
    other = mlp(WIDE)
    with block:
        empty.apply(lambda m: m.reset_parameters() if isinstance(m, nn.Linear) else None)
        torch.manual_seed(4)
        empty[0].reset_parameters()
        changed = empty[0].weight.detach().clone()
        empty.load_state_dict(other.state_dict())
        torch.manual_seed(4)
        empty[0].reset_parameters()
    assert not torch.equal(changed, other[0].weight)
    torch.manual_seed(4)
    other[0].reset_parameters()
    assert torch.equal(changed, other[0].weight)
    assert not same(other, tmp_path / "out")


CONVERTED = {
    "half": lambda m: m.half(),
    "to": lambda m: m.to(torch.float64),
    "to meta": lambda m: m.to("meta"),
    "data": lambda m: setattr(m[0].weight, "data", torch.zeros(3)),
    "gradients": lambda m: m.requires_grad_(True),
    "one gradient": lambda m: setattr(m[0].weight, "requires_grad", True),
    "replaced": lambda m: setattr(m[0], "weight", nn.Parameter(torch.zeros(32, 16))),
    "assigned": lambda m: m.load_state_dict(mlp(WIDE).state_dict(), assign=True),
    "replaced module": lambda m: m.__setitem__(0, nn.Linear(16, 32)),
    "swapped": lambda m: torch.utils.swap_tensors(m[0].weight, nn.Parameter(torch.zeros(32, 16))),
    "added module": lambda m: m.append(nn.Linear(8, 8)),
    "removed module": lambda m: m.__delitem__(2),
    "removed parameter": lambda m: m[0].register_parameter("bias", None),
    "tied": lambda m: setattr(m[2], "weight", m[4].weight),
    "parametrized": lambda m: parametrize.register_parametrization(m[2], "weight", nn.Identity()),
    "masks": lambda m: nmt.sparsify_(m, "2:4"),
    "packed": lambda m: nmt.accelerate_(m, torch.ones(2, 16)),
    "shape": lambda m: m[0].weight.detach_().t_(),
    "nested": lambda m: nmt.offloaded(m, "x").__enter__(),
}


@pytest.mark.parametrize("how", CONVERTED)
def test_what_would_be_lost_is_refused(how, offload, tmp_path):
    empty, block = offload()
    parameters = list(empty.parameters())
    with pytest.raises(nmsolve.InputError, match="offloaded") as caught, block:
        CONVERTED[how](empty)
    assert "weight" in str(caught.value) or "bias" in str(caught.value) or how == "nested"
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    if "module" not in how and how not in ("parametrized", "removed parameter"):
        assert all(a is b for a, b in zip(parameters, empty.parameters(), strict=True))


def test_conversions_to_what_it_is(model, offload, tmp_path):
    empty, block = offload()
    with block:
        assert empty.to("cpu").float().requires_grad_(False) is empty
        empty.to(memory_format=torch.contiguous_format).zero_grad()
    assert not same(model, tmp_path / "out")


def test_gradients_of_inputs(model, offload):
    empty, block = offload()
    xs = [items_of("mlp")[0].requires_grad_() for _ in range(2)]
    with block:
        outs = [m(x) for m, x in zip((empty, model), xs, strict=True)]
        run(empty, xs[0])
        for out in outs:
            out.square().sum().backward()
        again = items_of("mlp")[0].requires_grad_()
        checkpoint(empty, again, use_reentrant=False).square().sum().backward()
    assert torch.equal(xs[0].grad, xs[1].grad)
    assert torch.equal(again.grad, xs[1].grad)


def test_without_a_place_changes_are_refused(model, tmp_path):
    source, items = save(model, tmp_path / "source"), items_of("mlp")
    empty = empty_like(model)
    for call in (
        lambda: nmt.mask_(empty, "2:4"),
        lambda: nmt.sparsegpt_(empty, "2:4", items),
        lambda: empty[0].bias.data.zero_(),
    ):
        with (
            pytest.raises(nmsolve.InputError, match=r"no place for it.*out="),
            nmt.offloaded(empty, source),
        ):
            call()
    with nmt.offloaded(empty, source):
        refuses(lambda: nmt.sparsegpt_(empty, "2:4", items), "0.weight", "no place")
        assert torch.equal(run(empty, items[0]), run(model, items[0]))
        assert torch.equal(empty[0].weight, model[0].weight)


class Language(nn.Module):
    """An embedding and a head that are larger than all between them."""

    def __init__(self):
        super().__init__()
        self.embed, self.body = nn.Embedding(4000, 16), mlp((16,) * 9)
        self.head = nn.Linear(16, 4000, bias=False)

    def forward(self, ids):
        return self.head(self.body(self.embed(ids)))


def test_the_room(tmp_path):
    """Of two blocks and a larger weight, which is read once for many items."""
    model = Language().eval()
    empty, most = empty_like(model), []
    with nmt.offloaded(empty, save(model, tmp_path / "source")):
        lender = empty.embed.weight.lender
        with reads(empty) as counts:
            for _ in range(5):
                empty.embed(torch.arange(3))
                empty.body[0](torch.ones(16))
        assert counts == {"embed.weight": 1, "body.0.weight": 1, "body.0.bias": 1}
        for part in empty.modules():
            part.register_forward_hook(
                lambda *_: most.append(sorted(here.size for here in lender._here.values()))
            )
        assert torch.equal(run(empty, torch.arange(9)), run(model, torch.arange(9)))
    large, block = 4 * 16 * 4000, 4 * (16 * 16 + 16)
    assert most[0] == [4 * 16, 4 * 256, large]
    for sizes in most:
        assert sum(size == large for size in sizes) <= 1
        assert sum(size for size in sizes if size != large) <= 2 * block
    assert large not in most[8]
    assert large in most[-1]


def test_threads(model, offload):
    empty, block = offload()
    items = [torch.randn(7, 16) for _ in range(8)]
    found = [None] * len(items)

    def work(i):
        for _ in range(5):
            found[i] = run(empty, items[i])

    with block:
        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(items))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(torch.equal(y, run(model, x)) for x, y in zip(items, found, strict=True))


class Opaque(nn.Module):
    """Calls its layer where functions of tensors are switched off, which others would see too."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        x = self.first(x)
        with torch._C.DisableTorchFunctionSubclass():
            return self.second(x)


def test_layers_in_a_context_that_hides_offloaded_weights(tmp_path):
    model = Opaque()
    items, empty = items_of("mlp"), empty_like(model)
    with nmt.offloaded(empty, save(model, tmp_path / "source"), out=tmp_path / "out"):
        refuses(lambda: nmt.adaprune_(empty, "2:4", items), "layer second", "context", "in memory")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(found[key], value) for key, value in model.state_dict().items())
    assert torch.equal(torch.zeros(2) + 1, torch.ones(2))
    assert torch._C._is_torch_function_enabled()


def test_compiled_forwards(model, offload):
    """Run as they were before they were compiled."""
    empty, block = offload()
    x = items_of("mlp")[0]
    compiled = torch.compile(empty, backend="eager")
    with block:
        for _ in range(2):
            assert torch.equal(run(compiled, x), run(model, x))
        with torch.no_grad():
            empty[0].weight.zero_()
        assert not torch.equal(run(compiled, x), run(model, x))


def test_models_without_room_for_their_dtype(tmp_path):
    source = save(made("mlp", torch.float16), tmp_path / "source")
    empty = empty_like(made("mlp"))
    with (
        pytest.raises(nmsolve.InputError, match=r"too large for torch\.float16"),
        nmt.offloaded(empty, source, out=tmp_path / "out"),
    ):
        empty[0].weight.data[0, 0] = 1e9
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
