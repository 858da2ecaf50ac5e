"""What a report says beside errors: heads left out, few samples, the share of the model."""

import pytest
import torch
from torch import nn

import nmsolve.torch as nmt
from tests.pruning.deep_models import llama

PRUNE = pytest.mark.parametrize("prune", [nmt.adaprune_, nmt.sparsegpt_])


@PRUNE
def test_heads_stay_dense_unless_they_are_named(prune):
    for named in (False, True):
        torch.manual_seed(0)
        model, _, items = llama(2)
        head = model.lm_head.weight.clone()
        patterns = {"*": "2:4", "lm_head": "4:8"} if named else "2:4"
        report = prune(model, patterns, items(12))
        said = [note for note in report.notes if "head of the language model" in note]
        assert torch.equal(model.lm_head.weight, head) != named
        assert ("lm_head" in [layer.path for layer in report]) == named
        if named:
            assert not said
            assert nmt.verify(model.lm_head.weight, "4:8")
        else:
            assert said == [
                "the head of the language model, layer lm_head, is left dense: name it in the "
                "patterns to prune it, or pass a plan"
            ]
            assert said[0] in str(report)
            assert nmt.verify(model, nmt.plan(model, "2:4", exclude="lm_head"))
    model, _, items = llama(2)
    report = prune(model, nmt.plan(model, "2:4"), items(12))  # plans are taken as they are
    assert "lm_head" in [layer.path for layer in report]
    assert nmt.verify(model, "2:4")


@PRUNE
def test_few_samples_are_told(prune):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    for rows, words in (
        (60, "2 layers got fewer than 5 samples per input, 2 the fewest (54 for 32 inputs)"),
        (100, "1 layer got fewer than 5 samples per input, 2 the fewest (90 for 32 inputs)"),
        (200, None),
    ):
        report = prune(model, "2:4", [torch.randn(rows, 16)])
        said = [note for note in report.notes if "samples per input" in note]
        assert len(said) == (words is not None)
        assert all(note.startswith(words) and note in str(report) for note in said)


@PRUNE
def test_the_share_of_the_model_is_told(prune):
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8), nn.Linear(8, 5))
    report = prune(model, {"0": "2:4", "2": "1:4"}, [torch.randn(200, 16)])
    assert report.coverage.covered == 16 * 32 + 32 * 8
    assert report.coverage.parameters == sum(p.numel() for p in model.parameters())
    assert str(report).endswith(str(report.coverage))
