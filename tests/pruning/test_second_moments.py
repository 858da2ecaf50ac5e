"""Second moments against products in float64: their error, whatever the scale, the mean, the number
and the dtype of the samples, and how these come in pieces.
"""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import nmsolve.torch as nmt
from nmsolve.torch.calibration.second_moments import Points, SecondMoments
from nmsolve.torch.pruning.first_run import FirstRun
from tests.pruning.pruning_models import refuses

#: Of an entry, relative to the geometric mean of those on the diagonal.
BOUND = 4096 * 2**-24
#: Of random samples, whose roundings cancel.
RANDOM = 1e-5
#: Which squares are factors of the products' sizes: of x, 0, or of z, 1.
OF = [(0, 0), (1, 0), (1, 1)]


def moments(pieces, dense=None, **how):
    """Of pieces (samples, cols), each with the dense model's of the same samples, or None."""
    others = dense or [None] * len(pieces)
    cols = pieces[0].shape[1]
    own = all(other is None for other in others)
    sums = SecondMoments.empty(1, cols, torch.device("cpu"), own=own, **how)
    for x, other in zip(pieces, others, strict=True):
        sums.add(0, x, x if other is None else other)
    sums.finish()
    return sums


def exact(pieces, dense=None, about=None, weight=None):
    """Σ x xᵀ, Σ z xᵀ and Σ z zᵀ about points, in float64."""
    others = [x if y is None else y for x, y in zip(pieces, dense or pieces, strict=True)]
    x, y = torch.cat(list(pieces)).double(), torch.cat(others).double()
    z = y - x
    if about is not None:
        x, z = x - about[0], z - (about[1] - about[0])
    z = z if weight is None else z @ weight[0].T.double()
    return x.T @ x, z.T @ x, z.T @ z


def errors(found, wanted):
    """Of all three, relative to the entries on the diagonals."""
    gram, between, gap = wanted
    squares = gram.diagonal(), gap.diagonal()
    sizes = [squares[one].outer(squares[two]).sqrt() + 1e-300 for one, two in OF]
    if found.between is None:
        assert not gap.any()
        return [float(((found.gram[0] - gram).abs() / sizes[0]).max())]
    if found.gap.ndim == 2:
        gap, sizes[2] = squares[1], squares[1] + 1e-300
    return [
        float(((one[0] - two).abs() / size).max())
        for one, two, size in zip(
            (found.gram, found.between, found.gap), (gram, between, gap), sizes, strict=True
        )
    ]


def points(given, of_dense, weight=None):
    """Where moments of one part are taken about."""
    apart = (of_dense - given)[None]
    return Points(
        given[None], of_dense[None], apart if weight is None else apart @ weight[0].T.double()
    )


