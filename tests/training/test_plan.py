"""What `plan` gives a pattern, and the reasons of what it skips."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import nmsolve.torch as nmt
from nmsolve import InputError, Pattern, PatternError
from nmsolve.torch.weights.layer_plan import PlannedWeight, SkippedWeight


class Zoo(nn.Module):
    """One of each."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 16)
        self.stem = nn.Conv2d(3, 16, 3)
        self.conv = nn.Conv2d(16, 32, 3)
        self.conv1d = nn.Conv1d(16, 8, 5)
        self.conv3d = nn.Conv3d(8, 8, 2)
        self.grouped = nn.Conv2d(32, 16, 3, groups=4)
        self.depthwise = nn.Conv2d(16, 16, 3, groups=16)
        self.up = nn.ConvTranspose2d(16, 16, 2)
        self.attention = nn.MultiheadAttention(16, 2)
        self.other = nn.MultiheadAttention(16, 2, kdim=8, vdim=12)
        self.rnn = nn.LSTM(16, 16)
        self.bilinear = nn.Bilinear(8, 8, 8)
        self.norm = nn.LayerNorm((4, 4))
        self.old = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.pruned = prune.l1_unstructured(nn.Linear(8, 8), "weight", 0.5)
        self.head = nn.Linear(16, 10)
        self.free = nn.Parameter(torch.ones(4, 4))


def by_path(plan):
    return {layer.path: layer for layer in plan}


def test_every_weight_has_an_entry_with_a_pattern_or_a_reason():
    model = Zoo()
    plan = nmt.plan(model, "2:4")
    found = by_path(plan)
    kept = {path for path, layer in found.items() if layer.pattern is not None}
    assert kept == {
        "conv",
        "conv1d",
        "conv3d",
        "grouped",
        "attention.in_proj_weight",
        "attention.out_proj",
        "other.q_proj_weight",
        "other.k_proj_weight",
        "other.v_proj_weight",
        "other.out_proj",
        "head",
    }
    reasons = {path: layer.reason for path, layer in found.items() if layer.pattern is None}
    assert reasons["embed"].startswith("an embedding")
    assert reasons["stem"] == "3 input channels do not consist of groups of 4"
    assert reasons["depthwise"].startswith("depthwise")
    assert "transposed convolution" in reasons["up"]
    assert "weight_ih_l0 of LSTM" in reasons["rnn.weight_ih_l0"]
    assert "Bilinear" in reasons["bilinear"]
    assert "LayerNorm" in reasons["norm"]
    assert reasons["old"].startswith("parametrized")
    assert "computed by a hook" in reasons["pruned.weight_orig"]
    assert "Zoo" in reasons["free"]
    assert all(reasons.values())
    for layer in plan.planned:
        assert (layer.pattern, layer.reason, layer.axis) == (Pattern(2, 4), None, 1)
    assert found["conv"].shape == (32, 16, 3, 3)
    assert (
        found["attention.in_proj_weight"].name,
        found["attention.in_proj_weight"].parameter,
    ) == ("attention", "in_proj_weight")
    assert (found["head"].name, found["head"].kind) == ("head", "Linear")
    text = str(plan)
    assert all(path in text for path in found)
    assert "16×3×3×3" in text
    listed = {
        path.removesuffix(".weight")
        for path, p in model.named_parameters()
        if p.dim() >= 2 and "old" not in path
    }
    assert listed <= set(found)  # nothing is left out in silence


def test_entries_are_looked_up_by_index_or_path():
    plan = nmt.plan(Zoo(), "2:4")
    assert plan["head"] is plan[[layer.path for layer in plan].index("head")]
    assert plan["attention.in_proj_weight"].parameter == "in_proj_weight"
    with pytest.raises(KeyError, match=r"no planned layer .*tail.*; there are free, embed"):
        plan["tail"]


