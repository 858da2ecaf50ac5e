"""Layers whose rows are pruned in pieces: as strips of them would be as layers of their own, with
the sums of their errors.
"""

import copy
import itertools
from unittest.mock import patch

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import nmsolve
import nmsolve.torch as nmt
from nmsolve.geometry import Geometry
from nmsolve.torch.pruning import row_pieces as pieces_of
from nmsolve.torch.pruning.row_pieces import row_pieces
from tests.pruning.deep_models import rows

PRUNE = {
    "least squares": nmt.adaprune_,
    "adam": lambda *args, **kw: nmt.adaprune_(*args, update=nmt.Adam(steps=5), **kw),
    "second order": nmt.sparsegpt_,
}


@pytest.mark.parametrize("shape", [(24, 8), (22, 8), (5, 16), (12, 4, 3), (24, 4, 2, 2), (8, 20)])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("pattern", ["2:4", "2:4T", "4:8T"])
def test_pieces_are_all_rows_once_with_whole_blocks(shape, axis, pattern):
    for parts, apart, at_once in itertools.product([1, 2, 4], [False, True], [1, 32, 100, 2**22]):
        if not ((axis == 0 and (parts > 1 or len(shape) > 2)) or shape[1 - axis] % parts):
            are_all_rows_once(Geometry(shape, axis, parts, apart), pattern, at_once)


