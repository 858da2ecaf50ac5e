"""The SparseGPT that ours is measured against (`reference/sparsegpt.py`): against the brain surgeon
in loops, and block by block against runs of the whole model.
"""

from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import nmsolve.torch as nmt
from reference.pruning import surgeon_row, surgeon_weights
from reference.sparsegpt import DAMPING, prune_decoder, sparsegpt


def squares(cols, seed, samples=None):
    """XᵀX of correlated inputs, in float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples or 3 * cols, cols, dtype=torch.double, generator=generator)
    return (mixed := x @ torch.randn(cols, cols, dtype=torch.double, generator=generator)).T @ mixed


@given(
    cols=st.sampled_from([8, 16, 136]),
    pattern=st.sampled_from([(2, 4), (1, 4), (4, 8), (6, 8)]),
    seed=st.integers(0, 99),
)
@settings(max_examples=12, deadline=None)
def test_masks_and_weights_are_the_surgeons(cols, pattern, seed):
    n, m = pattern
    hessian = squares(cols, seed)
    weight = torch.randn(2, cols, dtype=torch.double, generator=torch.Generator().manual_seed(seed))
    found = sparsegpt(weight, hessian, n, m).numpy()
    damped = hessian.numpy() + DAMPING * hessian.diagonal().mean().item() * np.eye(cols)
    for row in range(2):
        mask = surgeon_row(weight[row].numpy(), damped, n, m)
        assert np.array_equal(found[row] != 0, mask)
        wanted = surgeon_weights(weight[row].numpy(), damped, mask)
        np.testing.assert_allclose(found[row], wanted, rtol=1e-8, atol=1e-10)


def test_an_input_that_is_always_zero_goes_with_its_weights():
    hessian = squares(8, 0)
    hessian[3] = hessian[:, 3] = 0
    found = sparsegpt(torch.randn(4, 8, dtype=torch.double), hessian, 2, 4)
    assert not found[:, 3].any()
    assert torch.isfinite(found).all()


@pytest.fixture
def decoder():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).eval()


def items():
    return list(torch.randint(50, (6, 1, 16), generator=torch.Generator().manual_seed(1)))


def linears(block):
    return [module for module in block.modules() if isinstance(module, nn.Linear)]


def by_whole_runs(model, n, m):
    """The same, from runs of the whole model for each layer of a block that is still dense."""
    for block in model.model.layers:
        pruned = []
        for layer in linears(block):
            seen = []
            handle = layer.register_forward_pre_hook(
                lambda _, arguments, seen=seen: seen.append(arguments[0].flatten(end_dim=-2))
            )
            with torch.no_grad():
                for item in items():
                    model(item)
            handle.remove()
            x = torch.cat(seen)
            pruned.append(sparsegpt(layer.weight.detach(), x.T @ x, n, m))
        for layer, weight in zip(linears(block), pruned, strict=True):
            layer.weight.data.copy_(weight)


def test_blocks_are_pruned_by_what_the_pruned_blocks_before_give(decoder):
    wanted = deepcopy(decoder).double()
    by_whole_runs(wanted, 2, 4)
    embeddings, head = decoder.model.embed_tokens.weight, decoder.lm_head.weight
    before = embeddings.clone(), head.clone()
    decoder.double()
    prune_decoder(decoder, decoder.model.layers, items(), 2, 4)
    plan = nmt.plan(decoder, "2:4", include="model.layers")
    assert len(plan.planned) == 21
    assert nmt.verify(decoder, plan)
    for found, other in zip(
        linears(decoder.model.layers), linears(wanted.model.layers), strict=True
    ):
        torch.testing.assert_close(found.weight, other.weight, rtol=1e-8, atol=1e-12)
    for then, now in zip(before, (embeddings, head), strict=True):
        assert torch.equal(then.double(), now)


def test_blocks_that_are_not_named_stay_dense(decoder):
    dense = [layer.weight.clone() for layer in linears(decoder)]
    prune_decoder(decoder, decoder.model.layers[:1], items(), 2, 4)
    changed = [
        not torch.equal(layer.weight, weight)
        for layer, weight in zip(linears(decoder), dense, strict=True)
    ]
    assert changed == [True] * 7 + [False] * 15


def test_a_block_runs_twice_an_item_and_the_last_one_once(decoder):
    runs = [0] * 3
    for index, block in enumerate(decoder.model.layers):

        def count(*_, index=index):
            runs[index] += 1

        block.input_layernorm.register_forward_pre_hook(count)
    prune_decoder(decoder, decoder.model.layers, items(), 2, 4)
    assert runs == [12, 12, 6]
