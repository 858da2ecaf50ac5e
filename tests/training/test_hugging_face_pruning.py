"""Hugging Face's own models scored and pruned: Conv1D, shared embeddings, keyword arguments, losses
of their own.
"""

import copy

import pytest
import torch
import transformers

import nmsolve.torch as nmt
from reference.pruning import activation_scores
from tests.training.hugging_face_models import MODELS, batches


def llama():
    """Grouped queries, gated feed-forward, and a head that is the embedding."""
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=16,
            tie_word_embeddings=True,
        )
    )


ALL = {**MODELS, "llama": llama}


def items(model, count=6):
    found = batches(model, steps=count)
    return [{key: value for key, value in batch.items() if key == "input_ids"} for batch in found]


def outputs(model, batch):
    with torch.no_grad():
        return model.eval()(**batch).logits


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("pattern", ["2:4", "2:4T"])
def test_models_stay_closer_to_the_dense_one(name, pattern):
    dense = ALL[name]()
    calibration = items(dense)
    plan = nmt.plan(dense, pattern)
    assert len(plan.planned) >= 4
    plain, adaprune, sparsegpt = (copy.deepcopy(dense) for _ in range(3))
    nmt.sparsify_(plain, plan, nmt.Fixed()).finalize_()
    nmt.adaprune_(adaprune, plan, calibration)
    nmt.sparsegpt_(sparsegpt, plan, calibration)
    errors = []
    for model in (plain, adaprune, sparsegpt):
        assert nmt.verify(model, plan)
        errors.append(
            sum(float((outputs(model, x) - outputs(dense, x)).square().sum()) for x in calibration)
        )
    assert errors[1] < 0.7 * errors[0]
    assert errors[2] < 0.7 * errors[0]


def test_conv1d_is_scored_along_its_inputs():
    model = MODELS["gpt2"]().eval()
    seen = []
    layer = model.transformer.h[0].mlp.c_fc
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    for batch in items(model):
        outputs(model, batch)
    handle.remove()
    found = nmt.scores.activation(model, items(model))["transformer.h.0.mlp.c_fc"]
    x = torch.cat([x.reshape(-1, x.shape[-1]) for x in seen]).double().numpy()
    wanted = torch.from_numpy(activation_scores(layer.weight.detach().double().T.numpy(), x)).T
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_losses_of_the_models_themselves_serve_gradient_scores(name):
    model = ALL[name]()
    labelled = batches(model, steps=3)
    if name == "llama":
        labelled = [
            {"input_ids": batch["input_ids"], "labels": batch["input_ids"]} for batch in labelled
        ]
    found = nmt.scores.fisher(model, labelled)
    assert set(found) == {layer.path for layer in nmt.plan(model, "1:1").planned}
    assert all(bool((scores >= 0).all()) and bool((scores > 0).any()) for scores in found.values())
    assert all(p.grad is None for p in model.parameters())


def test_patterns_are_allocated_and_retrained():
    model = MODELS["gpt2"]()
    losses = nmt.losses(model, ["1:4", "2:4", "dense"], calibration=items(model))
    whole = sum(max(option.kept for option in layer.options) for layer in losses if layer.options)
    plan = nmt.allocate(losses, budget=nmt.Params(whole // 2))
    assert plan.status.value == "optimal"
    assert nmt.adaprune_(model, plan, items(model))
    assert nmt.verify(model, plan)