def are_all_rows_once(layout, pattern, at_once):
    shape, parts = layout.shape, layout.parts
    weight = torch.arange(torch.tensor(shape).prod().item()).reshape(shape)
    block = nmsolve.Pattern.parse(pattern).rows
    with patch.object(pieces_of, "_AT_ONCE", at_once):
        found = list(row_pieces(layout, nmsolve.Pattern.parse(pattern)))
    matrices = layout.matrices(weight)
    seen = torch.zeros_like(matrices)
    at = 0
    for piece in found:
        strip = piece.of(weight)
        assert torch.equal(piece.layout.matrices(strip), matrices[piece.parts][:, piece.within])
        seen[piece.parts, piece.within] += 1
        count = piece.layout.parts * piece.layout.part_rows
        assert piece.rows in (slice(at, at + count), slice(None))
        at += count
        tall = piece.within.stop - piece.within.start
        assert piece.within.start % block == 0
        assert tall % block == 0 or piece.within.stop == layout.part_rows
        assert tall >= block or tall == layout.part_rows
        if len(found) > 1:
            assert strip.numel() <= max(at_once, 2 * block * matrices.shape[2])
    assert bool((seen == 1).all())
    blocks_lie_across = parts > 1 and layout.part_rows % block
    if at_once == 1 and not blocks_lie_across:
        assert len(found) >= parts * max(1, layout.part_rows // block // 2)


def strips(layer, height):
    """A linear layer as layers of so many rows each."""
    found = []
    for start in range(0, layer.out_features, height):
        part = slice(start, start + height)
        bias = layer.bias is not None
        one = nn.Linear(layer.in_features, len(layer.weight[part]), bias=bias)
        one.weight.data = layer.weight.data[part].clone()
        if bias:
            one.bias.data = layer.bias.data[part].clone()
        found.append(one.to(layer.weight.dtype))
    return found


@pytest.mark.parametrize("kind", PRUNE)
@pytest.mark.parametrize("pattern", ["2:4", "2:4T"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_in_pieces_is_its_strips(kind, pattern, bias):
    torch.manual_seed(0)
    layer, items = nn.Linear(16, 24, bias=bias), rows(12, (30, 16))
    weight = layer.weight.detach().clone()
    alone = strips(layer, 8)
    with patch.object(pieces_of, "_AT_ONCE", 8 * 16):
        (found,) = PRUNE[kind](layer, pattern, items)
    reports = [PRUNE[kind](one, pattern, items)[0] for one in alone]
    # Adam's gradients are smaller by a factor, which it takes up but for rounding.
    close = {"rtol": 1e-4, "atol": 1e-6} if kind == "adam" else {"rtol": 0, "atol": 0}
    for one in ("weight", "bias") if bias else ("weight",):
        whole = torch.cat([getattr(strip, one) for strip in alone])
        torch.testing.assert_close(getattr(layer, one).data, whole.data, **close)
    assert not torch.equal(layer.weight, weight)
    for name in ("damping", "iterations"):
        assert getattr(found, name) == max(getattr(report, name) for report in reports)
    fitted = [torch.cat([x for i, x in enumerate(items) if (i == 9) == out]) for out in (0, 1)]
    names = (("before", "after"), ("held_out_before", "held_out_after"))
    for both, x in zip(names, fitted, strict=True):
        energies = [(x @ part.T).square().sum().item() for part in weight.split(8)]
        for name in both:
            total = sum(getattr(r, name) * e for r, e in zip(reports, energies, strict=True))
            assert getattr(found, name) == pytest.approx(total / sum(energies), rel=1e-4)


def odd_layers():
    """Layers whose rows and parts lie in other ways, with items for them."""
    torch.manual_seed(0)
    images = [torch.randn(3, 8, 5, 5).cumsum(-1) for _ in range(12)]
    attention = nn.MultiheadAttention(16, 2, batch_first=True)
    turned = Conv1D(24, 16)
    nn.init.normal_(turned.weight)
    return {
        "convolution": (nn.Conv2d(8, 24, 3), images, {}),
        "groups": (nn.Conv2d(8, 24, 3, groups=2), images, {}),
        "attention": (attention, [(x, x, x) for x in rows(12, (4, 9, 16))], {}),
        "turned": (turned, rows(12, (30, 16)), {}),
        "padded": (nn.Linear(10, 22), rows(12, (30, 10)), {"padding": "pad"}),
        "kept dense": (nn.Linear(10, 22), rows(12, (30, 10)), {"padding": "dense"}),
    }


@pytest.mark.parametrize("kind", PRUNE)
@pytest.mark.parametrize("pattern", ["2:4", "2:4T"])
@pytest.mark.parametrize("name", odd_layers())
def test_layers_of_all_layouts_come_out_in_pieces_as_whole(name, pattern, kind):
    """The same masks, where these do not depend on inputs that other layers change, and errors that
    differ by what each piece chooses for itself: its damping, and whether to be adjusted.
    """
    base, items, how = odd_layers()[name]
    supports, reports = [], []
    for at_once in (2**22, 100):
        layer = copy.deepcopy(base)
        model = layer if name == "attention" else nn.Sequential(layer)
        plan = nmt.plan(model, pattern, **how)
        with patch.object(pieces_of, "_AT_ONCE", at_once):
            reports.append(PRUNE[kind](model, plan, items))
        assert nmt.verify(model, plan)
        supports.append((layer.in_proj_weight if name == "attention" else layer.weight) != 0)
    if kind != "second order":
        assert torch.equal(*supports)
    for one, two in zip(*reports, strict=True):
        assert two.held_out_after <= two.held_out_before
        assert two.held_out_after == pytest.approx(one.held_out_after, rel=0.15)
    assert reports[0][0].before == pytest.approx(reports[1][0].before, rel=1e-5)


def test_scores_are_cut_like_the_weight():
    torch.manual_seed(0)
    layer, items = nn.Sequential(nn.Linear(16, 24)), rows(12, (30, 16))
    scores = {"0": torch.rand(24, 16)}
    mask = nmt.solve(layer[0].weight, "2:4T", scores["0"]).mask
    with patch.object(pieces_of, "_AT_ONCE", 100):
        nmt.adaprune_(layer, "2:4T", items, scores=scores)
    assert torch.equal(layer[0].weight != 0, mask)


def test_pieces_that_went_several_ways_are_counted_in_the_report():
    """Held-out inputs of dropped weights have the other sign for the rows of one piece."""
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 8, bias=False), torch.randn(40, 1).repeat(1, 8)
    with torch.no_grad():
        layer.weight[:4, ::2] = 3.0  # all drop odd columns, the others even ones
        layer.weight[4:, 1::2] = 3.0
    mask = nmt.solve(layer.weight, "2:4").mask
    assert not bool((mask[:4] & mask[4:]).any())
    x[36:, 1::2] *= -1
    layer.weight.data[4:, ::2] = 0.0
    with patch.object(pieces_of, "_AT_ONCE", 4 * 8):
        (found,) = nmt.adaprune_(layer, "2:4", [x], criterion="magnitude")
    assert found.method in (
        "least squares (1 of 2 pieces of rows), masking (1 of 2 pieces of rows)",
        "masking (1 of 2 pieces of rows), least squares (1 of 2 pieces of rows)",
    )


@pytest.mark.parametrize("prune", [nmt.adaprune_, nmt.sparsegpt_])
def test_a_failure_in_a_later_piece_leaves_the_model_as_it_was(prune):
    torch.manual_seed(0)
    layer, items = nn.Linear(16, 24), rows(12, (30, 16))
    before = copy.deepcopy(layer.state_dict())
    seen = []
    exact = pieces_of.RowPiece.of

    def fails(piece, weight):
        seen.append(piece)
        if len(seen) == 7:
            raise KeyboardInterrupt
        return exact(piece, weight)

    with (
        patch.object(pieces_of, "_AT_ONCE", 4 * 16),
        patch.object(pieces_of.RowPiece, "of", fails),
        pytest.raises(KeyboardInterrupt),
    ):
        prune(layer, "2:4", items)
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())
