"""Padding is kept out of what layers are pruned by, side by side and in whole passes."""

import copy

import pytest
import torch
from torch import nn

import nmsolve.torch as nmt
from tests.checkpoint.snapshots import differing, snapshot
from tests.pruning.deep_models import Keeping, made, rows
from tests.pruning.pruning_models import refuses

LENGTHS = [9, 4, 7, 9, 2, 8, 5, 9, 3, 6, 9, 7]


def texts(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 32, (length,), generator=generator) for length in LENGTHS]


def padded(texts, side, fill, longest=9):
    """Each text alone, made longer by some token."""
    items = []
    for text in texts:
        more = longest - len(text)
        at = slice(0, len(text)) if side == "right" else slice(more, longest)
        ids = torch.full((1, longest), fill)
        mask, positions = torch.zeros_like(ids), torch.zeros_like(ids)
        ids[0, at], mask[0, at], positions[0, at] = text, 1, torch.arange(len(text))
        items.append({"input_ids": ids, "attention_mask": mask, "position_ids": positions})
    return items


def bare(texts):
    return [{"input_ids": text[None]} for text in texts]


def equal(first, second, tolerance=1e-6):
    return all(
        torch.allclose(a, b, rtol=tolerance, atol=tolerance)
        for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )


@pytest.mark.parametrize("prune", [nmt.adaprune_, nmt.sparsegpt_])
@pytest.mark.parametrize(
    ("name", "side"), [("bert", "right"), ("llama", "right"), ("llama", "left")]
)
def test_padded_texts_prune_as_texts_alone(name, side, prune):
    base = made(name, 2)[0].double()
    plan = nmt.plan(
        base, "2:4", include={"bert": "bert.encoder.*", "llama": "model.layers.*"}[name]
    )
    models, reports = [], []
    for items, around in (
        (bare(texts()), False),
        (padded(texts(), side, 3), False),
        (padded(texts(), side, 30), False),
        (padded(texts(), side, 3), True),
    ):
        models.append(copy.deepcopy(base))
        model, patterns = models[-1], plan
        if around:
            model = Keeping(model)
            patterns = nmt.plan(model, "2:4", include=[f"model.{e.path}" for e in plan.planned])
        reports.append(prune(model, patterns, items))
    assert reports[2].way.startswith("every item once")
    assert reports[3].way.startswith("whole passes")
    for model, report in zip(models[1:], reports[1:], strict=True):
        assert equal(model, models[0])
        for one, two in zip(report, reports[0], strict=True):
            assert one.samples == two.samples
            assert one.held_out_after == pytest.approx(two.held_out_after, rel=1e-6)
    with_padding = copy.deepcopy(base)
    prune(with_padding, plan, padded(texts(), side, 3), weights=lambda item: None)
    assert not equal(with_padding, models[0], 1e-3)


def test_two_sequences_with_a_mask_each():
    base = made("t5", 2)[0].double()
    others = texts(1)[::-1]
    models = []
    for pad in (False, True):
        items = []
        for item, other in zip(
            padded(texts(), "right", 3) if pad else bare(texts()),
            padded(others, "right", 4, 11) if pad else bare(others),
            strict=True,
        ):
            item = {key: x for key, x in item.items() if key != "position_ids"}
            item["decoder_input_ids"] = other["input_ids"]
            if pad:
                item["decoder_attention_mask"] = other["attention_mask"]
            items.append(item)
        models.append(copy.deepcopy(base))
        nmt.adaprune_(models[-1], "2:4", items)
    assert equal(*models)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 8)

    def forward(self, x):
        return self.second(self.first(x).tanh())


def mask_of(item):
    """Rows that count, of any item."""
    return item[..., 0] > -0.5


@pytest.mark.parametrize("count", [1, 3, 12])
@pytest.mark.parametrize(
    "options",
    [{}, {"targets": "own"}, {"sequential": False}, {"bias": False}, {"update": nmt.Adam(steps=9)}],
)
def test_rows_that_do_not_count_are_as_if_they_were_not_there(options, count):
    items = [x.double() for x in rows(count, (60, 16))]
    given = [x[mask_of(x)] for x in items]
    spoilt = [torch.where(mask_of(x)[:, None], x, x * 100) for x in items]
    models = [Model().double() for _ in range(3)]
    reports = [nmt.adaprune_(models[0], "2:4", given, **options)]
    for model, others in zip(models[1:], (items, spoilt), strict=True):
        reports.append(nmt.adaprune_(model, "2:4", others, weights=mask_of, **options))
    for model, report in zip(models[1:], reports[1:], strict=True):
        assert report[0].samples == reports[0][0].samples < 60 * count
        assert equal(model, models[0], 1e-6 if "update" not in options else 1e-4)
    # In whole passes too.
    kept = Keeping(Model().double())
    nmt.adaprune_(kept, "2:4", items, weights=mask_of, **options)
    assert equal(kept.model, models[0], 1e-6 if "update" not in options else 1e-4)


@pytest.mark.parametrize("prune", [nmt.adaprune_, nmt.sparsegpt_])
@pytest.mark.parametrize("around", [False, True])
def test_layers_of_which_no_row_counts_are_not_reached(prune, around):
    model = Keeping(Model()) if around else Model()
    before = snapshot(model)
    items = rows(3, (30, 16))

    def none(item):
        return torch.zeros(30, dtype=torch.bool)

    refuses(lambda: prune(model, "2:4", items, weights=none), "never reached by the calibration")
    assert not differing(snapshot(model), before)


def test_some_items_of_which_no_row_counts():
    items = rows(4, (30, 16))
    models = [Model(), Model()]
    reports = [
        nmt.adaprune_(models[0], "2:4", items[1:]),
        nmt.adaprune_(
            models[1],
            "2:4",
            items,
            weights=lambda x: torch.full((30,), not torch.equal(x, items[0])),
        ),
    ]
    assert equal(*models)
    assert reports[0][0].samples == reports[1][0].samples


class Chosen(nn.Module):
    """An expert that gets some rows of all, of which masks tell nothing."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.expert = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x, attention_mask=None):
        h = self.first(x)
        at = h[..., 0] > 0
        h[at] = self.expert(h[at])
        return h


@pytest.mark.parametrize("around", [False, True])
def test_layers_of_which_padding_cannot_be_told_are_noted(around):
    model = Keeping(Chosen()) if around else Chosen()
    items = []
    for x in rows(3, (2, 15, 16)):
        mask = torch.ones(2, 15, dtype=torch.int64)
        mask[1, 9:] = 0
        items.append({"x": x, "attention_mask": mask})
    path = "model.expert" if around else "expert"
    with pytest.warns(UserWarning, match=f"all rows count of the inputs of {path}, padding too"):
        found = nmt.adaprune_(model, "2:4", items)
    assert any(path in note and "padding too" in note for note in found.notes)
    first = found[path.replace("expert", "first")]
    assert first.samples == 3 * 24 - 3 * 2  # a tenth of each item's 24 is held out


def test_weights_of_another_shape_are_told():
    layer = nn.Linear(16, 16)
    with pytest.warns(
        UserWarning,
        match=r"are \(1, 90\) rows, and weights= gave a tensor of shape \(3,\); let it give one",
    ):
        nmt.adaprune_(
            nn.Sequential(layer),
            "2:4",
            [torch.randn(1, 90, 16), torch.randn(1, 40, 16)],
            weights=lambda item: torch.arange(3 if item.shape[1] == 90 else 5) < 1,
        )
