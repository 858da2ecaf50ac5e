"""DDP and FSDP2 on two real gloo ranks: the same masks, losses and weights as one process; errors
instead of waiting.
"""

import pytest
import torch
import torch.distributed as dist
from torch import nn

import nmsolve.torch as nmt
from nmsolve.errors import InputError
from tests.ranks import WORLD

STEPS = 6
METHODS = {
    "fixed": lambda: nmt.Fixed(),
    "srste-coupled": lambda: nmt.SRSTE(decay=0.05, update_every=2, decoupled=False),
    "srste": lambda: nmt.SRSTE(decay=0.05),
    "lbc": lambda: nmt.LBC(t_i=0, t_f=4),
}


class Net(nn.Module):
    """Linear, convolution and attention, all in float64 so that sums over ranks agree."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(8, 16, 3, padding=1)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 8))
        self.double()

    def forward(self, x):
        x = self.conv(x.transpose(1, 2)).transpose(1, 2)
        return self.head(x + self.attention(x, x, x, need_weights=False)[0])


def model_of(seed=0):
    torch.manual_seed(seed)
    return Net()


def batches():
    g = torch.Generator().manual_seed(1)
    return [
        (torch.randn(4, 6, 8, generator=g).double(), torch.randn(4, 6, 8, generator=g).double())
        for _ in range(STEPS)
    ]


def optimizer_of(model, name):
    if name == "srste-coupled":
        return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return torch.optim.AdamW(model.parameters(), lr=0.02)


def train(model, name, sparse, data, world=1):
    """Losses of training on this rank's share of the data, averaged over ranks."""
    optimizer = optimizer_of(model, name)
    sparse.attach(optimizer)
    losses = []
    for x, t in data:
        optimizer.zero_grad()
        loss = (model(x) - t).square().mean()
        loss.backward()
        optimizer.step()
        value = loss.detach().clone()
        if world > 1:
            dist.all_reduce(
                value, dist.ReduceOp.AVG if dist.get_backend() != "gloo" else dist.ReduceOp.SUM
            )
            value = value / world
        losses.append(value.item())
    return losses


def alone(pattern, name):
    model = model_of()
    sparse = nmt.sparsify_(model, pattern, METHODS[name]())
    losses = train(model, name, sparse, batches())
    return losses, model.state_dict(), sparse.stats()


def _mine(rank):
    return [(x.chunk(WORLD)[rank], t.chunk(WORLD)[rank]) for x, t in batches()]


def ddp(rank, runs):
    found = []
    for pattern, name in runs:
        model = model_of(seed=0 if rank == 0 else 99)  # DDP begins with rank 0's weights and masks
        sparse = nmt.sparsify_(model, pattern, METHODS[name]())
        wrapped = nn.parallel.DistributedDataParallel(model)
        losses = train(wrapped, name, sparse, _mine(rank), WORLD)
        stats = sparse.stats()
        state = {key: value.clone() for key, value in model.state_dict().items()}
        report = sparse.finalize_()
        found.append((losses, state, (stats.density, stats.flips, stats.sad), report.ok))
    return found


RUNS = [("2:4", "fixed"), ("2:4", "srste"), ("2:4T", "srste-coupled"), ("2:4", "lbc")]


def assert_same_as_alone(runs, found):
    for (pattern, name), results in zip(runs, zip(*found, strict=True), strict=True):
        losses, state, stats = alone(pattern, name)
        for rank_losses, rank_state, rank_stats, ok in results:
            assert rank_losses == pytest.approx(losses, rel=1e-9), (pattern, name)
            assert ok
            assert rank_stats == (stats.density, stats.flips, stats.sad)
            assert set(rank_state) == set(state)
            for key, value in state.items():
                if value.dtype == torch.uint8:
                    assert torch.equal(rank_state[key], value), key
                else:
                    torch.testing.assert_close(rank_state[key], value, rtol=1e-7, atol=1e-9)


