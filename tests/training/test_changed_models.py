"""Models that are changed while masks are on them: adapters, heads that are swapped, wrappers,
layers that are dropped.
"""

import copy
import importlib.util
import io
import pickle
import sys
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import LlamaConfig, LlamaForCausalLM

import nmsolve
import nmsolve.torch as nmt
from nmsolve.torch.weights.masked import Masked

LOSS = nn.functional.mse_loss
X, Y = (
    torch.randn(32, 16, generator=torch.Generator().manual_seed(1)),
    torch.randn(32, 8, generator=torch.Generator().manual_seed(2)),
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 8)

    def forward(self, x):
        return self.head(torch.tanh(self.b(torch.tanh(self.a(x)))))


def made(method=None):
    torch.manual_seed(0)
    model = Net()
    return model, nmt.sparsify_(model, "2:4T", method or nmt.Fixed())


def train(model, optimizer, steps=5):
    for _ in range(steps):
        optimizer.zero_grad()
        LOSS(model(X), Y).backward()
        optimizer.step()
    return LOSS(model(X), Y).item()


def masked(model):
    return [module for module in model.modules() if isinstance(module, Masked)]


@pytest.mark.parametrize("method", [nmt.Fixed(), nmt.STE()], ids=["fixed", "ste"])
@pytest.mark.parametrize("how", ["merge_and_unload", "safe_merge", "merge_adapter", "dora"])
def test_a_merged_adapter_is_in_the_finalized_weights(method, how):
    """PEFT's LoRA trained on a masked base: what is finalized is M∘(W + BA), not the base as it was
    before.
    """
    model, sparse = made(method)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["a", "b"],
        modules_to_save=["head"],
        use_dora=how == "dora",
    )
    adapted = get_peft_model(model, config)
    parameters = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    sparse.attach(optimizer)
    assert train(adapted, optimizer, 20) < 0.97 * LOSS(Net()(X), Y).item()
    base = adapted.base_model.model
    expected = {}
    for name in ("a", "b"):
        layer = getattr(base, name)
        mask = layer.base_layer.parametrizations.weight[0].mask
        with torch.no_grad():
            tuned = layer.base_layer.weight + layer.get_delta_weight("default")
            if how == "dora":
                size = layer.lora_magnitude_vector["default"].weight / torch.linalg.norm(
                    tuned, dim=1
                )
                tuned = size[:, None] * tuned
        expected[name] = torch.where(mask, tuned, 0)
    trained_head = base.head.modules_to_save["default"].weight.detach().clone()
    if how == "merge_adapter":
        adapted.merge_adapter()
        merged = adapted.unload()
    else:
        merged = adapted.merge_and_unload(safe_merge=how == "safe_merge")
    assert merged is model
    before = merged(X)
    report = sparse.finalize_()
    assert report.ok
    assert report.gone == ()
    assert not masked(merged)
    for name, weight in expected.items():
        torch.testing.assert_close(getattr(merged, name).weight.detach(), weight)
    torch.testing.assert_close(merged.head.weight.detach(), trained_head)
    assert nmt.verify(merged, sparse.plan).ok
    torch.testing.assert_close(merged(X), before)


def test_merging_and_unmerging_an_adapter_restores_what_is_kept():
    model, _ = made()
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["a"], init_lora_weights=False))
    before = model.a.base_layer.weight.detach().clone()
    adapted.merge_adapter()
    assert not torch.allclose(model.a.base_layer.weight, before)
    adapted.unmerge_adapter()
    torch.testing.assert_close(model.a.base_layer.weight.detach(), before)


def test_adapters_that_are_not_merged():
    """Their matrices are in no plan; and finalizing before they are merged is warned of, for
    merging makes weights dense.
    """
    model, sparse = made(nmt.SRSTE())
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["a"], init_lora_weights=False))
    plan = {layer.path: layer for layer in nmt.plan(adapted, "2:4").layers}
    assert "adapter" in plan["base_model.model.a.lora_A.default"].reason
    assert nmt.plan(adapted, {"base_model.model.a.lora_A.default": "2:4"}).planned
    with pytest.warns(UserWarning, match="adapters are on a: .*merge_and_unload"):
        sparse.finalize_(copy.deepcopy(model))
    merged = adapted.merge_and_unload()
    assert sparse.finalize_().ok
    assert nmt.verify(merged, sparse.plan).ok


