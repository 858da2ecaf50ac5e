"""Padding is kept out of scores and Gram matrices; where it cannot be told a warning says so."""

import functools
import warnings

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import nmsolve.torch as nmt
from tests.pruning.pruning_models import refuses

SMALL = {
    "vocab_size": 32,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}


@functools.lru_cache
def bert():
    torch.manual_seed(0)
    config = transformers.BertConfig(**SMALL)
    return transformers.BertModel(config, add_pooling_layer=False).double()


@functools.lru_cache
def llama():
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)).double()


MODELS = {"bert": bert, "llama": llama}


def close(found, wanted, tolerance=1e-9):
    assert found.keys() == wanted.keys()
    for path in wanted:
        torch.testing.assert_close(found[path], wanted[path], rtol=tolerance, atol=tolerance)


def errors(model, calibration, **options):
    found = nmt.losses(model, ["2:4"], calibration=calibration, **options)
    return {
        layer.path: torch.tensor(layer.options[0].loss, dtype=torch.float64)
        for layer in found
        if layer.options
    }


def alone(texts):
    return [
        {"input_ids": text[None], "attention_mask": torch.ones_like(text)[None]} for text in texts
    ]


def padded(texts, side, dtype=torch.int64, positions=True):
    """One batch of texts, with whatever ids beside them."""
    longest = max(map(len, texts))
    ids = torch.randint(32, (len(texts), longest), generator=torch.Generator().manual_seed(1))
    mask, places = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, text in enumerate(texts):
        at = slice(0, len(text)) if side == "right" else slice(longest - len(text), longest)
        ids[row, at], mask[row, at], places[row, at] = text, 1, torch.arange(len(text))
    item = {"input_ids": ids, "attention_mask": mask.to(dtype)}
    return item | ({"position_ids": places} if positions else {})


def texts_of(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(32, (length,), generator=generator) for length in lengths]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("side", ["right", "left"])
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4).filter(
        lambda lengths: len(lengths) != max(lengths)
    ),
    dtype=st.sampled_from([torch.int64, torch.bool, torch.float32]),
    seed=st.integers(0, 99),
)
@settings(max_examples=12)
def test_padded_texts_score_as_texts_one_by_one(name, side, lengths, dtype, seed):
    model, texts = MODELS[name](), texts_of(lengths, seed)
    close(
        nmt.scores.activation(model, [padded(texts, side, dtype)]),
        nmt.scores.activation(model, alone(texts)),
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_is_kept_out_of_gram_matrices(name, side):
    model, texts = MODELS[name](), texts_of([5, 2, 7])
    found, wanted = errors(model, [padded(texts, side)]), errors(model, alone(texts))
    close(found, wanted)
    plain = errors(model, [padded(texts, side)], weights=lambda item: None)
    # Llama's attention over nothing is zero.
    reached = [path for path in wanted if "o_proj" not in path]
    assert all(abs(float(plain[path] / wanted[path]) - 1) > 1e-6 for path in reached)


def test_masks_count_by_position_too():
    model, texts = bert(), texts_of([5, 2])
    item = padded(texts, "right", positions=False)
    wanted = nmt.scores.activation(model, [item])
    close(nmt.scores.activation(model, [(item["input_ids"], item["attention_mask"])]), wanted)
    close(nmt.scores.activation(model, [[item["input_ids"], item["attention_mask"]]]), wanted)
    everything = nmt.scores.activation(model, [item["input_ids"]])
    assert not torch.allclose(
        everything["encoder.layer.0.attention.self.query"],
        wanted["encoder.layer.0.attention.self.query"],
    )


def test_masks_without_padding_change_nothing():
    model, ids = bert(), torch.stack(texts_of([5, 5]))
    ones = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert all(
        torch.equal(scores, other)
        for scores, other in zip(
            nmt.scores.activation(model, [ones]).values(),
            nmt.scores.activation(model, [ones], weights=lambda item: None).values(),
            strict=True,
        )
    )


class Own(nn.Module):
    """A model whose mask has another name, with either axis of tokens first."""

    def __init__(self, batch_first):
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=batch_first, dropout=0.0)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double()

    def forward(self, x, keep):
        return self.body(x, src_key_padding_mask=~keep)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("shape", [(3, 5), (4, 4)], ids=["", "square"])
