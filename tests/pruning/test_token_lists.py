"""Calibration items as tokenizers give them without return_tensors, and items that are text."""

from collections import UserDict

import pytest
import torch
import transformers
from torch import nn

import nmsolve.torch as nmt
from tests.pruning.pruning_models import refuses

IDS = [[1, 2, 3, 4], [5, 6, 7, 8]]
MASK = [[1, 1, 1, 1], [1, 1, 0, 0]]


def bert(head=transformers.BertModel):
    torch.manual_seed(0)
    return head(
        transformers.BertConfig(
            vocab_size=32,
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=16,
        )
    )


def same(item, other):
    model = bert()
    found, wanted = (nmt.scores.activation(model, [each]) for each in (item, other))
    assert all(torch.equal(found[path], wanted[path]) for path in wanted)


@pytest.mark.parametrize("kind", [dict, UserDict, transformers.BatchEncoding])
def test_lists_of_ids_are_tensors(kind):
    tensors = {"input_ids": torch.tensor(IDS), "attention_mask": torch.tensor(MASK)}
    same(kind({"input_ids": IDS, "attention_mask": MASK}), tensors)
    same(kind({"input_ids": IDS, "attention_mask": tensors["attention_mask"]}), tensors)
    same(kind({"input_ids": IDS[0]}), torch.tensor(IDS[:1]))
    same(
        kind({"input_ids": IDS[1], "attention_mask": MASK[1], "token_type_ids": [0, 0, 0, 1]}),
        {
            "input_ids": torch.tensor(IDS[1:]),
            "attention_mask": torch.tensor(MASK[1:]),
            "token_type_ids": torch.tensor([[0, 0, 0, 1]]),
        },
    )


def test_everything_that_runs_items_takes_them():
    model, item = bert(transformers.BertForMaskedLM), {"input_ids": IDS[0], "labels": IDS[0]}
    tensors = {key: torch.tensor([value]) for key, value in item.items()}
    found, wanted = (nmt.scores.fisher(model, [each]) for each in (item, tensors))
    assert all(torch.equal(found[path], wanted[path]) for path in wanted)
    found, wanted = (nmt.losses(model, ["2:4"], calibration=[each]) for each in (item, tensors))
    assert found == wanted
    counted = nmt.losses(model, ["2:4"], example_inputs=item)
    assert {layer.positions for layer in counted if layer.options} == {4}
    pruned, ids = [bert(), bert()], torch.arange(640).reshape(-1, 4) % 32
    for each, given in zip(pruned, (ids, ids.tolist()), strict=True):
        nmt.adaprune_(each, "2:4", [{"input_ids": given}])
    for first, second in zip(*(each.parameters() for each in pruned), strict=True):
        assert torch.equal(first, second)


def test_lists_that_fit_no_tensor_are_refused():
    model = bert(transformers.BertForSequenceClassification)
    good = {"input_ids": torch.tensor(IDS)}
    for item, words in (
        (
            {"input_ids": [[1, 2, 3], [4, 5]]},
            ["different lengths, 2 to 3", "return_tensors='pt', padding=True"],
        ),
        (
            {"input_ids": IDS, "labels": [0, 1]},
            ["labels", "(2,) beside input_ids of (2, 4)", "pass tensors"],
        ),
        ({"input_ids": IDS[0], "labels": [0]}, ["labels", "(1,) beside input_ids of (4,)"]),
        ({"input_ids": IDS[0], "attention_mask": MASK[:1]}, ["(1, 4) beside input_ids of (4,)"]),
        (
            {"input_ids": IDS, "attention_mask": [[1, 1], [1]]},
            ["(2, 1 to 2) beside input_ids of (2, 4)"],
        ),
    ):
        refuses(
            lambda item=item: nmt.scores.activation(model, [good, item]),
            "of calibration item 1 ",
            *words,
        )
    refuses(
        lambda: nmt.losses(model, ["2:4"], example_inputs={"input_ids": [[1, 2, 3], [4, 5]]}),
        "input_ids of the example inputs have different lengths",
    )


@pytest.mark.parametrize("item", [[1, 2, 3], [IDS], (IDS,), {"inputs_embeds": IDS}])
def test_other_lists_of_ids_are_told(item):
    refuses(
        lambda: nmt.scores.activation(bert(), [item]),
        "calibration item 0, called as BertModel(",
        "token ids have to be a tensor",
        "torch.tensor([ids])",
    )


@pytest.mark.parametrize("item", ["some text", ["some", "text"], {"text": "some"}, (["some"],)])
def test_text_is_to_be_tokenised(item):
    refuses(
        lambda: nmt.scores.activation(bert(), [item]),
        "calibration item 0, called as BertModel(",
        "that is text: tokenise it, tokenizer(text, return_tensors='pt')",
    )


def test_text_in_place_of_a_calibration_is_told():
    refuses(lambda: nmt.scores.activation(bert(), "some text"), "got text", "tokenizer(text")


class Takes(nn.Module):
    """A model that takes text, or sizes, itself."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, given, sizes=(1, 1)):
        return self.layer(torch.ones(*sizes, 8) * len(given))


def test_models_that_take_text_or_lists_get_them():
    for item in ("text", ["text"], {"given": "text", "sizes": [2, 3]}, [[1, 2, 3, 4], [2, 3]]):
        assert float(nmt.scores.activation(Takes(), [item])["layer"].max()) > 0
    refuses(
        lambda: nmt.scores.activation(Takes(), [(torch.ones(2), [0.5, 3])]), "failed: TypeError"
    )