def test_statistics_and_the_report_list_what_is_gone():
    """A head that was swapped has no mask: everything else is finalized, and it is named."""
    model, sparse = made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse.attach(optimizer)
    model.head = nn.Linear(16, 3)
    stats = sparse.stats()
    assert stats.gone == ("head",)
    assert "gone" in str(stats)
    assert set(stats.layers) == {"a", "b"}
    sparse.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    sparse.refresh_()
    with pytest.warns(UserWarning, match="head of the plan are gone"):
        report = sparse.finalize_()
    assert report.ok
    assert report.gone == ("head",)
    assert "head" in str(report)
    assert [layer.name for layer in report.layers] == ["a", "b"]
    assert not masked(model)
    assert int(model.head.weight.count_nonzero()) == 48


def test_embeddings_that_are_resized():
    """transformers makes a new head, from the masked weight."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    sparse = nmt.sparsify_(model, "2:4", nmt.Fixed())
    model.resize_token_embeddings(72)
    with pytest.warns(UserWarning, match="lm_head"):
        report = sparse.finalize_()
    assert report.gone == ("lm_head",)
    assert report.ok
    assert len(report.layers) == 7
    assert type(model.model.layers[0].mlp.up_proj) is nn.Linear


@pytest.mark.parametrize(
    "drop", [lambda model: delattr(model, "b"), lambda model: setattr(model, "b", nn.Identity())]
)
def test_layers_that_are_dropped(drop):
    model, sparse = made()
    drop(model)
    with pytest.warns(UserWarning, match="b of the plan are gone"):
        assert sparse.finalize_().gone == ("b",)
    assert not masked(model)


def test_layers_that_are_moved():
    """A layer is found wherever it was put, in a wrapper that takes the model apart too."""
    model, sparse = made()
    model.inner = nn.Sequential(model.a, nn.Tanh())
    del model.a
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = sparse.finalize_()
    assert report.gone == ()
    assert type(model.inner[0]) is nn.Linear
    assert int(model.inner[0].weight.count_nonzero()) == 128


def test_a_model_inside_another():
    """Two calls of sparsify_ on parts of one model, whose layers have the same names: each has its
    own masks, to the end.
    """
    inner, outer = nn.Sequential(nn.Linear(8, 8)), nn.Sequential(nn.Linear(8, 8))
    first = nmt.sparsify_(inner, "2:4", nmt.STE())
    second = nmt.sparsify_(outer, "2:4", nmt.Fixed())
    outer.add_module("extra", inner)
    assert [layer.name for layer in second.finalize_(copy.deepcopy(outer)).layers] == ["0"]
    assert [layer.name for layer in second.finalize_().layers] == ["0"]
    assert len(masked(outer)) == 1
    assert {"extra.0.weight_mask", "extra.0.weight_progress"} <= set(outer.state_dict())
    assert not any("parametrizations" in key for key in outer.state_dict())
    assert first.finalize_().ok


def test_the_model_itself_is_no_copy():
    model, sparse = made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse.attach(optimizer)
    with pytest.raises(nmsolve.InputError, match="no copy of the model"):
        sparse.finalize_(nn.Sequential(model.a))
    assert len(masked(model)) == 3
    assert sparse.finalize_(nn.Sequential(model)).ok
    assert sparse.finalized
    assert not optimizer._optimizer_step_post_hooks


def test_the_first_of_two_tied_layers_is_dropped():
    model = Net()
    model.b.weight = model.a.weight
    sparse = nmt.sparsify_(model, "2:4", nmt.Fixed())
    model.a = nn.Identity()
    assert set(sparse.stats().layers) == {"b", "head"}
    with pytest.warns(UserWarning, match="a of the plan are gone"):
        assert sparse.finalize_().gone == ("a",)
    assert int(model.b.weight.count_nonzero()) == 128


def test_models_that_an_earlier_version_pickled():
    """Their masks know neither their path nor their run; they come off like all others."""
    model, _ = made()
    expected = {name: getattr(model, name).weight.detach().clone() for name in ("a", "b", "head")}
    for mask in masked(model):
        for name in ("path", "run", "written", "mounted"):
            del mask.__dict__[name]
        mask.__setstate__(dict(mask.__dict__))
    old = torch.load(io.BytesIO(saved(model)), weights_only=False)
    assert old(X).shape == (32, 8)
    assert nmt.remove_masks_(old) == ("a", "b", "head")
    for name, weight in expected.items():
        assert torch.equal(getattr(old, name).weight, weight)


def test_all_layers_gone():
    model, sparse = made()
    model.a = model.b = model.head = nn.Identity()
    for call in (sparse.finalize_, sparse.stats, sparse.refresh_):
        with pytest.raises(
            nmsolve.InputError, match=r"no mask of this plan.*replaced \(a, b, head\)"
        ):
            call()


def test_wrapped_copies():
    """A copy may be given as it is, or inside of what averages or wraps it."""
    model, sparse = made(nmt.STE())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    sparse.attach(optimizer)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    for _ in range(5):
        train(model, optimizer, 1)
        average.update_parameters(model)
    assert sparse.refresh_(average) is sparse
    assert sparse.finalize_(average).ok
    assert not masked(average)
    assert len(masked(model)) == 3
    wrapped = nn.ModuleDict({"inside": copy.deepcopy(model)})
    assert sparse.finalize_(wrapped).ok
    assert not masked(wrapped)
    average.module.load_state_dict(average.module.state_dict())
    assert sparse.finalize_().ok


@pytest.mark.parametrize("zeros", [True, False])
def test_masks_come_off(zeros):
    """LBC in the middle, a loaded model without its SparseModel, a model taken apart."""
    torch.manual_seed(0)
    for change in (
        lambda model: model,
        lambda model: torch.load(io.BytesIO(saved(model)), weights_only=False),
        lambda model: pickle.loads(pickle.dumps(model)),
        lambda model: nn.Sequential(model.a, model.b, model.head),
        copy.deepcopy,
    ):
        model = Net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        sparse = nmt.sparsify_(model, "2:4", nmt.LBC(t_i=0, t_f=6)).attach(optimizer)
        train(model, optimizer, 2)
        with pytest.raises(nmsolve.InputError, match="LBC is not done"):
            sparse.finalize_()
        before = {}
        for name in ("a", "b", "head"):
            parts = getattr(model, name).parametrizations.weight
            dense = parts.original.detach().clone()
            before[name] = torch.where(parts[0].mask, dense, 0) if zeros else dense
        changed = change(model)
        assert len(nmt.remove_masks_(changed, zeros=zeros)) == 3
        assert not masked(changed)
        weights = [
            module.weight.detach() for module in changed.modules() if isinstance(module, nn.Linear)
        ]
        for weight, expected in zip(weights, before.values(), strict=True):
            assert torch.equal(weight, expected)
            assert not zeros or not torch.signbit(weight[weight == 0]).any()
        assert nmt.remove_masks_(changed) == ()
        if changed is model:
            train(model, optimizer, 1)  # the hooks find nothing to do
            nmt.sparsify_(model, "2:4")


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    return file.getvalue()


def lookahead():
    """timm's optimizer, from its own file: the package needs torchvision."""
    path = Path(sys.prefix) / "timm" / "timm" / "optim" / "lookahead.py"
    spec = importlib.util.spec_from_file_location("lookahead", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Lookahead


def test_optimizers_that_run_no_hooks():
    """timm's Lookahead does not call Optimizer.__init__: hooks would be kept and never run. The one
    inside is named, and works.
    """
    model, sparse = made(nmt.STE())
    optimizer = lookahead()(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(
        nmsolve.InputError,
        match=r"Lookahead did not call .*sparse\.attach\(optimizer\._base_optimizer\)",
    ):
        sparse.attach(optimizer)
    sparse.attach(optimizer._base_optimizer)
    train(model, optimizer, 8)
    assert sparse.stats().step == 8
    assert sparse.finalize_().ok