def samples(lengths, cols, scale, mean, dtype, seed):
    """Correlated, in pieces of some lengths, of a scale, with means so many times larger."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(cols, cols, generator=generator, dtype=torch.float64)
    offset = mean * torch.randn(cols, generator=generator, dtype=torch.float64)

    def piece(length):
        x = torch.randn(length, cols, generator=generator, dtype=torch.float64) @ mix
        return (scale * (x + offset)).to(dtype)

    return [piece(length) for length in lengths]


@given(
    lengths=st.lists(st.integers(1, 3000), min_size=1, max_size=6),
    cols=st.sampled_from([1, 7, 130, 300]),
    scale=st.sampled_from([1e-30, 1e-12, 1.0, 1e12, 1e25]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    dense=st.lists(st.booleans(), min_size=6, max_size=6),
    precise=st.booleans(),
    rows=st.sampled_from([None, 1, 5]),
    seed=st.integers(0, 99),
)
@settings(max_examples=25)
def test_sums_are_near_products_in_float64(lengths, cols, scale, dtype, dense, precise, rows, seed):
    """Whether items have inputs of the dense model, or are their own; by inputs or outputs."""
    weight = rows and torch.randn(1, rows, cols, dtype=torch.promote_types(dtype, torch.float32))
    pieces = samples(lengths, cols, scale, 0.5, dtype, seed)
    others = samples(lengths, cols, scale, 0.5, dtype, seed + 1)
    of_dense = [
        x + y if there else None for x, y, there in zip(pieces, others, dense, strict=False)
    ]
    found = moments(pieces, of_dense, centred=False, precise=precise, weight=weight)
    assert found.by_outputs == (weight is not None and any(y is not None for y in of_dense))
    wanted = exact(pieces, of_dense, weight=weight)
    worst = max(errors(found.about(None), wanted))
    assert worst <= (1e-13 if precise or dtype == torch.float64 else RANDOM)
    assert torch.equal(found.gram, found.gram.mT)
    if found.gap is not None and not found.by_outputs:
        assert torch.equal(found.gap, found.gap.mT)
    assert int(found.count) == sum(lengths)


@given(
    lengths=st.lists(st.integers(1, 2000), min_size=1, max_size=5),
    mean=st.sampled_from([0.0, 1.0, 1e3]),
    scale=st.sampled_from([1e-20, 1.0, 1e20]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    own=st.booleans(),
    rows=st.sampled_from([None, 3]),
    seed=st.integers(0, 99),
)
@settings(max_examples=25)
def test_moments_about_the_means_lose_nothing_to_large_means(
    lengths, mean, scale, dtype, own, rows, seed
):
    """Products of the inputs as they are would lose 10⁶ to a mean of 10³ times the deviation."""
    cols = 20
    pieces = samples([30, *lengths], cols, scale, mean, dtype, seed)
    noise = samples([30, *lengths], cols, scale, 0.0, dtype, seed + 1)
    of_dense = None if own else [x + y for x, y in zip(pieces, noise, strict=True)]
    weight = rows and torch.randn(1, rows, cols, dtype=dtype)
    found = moments(pieces, of_dense, centred=True, weight=weight)
    x = torch.cat(pieces).double()
    y = x if own else torch.cat(of_dense).double()
    means = x.mean(0), y.mean(0)
    for one, two in zip(found.means[:2], means, strict=True):
        torch.testing.assert_close(one[0], two, rtol=1e-6, atol=scale * 1e-5)
    about = points(*means, weight)
    wanted = exact(pieces, of_dense, means, weight)
    assert max(errors(found.about(about), wanted)) <= (RANDOM if dtype == torch.float32 else 1e-9)
    # The same sums about zero, where the means are most of them.
    assert max(errors(found.about(None), exact(pieces, of_dense, None, weight))) <= RANDOM


@given(length=st.integers(3000, 20000), seed=st.integers(0, 9))
@settings(max_examples=5)
def test_the_worst_of_roundings_stays_below_the_bound(length, seed):
    """All of one sign and size: every addition rounds the same way."""
    generator = torch.Generator().manual_seed(seed)
    x = 1 + torch.rand(length, 3, generator=generator) * 1e-3
    found = moments([x], centred=False)
    assert max(errors(found.about(None), exact([x]))) <= BOUND


def test_inputs_of_which_nothing_is_left():
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        found = moments([torch.zeros(40, 5, dtype=dtype), torch.zeros(1, 5, dtype=dtype)])
        assert not found.about(found.means).gram.any()
        assert not found.about(None).gram.any()
    alone = torch.randn(1, 5)
    found = moments([alone])
    assert not found.about(found.means).gram.any()  # a sample is its own mean
    assert max(errors(found.about(None), exact([alone]))) <= RANDOM
    constant = torch.full((5000, 5), 3e7)
    found = moments([constant])
    assert not found.about(found.means).gram.any()
    nothing = moments([torch.zeros(0, 5)])
    assert not nothing.count
    assert not nothing.about(nothing.means).gram.any()


def test_float64_beyond_float32():
    for scale in (1e40, 1e-60, 1e120):
        pieces = samples([50, 60], 9, scale, 2.0, torch.float64, 0)
        found = moments(pieces)
        x = torch.cat(pieces)
        about = x.mean(0), x.mean(0)
        assert max(errors(found.about(points(*about)), exact(pieces, about=about))) < 1e-9


def test_the_pieces_do_not_matter():
    x = torch.cat(samples([9000], 150, 1.0, 1.0, torch.float32, 0))
    other = x + torch.cat(samples([9000], 150, 0.1, 0.0, torch.float32, 1))
    whole = moments([x], [other])
    for size in (1, 37, 4096, 5000):
        if size == 1:  # as one part in a few
            pieces, others = [x[:1], x[1:2], x[2:]], [other[:1], other[1:2], other[2:]]
        else:
            pieces, others = x.split(size), other.split(size)
        parts = moments(pieces, others)
        means = whole.means
        for one, two in zip(parts.means, means, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)
        first, second = parts.about(means), whole.about(means)
        wanted = (second.gram[0], second.between[0], second.gap[0])
        assert max(errors(first, wanted)) <= 2 * RANDOM


class Heads(nn.Module):
    """Three layers of one tensor, or of three that are equal."""

    def __init__(self, apart, in_place):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.apart, self.in_place = apart, in_place

    def forward(self, x):
        x = x.tanh()
        found = []
        for layer in self.layers:
            found.append(layer(x.clone() if self.apart else x))
            if self.in_place:
                x.mul_(1.5)
            elif self.apart:
                x = x.clone()
        return found


def test_moments_are_shared_by_layers_of_the_very_same_tensor_alone(monkeypatch):
    """Counted by what is added to sums; values are those of sums of their own."""
    counts = []
    add = SecondMoments._add

    def counting(self, *args):
        counts.append(self)
        return add(self, *args)

    monkeypatch.setattr(SecondMoments, "_add", counting)
    items = [torch.randn(30, 16) @ torch.randn(16, 16) for _ in range(3)]
    models, added = [], []
    for apart in (False, True):
        for options in ({}, {"update": nmt.Adam(steps=3)}):
            counts.clear()
            models.append(Heads(apart, False))
            nmt.adaprune_(models[-1], "2:4", items, **options)
            added.append(len(counts))
    assert 3 * added[0] == added[2] == added[3] == 3 * added[1]
    for first, second in ((0, 2), (1, 3)):
        for one, two in zip(models[first].parameters(), models[second].parameters(), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    counts.clear()
    changed = Heads(False, True)
    nmt.adaprune_(changed, "2:4", items)
    assert len(counts) == added[2]
    alone = copy.deepcopy(Heads(False, True).layers[2])
    nmt.adaprune_(alone, "2:4", [x.tanh() * 1.5 * 1.5 for x in items])
    torch.testing.assert_close(alone.weight, changed.layers[2].weight, rtol=1e-4, atol=1e-5)


class Narrow(nn.Module):
    """Two layers that are given one tensor, and have fewer rows than columns."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(32, 32)
        self.second, self.third = nn.Linear(32, 8), nn.Linear(32, 8)

    def forward(self, x):
        x = self.first(x).relu()
        return self.second(x), self.third(x)