def test_ddp(on_two_ranks):
    assert_same_as_alone(RUNS, on_two_ranks(ddp, RUNS))


def fsdp(rank, runs):
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard

    found = []
    for pattern, name in runs:
        model = model_of()
        sparse = nmt.sparsify_(model, pattern, METHODS[name]())
        plan = sparse.plan
        fully_shard(model.head)
        fully_shard(model)
        losses = train(model, name, sparse, _mine(rank), WORLD)
        stats = sparse.stats()
        ok = nmt.verify(model, plan).ok
        state = get_model_state_dict(
            model, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=False)
        )
        if rank == 0:
            whole = model_of(5)
            copy = nmt.sparsify_(whole, plan, METHODS[name]())
            whole.load_state_dict(state)
            ok = ok and copy.finalize_().ok
        found.append(
            (
                losses,
                {k: v.clone() for k, v in state.items()},
                (stats.density, stats.flips, stats.sad),
                ok,
            )
        )
    return found


def test_fsdp2(on_two_ranks):
    found = on_two_ranks(fsdp, RUNS)
    assert_same_as_alone(RUNS, [found[0]])  # full state dicts are rank 0's


def resumed(rank, folder, name):
    """Train, save by torch.distributed.checkpoint's state dicts, go on; and from the saved state in
    new objects.
    """
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.fsdp import fully_shard

    def made():
        model = model_of()
        sparse = nmt.sparsify_(model, "2:4", METHODS[name]())
        fully_shard(model)
        optimizer = optimizer_of(model, name)
        return model, optimizer, sparse.attach(optimizer)

    def some(model, optimizer, data):
        for x, t in data:
            optimizer.zero_grad()
            (model(x) - t).square().mean().backward()
            optimizer.step()

    data = _mine(rank)
    model, optimizer, sparse = made()
    some(model, optimizer, data[:3])
    held = get_state_dict(model, optimizer)
    torch.save(held, f"{folder}/held{rank}.pt")
    some(model, optimizer, data[3:])
    again, other, resumed_sparse = made()
    held = torch.load(f"{folder}/held{rank}.pt", weights_only=False)
    set_state_dict(again, other, model_state_dict=held[0], optim_state_dict=held[1])
    some(again, other, data[3:])
    assert str(sparse.stats()) == str(resumed_sparse.stats())
    for key, value in model.state_dict().items():
        mine, theirs = (getattr(v, "_local_tensor", v) for v in (value, again.state_dict()[key]))
        assert torch.equal(mine, theirs), key
    return True


@pytest.mark.parametrize("name", ["srste", "lbc", "fixed"])
def test_fsdp2_resumes_bit_for_bit(on_two_ranks, tmp_path, name):
    assert on_two_ranks(resumed, str(tmp_path), name) == [True, True]


def empty(rank):
    """A rank that holds no row of a layer: training, saving and resuming go on."""
    from torch.distributed.fsdp import fully_shard

    for name in METHODS:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1)).double()
        sparse = nmt.sparsify_(model, "2:4", METHODS[name]())
        fully_shard(model)
        optimizer = optimizer_of(model, name)
        sparse.attach(optimizer)
        for step in range(5):
            optimizer.zero_grad()
            model(torch.full((2, 8), 1.0 + step, dtype=torch.float64)).square().sum().backward()
            optimizer.step()
            if step == 1:
                model.load_state_dict(model.state_dict())
                sparse.attach(optimizer)
        assert nmt.verify(model, sparse.plan).ok, name
        assert sparse.stats().step == 5
    return True


