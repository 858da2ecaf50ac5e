"""An offloaded model gives and becomes, bit for bit, what it does in memory."""

import copy
import io

import pytest
import torch
import transformers
from accelerate import init_empty_weights
from torch import nn

import nmsolve.torch as nmt
from tests.offload.offloaded_models import (
    MODELS,
    empty_like,
    items_of,
    made,
    prune,
    reads,
    run,
    same,
    save,
)

HOW = ["mask", "least squares", "second order", "adam"]


@pytest.mark.parametrize(
    ("name", "how"),
    [(name, how) for name in MODELS for how in HOW if how != "adam" or name in ("mlp", "conv")],
)
def test_pruned_bit_for_bit(name, how, tmp_path):
    model, items = made(name), items_of(name)
    source = save(model, tmp_path / "source")
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    empty = empty_like(model)
    parameters = dict(empty.named_parameters())
    with nmt.offloaded(empty, source, out=tmp_path / "out") as inside:
        assert inside is empty
        found = prune(empty, how, items)
    expected = prune(model, how, items)
    if how != "mask":
        assert found.way == expected.way
        assert "side by side" in found.way
        assert [(e.name, e.after) for e in found] == [(e.name, e.after) for e in expected]
    assert not same(model, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
    now = dict(empty.named_parameters())
    assert now.keys() == parameters.keys()
    assert all(now[key] is parameters[key] and now[key].is_meta for key in now)


@pytest.mark.parametrize("name", [*MODELS, "past"])
def test_forwards_bit_for_bit(name, tmp_path):
    model = made(name).requires_grad_(False)  # for which torch chooses another LSTM
    item = torch.randint(0, 32, (5, 4)) if name == "past" else items_of(name)[0]
    empty = empty_like(model)
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # for plain tensors alone
        with nmt.offloaded(empty, save(model, tmp_path / "source")):
            for _ in range(2):
                assert torch.equal(run(empty, item), run(model, item))
            with torch.inference_mode():
                run(empty, item)
            assert torch.equal(run(empty, item), run(model, item))
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(run(empty, item), run(model, item))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtypes_of_the_model_and_of_the_files(dtype, stored, tmp_path):
    """Files keep theirs; the model computes in its own."""
    source = save(made("mlp", stored), tmp_path / "source")
    model = made("mlp", stored).to(dtype)
    empty, items = empty_like(model), [x.to(dtype) for x in items_of("mlp")]
    with nmt.offloaded(empty, source, out=tmp_path / "out"):
        assert empty[0].weight.dtype == dtype
        assert torch.equal(run(empty, items[0]), run(model, items[0]))
        prune(empty, "second order", items)
        assert nmt.verify(empty, "2:4")
    prune(model, "second order", items)
    assert not same(model.to(stored), tmp_path / "out")


def test_scores_plans_and_perplexity(tmp_path):
    model, items = made("tied llama"), items_of("tied llama")
    empty, ids = empty_like(model), torch.randint(0, 32, (60,))
    with nmt.offloaded(empty, save(model, tmp_path / "source"), out=tmp_path / "out"):
        found = nmt.scores.activation(empty, items)
        expected = nmt.scores.activation(model, items)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found)
        for one in (empty, model):
            nmt.mask_(one, nmt.plan(one, "2:4", scores=expected))
        values = [nmt.perplexity(one, ids, window=16).value for one in (empty, model)]
        assert values[0] == values[1]
    assert not same(model, tmp_path / "out")


def test_a_plan_reads_nothing_and_pruning_reads_each_weight_a_few_times(tmp_path):
    """Whatever the number of items."""
    model = made("llama")
    empty = empty_like(model)
    source, most = save(model, tmp_path / "source"), []
    for count in (2, 8):
        with nmt.offloaded(empty, source, out=tmp_path / f"out{count}"):
            with reads(empty) as counts:
                plan = nmt.plan(empty, "2:4")
                print(empty)
                assert sum(p.numel() for p in empty.parameters()) > 1000
                assert not any(p.requires_grad or p.is_meta for p in empty.parameters())
                assert not counts
                nmt.sparsegpt_(empty, plan, items_of("llama") * (count // 2))
            most.append(counts)
    assert most[0] == most[1]
    assert max(most[0].values()) <= 8


def test_state_dicts_and_copies_have_the_values(tmp_path):
    model = made("tied llama")
    empty = empty_like(model)
    with nmt.offloaded(empty, save(model, tmp_path / "source"), out=tmp_path / "out"):
        prune(empty, "mask", None)
        state = empty.state_dict()
        empty.save_pretrained(tmp_path / "saved")
        copied = copy.deepcopy(empty)
        pickled = io.BytesIO()
        torch.save(empty, pickled)
        pickled.seek(0)
        loaded = torch.load(pickled, weights_only=False)
    prune(model, "mask", None)
    for found in (state, copied.state_dict(), loaded.state_dict()):
        assert all(torch.equal(found[key], value) for key, value in model.state_dict().items())
    for one in (copied, loaded):
        assert all(type(p) is nn.Parameter for p in one.parameters())
        assert one.lm_head.weight is one.model.embed_tokens.weight
    assert not same(model, tmp_path / "saved")
    assert not same(model, tmp_path / "out")


def test_statistics_of_batch_norms_are_written(tmp_path):
    model, items = made("conv"), items_of("conv")
    empty = empty_like(model)
    with nmt.offloaded(empty, save(model, tmp_path / "source"), out=tmp_path / "out"):
        for one in (empty, model):
            one.train()
            run(one, items[0])
            one.eval()
    assert not same(model, tmp_path / "out")
    assert int(model.norm.num_batches_tracked) == 1
    assert torch.equal(empty.norm.running_mean, model.norm.running_mean)


def test_models_that_accelerate_makes_empty(tmp_path):
    """As the documentation of `offloaded` says, loaded again as transformers does."""
    model = made("tied llama")
    source = save(model, tmp_path / "source")
    with init_empty_weights(include_buffers=False):
        empty = transformers.LlamaForCausalLM(model.config)
    empty.tie_weights()
    with nmt.offloaded(empty.eval(), source, out=tmp_path / "out"):
        assert empty.lm_head.weight is empty.model.embed_tokens.weight
        prune(empty, "second order", items_of("tied llama"))
    prune(model, "second order", items_of("tied llama"))
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(again[key], value) for key, value in model.state_dict().items())


def test_steps_with_gradients_of_ones_own(tmp_path):
    """Biases that are moved by hand, between forwards."""
    model = made("mlp")
    empty = empty_like(model)
    with nmt.offloaded(empty, save(model, tmp_path / "source"), out=tmp_path / "out"):
        for one in (empty, model):
            one.requires_grad_(False)
            for p in one.parameters():
                p.grad = torch.full_like(p, 0.5)
            optimizer = torch.optim.AdamW(one.parameters(), lr=0.1)
            for _ in range(3):
                optimizer.step()
            optimizer.zero_grad()
    assert not same(model, tmp_path / "out")