def test_weights_tell_what_counts_in_other_models(batch_first, shape):
    model = Own(batch_first)
    x = torch.randn(*shape, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    keep = torch.arange(shape[1]) < torch.tensor([4, 2, 3, 1][: shape[0]])[:, None]
    item = {"x": x if batch_first else x.transpose(0, 1), "keep": keep}
    found = nmt.scores.activation(
        model, [item], weights=lambda item: item["keep"] if batch_first else item["keep"].T
    )
    one_by_one = [
        {
            "x": text[: kept.sum()].unsqueeze(0 if batch_first else 1),
            "keep": kept[None, : kept.sum()],
        }
        for text, kept in zip(x, keep, strict=True)
    ]
    close(found, nmt.scores.activation(model, one_by_one))


def test_weights_stand_in_for_the_mask():
    model, texts = bert(), texts_of([5, 2])
    found = nmt.scores.activation(
        model,
        [padded(texts, "right")],
        weights=lambda item: torch.tensor([[1.0] * 5, [0.0] * 5]),
    )
    close(found, nmt.scores.activation(model, alone(texts[:1])))


def test_what_is_not_finite_in_padding_does_not_matter():
    model = nn.Sequential(nn.Linear(8, 4)).double()
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    dirty = x.clone()
    dirty[1, 2] = torch.nan
    keep = ~dirty.isnan().any(-1)
    wanted = model[0].weight.detach().abs() * x[keep].norm(dim=0)
    found = nmt.scores.activation(model, [dirty], weights=lambda item: ~item.isnan().any(-1))
    torch.testing.assert_close(found["0"], wanted)
    refuses(lambda: nmt.scores.activation(model, [dirty]), "layer 0 is nan")


class Flat(nn.Module):
    """Tokens in one axis; optionally column by column, or those that an expert gets."""

    def __init__(self, way="rows"):
        super().__init__()
        torch.manual_seed(0)
        self.way = way
        self.embed = nn.Embedding(32, 8, dtype=torch.float64)
        self.first, self.second = (nn.Linear(8, 8, dtype=torch.float64) for _ in range(2))

    def forward(self, input_ids, attention_mask):
        x = self.embed(input_ids)
        if self.way == "time first":
            return self.second(self.first(x.transpose(0, 1)))
        x = self.first(x.flatten(0, 1))
        return self.second(x[input_ids.flatten() % 2 == 0] if self.way == "experts" else x)


def test_tokens_in_one_axis_are_told_by_their_order():
    texts = texts_of([5, 2])
    close(
        nmt.scores.activation(Flat(), [padded(texts, "left", positions=False)]),
        nmt.scores.activation(Flat(), alone(texts)),
    )


def warned(call, *words):
    with pytest.warns(UserWarning, match="all rows count of the inputs of") as caught:
        found = call()
    assert len(caught) == 1
    assert caught[0].filename == __file__
    for word in words:
        assert word in str(caught[0].message)
    return found


def all_of(model, item):
    return nmt.scores.activation(model, [item], weights=lambda item: None)


def test_tokens_that_experts_get_all_count():
    model = Flat("experts")
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    item = {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}
    found = warned(
        lambda: nmt.scores.activation(model, [item]), "inputs of second, padding", "(3,)"
    )
    assert torch.equal(found["second"], all_of(model, item)["second"])
    assert not torch.equal(found["first"], all_of(model, item)["first"])
    # All of them, in some order, in another item.
    items = [item, item | {"input_ids": 2 * ids}]
    found = warned(lambda: nmt.scores.activation(model, items), "inputs of second, padding")
    wanted = nmt.scores.activation(model, items, weights=lambda item: None)
    assert torch.equal(found["second"], wanted["second"])


def test_other_layouts_all_count():
    model, item = Flat("time first"), padded(texts_of([5, 2]), "right", positions=False)
    found = warned(
        lambda: nmt.scores.activation(model, [item]), "inputs of first, second, padding", "(5, 2)"
    )
    close(found, all_of(model, item), 0)
    told = nmt.scores.activation(model, [item], weights=lambda item: item["attention_mask"].T)
    close(told, nmt.scores.activation(model, alone(texts_of([5, 2]))))


@pytest.mark.parametrize("way", ["time first", "rows"])
def test_as_many_tokens_as_texts_tell_no_layout(way):
    model, item = Flat(way), padded(texts_of([3, 1, 2]), "right", positions=False)
    found = warned(lambda: nmt.scores.activation(model, [item]), "inputs of first, second")
    close(found, all_of(model, item), 0)
    assert warned(lambda: errors(model, [item])) == errors(model, [item], weights=lambda item: None)
    symmetric = item | {"attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1], [0, 1, 1]])}
    found = nmt.scores.activation(model, [symmetric])
    assert not torch.equal(found["first"], all_of(model, symmetric)["first"])


def test_convolutions_all_count():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.conv = nn.Embedding(32, 8), nn.Conv1d(8, 8, 3)

        def forward(self, input_ids, attention_mask):
            return self.conv(self.embed(input_ids).transpose(1, 2))

    item = padded(texts_of([8, 2]), "right", positions=False)  # as many positions as channels
    found = warned(lambda: nmt.scores.activation(Mixed(), [item]), "inputs of conv", "(2, 8)")
    close(found, all_of(Mixed(), item), 0)


def test_masks_of_attention_are_none_of_padding():
    class Causal(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(8, 8)

        def forward(self, x, attention_mask):
            return self.layer(x)

    for batch in (2, 5):
        x = torch.randn(batch, 5, 8)
        for mask in (torch.ones(5, 5).tril(), torch.zeros(batch, 1, 5, 5)):
            item = {"x": x, "attention_mask": mask}
            close(nmt.scores.activation(Causal(), [item]), all_of(Causal(), item), 0)


def t5():
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=32,
        d_model=8,
        d_kv=4,
        d_ff=12,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config).double()


def pair(source, target):
    """Texts and what they are translated to, both padded."""
    first, second = (padded(texts, "right", positions=False) for texts in (source, target))
    return first | {f"decoder_{key}": value for key, value in second.items()}


def test_encoders_and_decoders_have_masks_of_their_own():
    model, source, target = t5(), texts_of([5, 2, 6]), texts_of([3, 4, 1], seed=1)
    one_by_one = [pair([s], [t]) for s, t in zip(source, target, strict=True)]
    close(
        nmt.scores.activation(model, [pair(source, target)]),
        nmt.scores.activation(model, one_by_one),
    )


def test_sequences_of_one_length_are_not_taken_for_each_other():
    model, item = t5(), pair(texts_of([5, 2]), texts_of([3, 5], seed=1))
    found = warned(lambda: nmt.scores.activation(model, [item]), "encoder.block.0", "(2, 5)")
    close(found, all_of(model, item), 0)
    labelled = {key: item[key] for key in ("input_ids", "attention_mask")}
    labelled["labels"] = item["decoder_input_ids"]
    found = warned(lambda: nmt.scores.activation(model, [labelled]), "encoder.block.0")
    close(found, all_of(model, labelled), 0)


def test_pooled_inputs_are_told_if_they_may_be_padding():
    """BERT's pooler gets the first position of each text."""
    torch.manual_seed(0)
    model, texts = transformers.BertModel(transformers.BertConfig(**SMALL)), texts_of([5, 2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = nmt.scores.activation(model, [padded(texts, "right")])
    close(found, nmt.scores.activation(model, alone(texts)), 1e-5)
    warned(
        lambda: nmt.scores.activation(model, [padded(texts, "left")]), "inputs of pooler.dense, pad"
    )


def test_masks_that_do_not_tell_are_refused():
    model, item = bert(), padded(texts_of([5, 2]), "right")
    for mask, shown in (
        (torch.where(item["attention_mask"] > 0, 0.0, -1e9), "-1000000000.0"),
        (2 * item["attention_mask"], "2"),
    ):
        refuses(
            lambda mask=mask: nmt.scores.activation(model, [item, item | {"attention_mask": mask}]),
            "attention_mask of calibration item 1",
            shown,
            "weights=",
        )
    double = item | {"attention_mask": 2 * item["attention_mask"]}
    close(
        nmt.scores.activation(model, [double], weights=lambda item: item["attention_mask"] > 0),
        nmt.scores.activation(model, [double | {"attention_mask": item["attention_mask"]}]),
    )
    refuses(
        lambda: nmt.scores.activation(model, [item], weights=lambda item: 0.5 * item["input_ids"]),
        "weights of calibration item 0",
    )
    refuses(
        lambda: nmt.scores.activation(model, [item], weights=lambda item: item["mask"]),
        "weights failed for calibration item 0: KeyError: 'mask'",
    )
    refuses(
        lambda: nmt.scores.activation(model, [item], weights=lambda item: [1, 0]),
        "gave a list for calibration item 0",
    )
    refuses(
        lambda: nmt.scores.activation(model, [item], weights=item["attention_mask"]),
        "function from a calibration item",
        "Tensor",
    )
    refuses(lambda: nmt.losses(model, ["2:4"], weights=lambda item: None), "pass calibration=")
    nothing = item | {"attention_mask": torch.zeros_like(item["attention_mask"])}
    refuses(
        lambda: nmt.scores.activation(model, [nothing]),
        "never reached by the calibration",
    )