def written(rank):
    """What is written through module.weight between steps reaches this rank's shard; what is
    written late is refused.
    """
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8))
    sparse = nmt.sparsify_(model, "2:4", nmt.STE())
    fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse.attach(optimizer)

    def step():
        optimizer.zero_grad()
        model(torch.zeros(2, 8)).sum().backward()  # the weight's gradient is 0
        optimizer.step()

    def dense():
        return model[0].parametrizations.weight.original.to_local().detach()

    step()
    model[0].weight.data.to_local().fill_(3 + rank)
    step()
    assert torch.equal(dense(), torch.full_like(dense(), 3 + rank))
    assert torch.equal(model.state_dict()["0.weight"].to_local(), dense())
    late = model[0].weight.data.to_local()
    with torch.no_grad():
        model[0].parametrizations.weight.original.mul_(2)
    late.fill_(0)
    with pytest.raises(InputError, match="layer 0: something was written"):
        optimizer.step()
    assert torch.equal(dense(), torch.full_like(dense(), 6 + 2 * rank))
    del late
    model.state_dict()
    assert model[0].parametrizations.weight[0].written._reachable == []
    return True


def test_writes_to_sharded_weights(on_two_ranks):
    assert on_two_ranks(written) == [True, True]


def rolled_back(rank):
    """Candidates that are loaded into a model in training, where a rank has none to count, and are
    not due for a while.
    """
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    sparse = nmt.sparsify_(model, "2:4", nmt.LBC(t_i=0, t_f=60))
    fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse.attach(optimizer)
    for step in range(60):
        optimizer.zero_grad()
        (model(torch.full((2, 8), 1.0 + step % 3)) - 1).square().mean().backward()
        optimizer.step()
        if step == 5:
            model.load_state_dict(model.state_dict())
    assert nmt.verify(model, sparse.plan).ok
    return [layer.masked.candidates.left for layer in sparse.layers]


def test_candidates_loaded_in_training(on_two_ranks):
    assert on_two_ranks(rolled_back) == [[1, 1], [1, 1]]


def test_ranks_without_a_row(on_two_ranks):
    assert on_two_ranks(empty) == [True, True]


def troubles(rank):
    from torch.distributed.fsdp import fully_shard

    messages = []
    model = nn.Sequential(nn.Linear(8, 24))  # 12 rows a rank, blocks of 8
    sparse = nmt.sparsify_(model, "4:8T", nmt.STE())
    fully_shard(model)
    with pytest.raises(InputError) as caught:
        sparse.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    messages.append(str(caught.value))
    with pytest.raises(InputError) as caught:
        nmt.sparsify_(fully_shard(nn.Sequential(nn.Linear(8, 8))), "2:4")
    messages.append(str(caught.value))

    model = nn.Sequential(nn.Linear(8, 8))
    sparse = nmt.sparsify_(model, "2:4", nmt.STE())
    before = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse.attach(before)
    fully_shard(model)
    with pytest.raises(InputError) as caught:
        sparse.attach(before)
    messages.append(str(caught.value))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse.attach(optimizer)
    mask, stats = sparse.layers[0].masked.mask.clone(), str(sparse.stats())
    model(torch.ones(2, 8)).sum().backward()
    if rank == 1:  # a NaN in one rank's shard stops both
        sparse.layers[0].weight[1, 2] = torch.nan
    with pytest.raises(InputError) as caught:
        optimizer.step()
    messages.append(str(caught.value))
    assert torch.equal(sparse.layers[0].masked.mask, mask)
    assert str(sparse.stats()) == stats
    with pytest.raises(InputError) as caught:
        sparse.finalize_()
    messages.append(str(caught.value))
    return messages


def test_troubles_of_shards_are_errors_on_every_rank(on_two_ranks):
    first, second = on_two_ranks(troubles)
    assert (
        "layer 0 of shape (24, 8): this rank's shard has rows 0 to 11, which cuts blocks of "
        "pattern 4:8T" in first[0]
    )
    assert "rows 12 to 23" in second[0]
    for messages in (first, second):
        assert "sharded" in messages[1]
        assert "does not hold the weight of 0" in messages[2]
        assert "cannot be undone" in messages[4]
    assert "another rank" in first[3]
    assert "layer 0" in second[3]
    assert "nan" in second[3]