def test_planned_and_skipped_weights():
    plan = nmt.plan(Zoo(), "2:4")
    assert all(isinstance(layer, PlannedWeight) for layer in plan.planned)
    assert all(isinstance(layer, SkippedWeight) for layer in plan if layer not in plan.planned)
    head = plan["head"].with_pattern(Pattern(1, 4))
    assert (head.pattern, head.axis, head.path) == (Pattern(1, 4), 1, "head")
    skipped = head.skipped("by hand")
    assert (skipped.pattern, skipped.reason, skipped.axis) == (None, "by hand", 1)
    assert head.opened().with_pattern(Pattern(2, 4)) == plan["head"]


def test_blocks_need_rows_and_stay_in_their_filter_group():
    found = by_path(nmt.plan(Zoo(), "4:8T"))
    assert found["head"].reason == "10 output channels do not consist of blocks of 8"
    assert (
        found["grouped"].reason
        == "4 output channels within each of its 4 filter groups do not consist of blocks of 8"
    )
    assert by_path(nmt.plan(Zoo(), "2:4T"))["grouped"].pattern == Pattern(2, 4, transposable=True)
    assert by_path(nmt.plan(Zoo(), "4:8"))["grouped"].pattern == Pattern(4, 8)
    assert by_path(nmt.plan(Zoo(), "8:16"))["grouped"].reason.startswith(
        "8 input channels within each of its 4 filter groups"
    )


@pytest.mark.parametrize("padding", ["pad", "dense"])
def test_padding(padding):
    model = nn.Sequential(nn.Linear(10, 6), nn.Linear(2, 16))
    plan = nmt.plan(model, "2:4T", padding=padding)
    assert (plan[0].pattern is not None, plan[0].padding) == (True, padding)
    assert (plan[1].pattern is None) == (padding == "dense")  # smaller than a block
    sparse = nmt.sparsify_(model, plan, nmt.STE())
    mask = sparse.layers[0].masked.mask
    assert torch.equal(mask, nmt.solve(sparse.layers[0].weight, "2:4T", padding=padding).mask)
    assert nmt.verify(model, plan).ok
    assert sparse.finalize_().ok
    with pytest.raises(
        InputError,
        match=r"1 of shape \(16, 2\), pattern 2:4T.*2 input channels|0 of shape.*10 input",
    ):
        nmt.plan(model, "2:4T", padding="error")


def test_include_exclude_and_patterns_by_glob():
    model = nn.Sequential()
    model.body = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model.head = nn.Sequential(nn.Linear(16, 16))
    assert [layer.path for layer in nmt.plan(model, "2:4", exclude=["head"]).planned] == [
        "body.0",
        "body.1",
    ]
    assert [
        layer.path for layer in nmt.plan(model, "2:4", include="body.*", exclude="*.1").planned
    ] == ["body.0"]
    assert by_path(nmt.plan(model, "2:4", include="body"))["head.0"].reason == "not included"
    mixed = by_path(nmt.plan(model, {"body.0": "2:4T", "body": "1:4", "head": None}))
    assert [str(mixed[path].pattern) for path in ("body.0", "body.1")] == ["2:4T", "1:4"]
    assert mixed["head.0"].reason == "kept dense by the pattern of 'head'"
    sparse = nmt.sparsify_(model, nmt.plan(model, {"body.0": "2:4T", "*": "1:8"}))
    assert sparse.finalize_().ok
    assert [float((m.weight != 0).float().mean()) for m in (model.body[0], model.head[0])] == [
        0.5,
        0.125,
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"exclude": ["heads"]}, "exclude='heads' matches no layer.*head"),
        ({"include": "boddy.*"}, r"include='boddy\.\*' matches no layer"),
        ({"pattern": {"tail": "2:4"}}, "pattern='tail' matches no layer"),
        ({"padding": "perhaps"}, "padding must be one of"),
        ({"pattern": "5:4"}, "5:4"),
        ({"exclude": [3]}, "exclude takes module paths"),
    ],
)
def test_bad_arguments(arguments, message):
    model = nn.Sequential()
    model.body, model.head = nn.Linear(8, 8), nn.Linear(8, 8)
    with pytest.raises((InputError, PatternError), match=message):
        nmt.plan(model, **{"pattern": "2:4"} | arguments)


def test_what_is_no_model():
    with pytest.raises(InputError, match=r"nn\.Module, got Tensor"):
        nmt.plan(torch.ones(4, 4), "2:4")