@pytest.mark.parametrize("bias", [True, False])
def test_sums_by_outputs_are_one_layers_alone(monkeypatch, bias):
    """Where the first run does not tell that layers share their inputs, and both gather by their
    outputs; against sums by inputs, which they share.
    """
    items = [torch.randn(40, 32) @ torch.randn(32, 32) for _ in range(10)]
    alike, apart = Narrow(), Narrow()
    shared = nmt.adaprune_(alike, "2:4", items, bias=bias)
    kinds = []
    made = SecondMoments.empty.__func__

    def empty(cls, *args, **kwargs):
        kinds.append(made(cls, *args, **kwargs))
        return kinds[-1]

    monkeypatch.setattr(SecondMoments, "empty", classmethod(empty))
    monkeypatch.setattr(FirstRun, "others_given", lambda *_: False)
    alone = nmt.adaprune_(apart, "2:4", items, bias=bias)
    assert [sums.by_outputs for sums in kinds] == [False] * 2 + [True] * 4
    for one, two in zip(shared, alone, strict=True):
        assert one.after == pytest.approx(two.after, rel=1e-4)
        assert one.held_out_after == pytest.approx(two.held_out_after, rel=1e-4)
        assert one.before == pytest.approx(two.before, rel=1e-4)
    for one, two in zip(alike.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("prune", [nmt.adaprune_, nmt.sparsegpt_])
def test_inputs_of_any_scale_prune_alike(prune):
    """In units of another size the layer is the same."""
    torch.manual_seed(0)
    layer, x = (
        nn.Linear(16, 8).double(),
        torch.randn(90, 16).double() @ torch.randn(16, 16).double(),
    )
    reports = []
    for scale in (1.0, 2.0**-100, 2.0**83):
        scaled = copy.deepcopy(layer)
        scaled.bias.data *= scale
        reports.append(prune(scaled, "2:4", [x * scale])[0])
        assert torch.isfinite(scaled.weight).all()
    for one in reports[1:]:
        assert (one.method, one.iterations) == (reports[0].method, reports[0].iterations)
        assert one.held_out_after == pytest.approx(reports[0].held_out_after, rel=1e-6)
    narrow = copy.deepcopy(layer).float()  # squares are beyond float32 where these are not
    for scale in (1.0, 2.0**-100, 2.0**66):
        scaled = copy.deepcopy(narrow)
        scaled.bias.data *= scale
        found = prune(scaled, "2:4", [x.float() * scale])[0]
        assert found.method == reports[0].method
        assert found.held_out_after == pytest.approx(reports[0].held_out_after, rel=1e-3)
    far = [torch.full((1, 16), 1e20), x.float()]
    assert 0 < prune(copy.deepcopy(narrow), "2:4", far)[0].before < 10
    beyond = [x * 1e160]
    refuses(lambda: prune(layer, "2:4", beyond), "squares of its inputs leave the range of float64")