def test_tied_weights():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16))
    model[2].weight = model[0].weight
    plan = nmt.plan(model, "2:4")
    assert [layer.tied_to for layer in plan] == [None, None, "0"]
    assert "shares weight and mask with 0" in str(plan)
    skipped = nmt.plan(model, "2:4", exclude="2")
    assert skipped[0].reason == "its weight is tied to 2, a Linear: excluded"
    assert (
        nmt.plan(model, {"0": "2:4", "*": "1:4"})[0].reason
        == "its weight is tied to 2, a Linear: that has pattern 1:4"
    )
    lm = nn.ModuleDict({"embed": nn.Embedding(16, 16), "head": nn.Linear(16, 16)})
    lm["head"].weight = lm["embed"].weight
    assert by_path(nmt.plan(lm, "2:4"))["head"].reason.startswith(
        "its weight is tied to embed, a Embedding: an embedding looks up"
    )


def test_meta_and_lazy_models_and_other_dtypes():
    with torch.device("meta"):
        meta = nn.Sequential(nn.Linear(8, 8))
    assert nmt.plan(meta, "2:4").planned
    with pytest.raises(InputError, match="meta"):
        nmt.sparsify_(meta, "2:4")
    assert nmt.plan(nn.Sequential(nn.LazyLinear(8)), "2:4")[0].reason.startswith(
        "not initialised yet"
    )
    integers = nn.Linear(8, 8)
    integers.weight = nn.Parameter(torch.ones(8, 8, dtype=torch.int8), requires_grad=False)
    assert "int8" in nmt.plan(integers, "2:4")[0].reason


def test_masked_models_are_planned_like_plain_ones():
    model = Zoo()
    plan = nmt.plan(model, "2:4")
    nmt.sparsify_(model, plan)
    assert nmt.plan(model, "2:4") == plan


def test_a_model_that_is_a_layer():
    model = nn.Linear(8, 8)
    assert [layer.path for layer in nmt.plan(model, "2:4")] == ["weight"]
    sparse = nmt.sparsify_(model, "2:4")
    assert list(model.state_dict()) == ["bias", "weight", "weight_mask", "weight_progress"]
    assert sparse.finalize_().ok
    assert type(model) is nn.Linear


class Scaled(nn.Linear):
    """Multiplies by its weight, after a fashion of its own."""

    def forward(self, x):
        return (x * 2) @ self.weight.to(x.dtype).T + self.bias


class Standardised(nn.Conv2d):
    def forward(self, x):
        return nn.functional.conv2d(x, self.weight - self.weight.mean(), self.bias)


class Backwards(nn.Linear):
    """x @ W, (in, out), of a square weight."""

    def forward(self, x):
        return x @ self.weight


class ChannelsLast(nn.Conv1d):
    def forward(self, x):
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Unwilling(nn.Linear):
    def forward(self, x, must_be_there):
        return nn.functional.linear(x, self.weight)


def test_layers_with_a_forward_of_their_own():
    model = nn.ModuleDict(
        {
            "scaled": Scaled(8, 8),
            "last": ChannelsLast(8, 8, 3),
            "standardised": Standardised(8, 8, 3),
            "backwards": Backwards(8, 8),
            "unwilling": Unwilling(8, 8),
        }
    )
    with torch.device("meta"):
        meta = nn.ModuleDict(
            {
                name: type(m)(8, 8, 3) if isinstance(m, nn.Conv1d | nn.Conv2d) else type(m)(8, 8)
                for name, m in model.items()
            }
        )
    for one in (model, meta):
        found = by_path(nmt.plan(one, "2:4"))
        assert {path for path, layer in found.items() if layer.pattern} == {"scaled", "last"}
        assert (
            "does not multiply by its weight as it is, (out, in, …), but uses mean on it"
            in found["standardised"].reason
        )
        assert "Backwards does not multiply by its weight as it is" in found["backwards"].reason
        assert "could not be run (TypeError)" in found["unwilling"].reason
    nmt.sparsify_(model, "2:4")
    assert [layer.path for layer in nmt.plan(model, "2:4").planned] == ["scaled", "last"]
