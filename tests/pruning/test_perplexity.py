"""Perplexity against a plain loop and against transformers' own loss, and what it refuses."""

import copy
import math

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import nmsolve
import nmsolve.torch as nmt
from nmsolve.torch import language
from reference import language as plain
from tests.checkpoint.snapshots import differing, snapshot
from tests.pruning.pruning_models import refuses

SMALL = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 24,
}


class Running(nn.Module):
    """Logits from the sum of what came before, with larger weights than at random."""

    def __init__(self, vocabulary=11):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(vocabulary, 6, dtype=torch.float64)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(6, vocabulary, dtype=torch.float64)

    def forward(self, ids):
        return 3 * self.head(self.drop(self.embed(ids).cumsum(1).tanh()))


def llama(**changes):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SMALL | {"initializer_range": 0.3} | changes)
    return transformers.LlamaForCausalLM(config)


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=32, n_positions=24, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3
    )
    return transformers.GPT2LMHeadModel(config)


def mixtral():
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        **SMALL, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2
    )
    return transformers.MixtralForCausalLM(config)


def text(length=50, vocabulary=32, seed=0):
    return torch.randint(
        vocabulary, (length,), generator=torch.Generator().manual_seed(seed), dtype=torch.int64
    )


@given(
    lengths=st.lists(st.integers(0, 23), min_size=1, max_size=3).filter(lambda x: max(x) > 1),
    window=st.integers(2, 9),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_it_is_that_of_the_plain_loop(lengths, window, share, seed):
    stride = 1 + round(share * (window - 1))
    model = Running()
    texts = [text(length, 11, seed + i) for i, length in enumerate(lengths)]

    def logits(ids):
        with torch.no_grad():
            return model.eval()(torch.tensor([ids]))[0].numpy()

    value, count = plain.perplexity(logits, [t.tolist() for t in texts], window, stride)
    found = nmt.perplexity(model, texts, window=window, stride=stride)
    assert found.tokens == count
    assert found.value == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("stride", [24, 10, 1])
def test_it_is_what_transformers_own_loss_gives(make, stride):
    """The loop of Hugging Face's page on perplexity, with the tokens of each loss counted."""
    model, tokens = make().eval(), text()
    total = count = known = 0
    for begin in range(0, len(tokens), stride):
        end = min(begin + 24, len(tokens))
        ids = tokens[begin:end].unsqueeze(0)
        labels = ids.clone()
        labels[:, : -(end - known)] = -100
        scored = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            total += scored * float(model(ids, labels=labels).loss)
        count += scored
        known = end
        if end == len(tokens):
            break
    found = nmt.perplexity(model, tokens, window=24, stride=stride)
    assert found.tokens == count
    assert found.value == pytest.approx(math.exp(total / count), rel=1e-5)


def test_a_vocabulary_is_taken_by_pieces(monkeypatch):
    model = llama()
    whole = nmt.perplexity(model, text(), window=20)
    for piece in (1, 100):
        monkeypatch.setattr(language, "_PIECE", piece)
        assert nmt.perplexity(model, text(), window=20).value == pytest.approx(
            whole.value, rel=1e-12
        )


def test_log_probabilities_of_low_precision_are_in_float32():
    model, tokens = llama().to(torch.bfloat16).eval(), text(20)
    with torch.no_grad():
        logits = model(tokens.unsqueeze(0)).logits[0, :-1]
    assert logits.dtype == torch.bfloat16
    wanted = nn.functional.cross_entropy(logits.double(), tokens[1:]).exp()
    found = nmt.perplexity(model, tokens, window=20)
    assert found.value == pytest.approx(float(wanted), rel=1e-6)
    assert "weights in bfloat16, log-softmax in float32, sum in float64" in found.protocol


def test_tokens_are_given_in_several_ways():
    model, rows = Running(), text(20, 11).reshape(2, 10)
    one = nmt.perplexity(model, rows[0], window=4)
    for same in (
        rows[:1],
        rows[0].tolist(),
        [rows[0]],
        rows[0].to(torch.uint16),
        rows[0].to(torch.int8),
        tuple(rows[0].tolist()),
    ):
        assert nmt.perplexity(model, same, window=4) == one
    both = nmt.perplexity(model, rows, window=4)
    assert both.tokens == 2 * one.tokens
    for same in (list(rows), rows.tolist(), iter(rows), [rows[:1], rows[1].tolist()]):
        assert nmt.perplexity(model, same, window=4) == both
    assert nmt.perplexity(model, [*rows, rows[0, :1], rows[0, :0]], window=4).value == both.value


def test_the_protocol_says_how_it_was_measured():
    found = nmt.perplexity(llama(), text(50), window=24)
    assert found.tokens == 47
    for words in (
        "window 24, stride 24",
        "windows do not overlap",
        "the first of a window is not scored",
        "a shorter last window is scored too",
        "47 of 50 tokens scored, in 1 text;",
        "weights in float32",
    ):
        assert words in found.protocol
    assert str(found) == f"perplexity {found.value:.2f} ({found.protocol})"
    sliding = nmt.perplexity(llama(), [text(50), text(5)], window=24, stride=8)
    assert sliding.tokens == 53
    for words in (
        "window 24, stride 8",
        "the window before does not have",
        "53 of 55 tokens scored, in 2 texts;",
    ):
        assert words in sliding.protocol
    with torch.autocast("cpu", torch.bfloat16):
        cast = nmt.perplexity(llama(), text(50), window=24)
    assert "weights in float32 under autocast to bfloat16" in cast.protocol
    assert cast.value != found.value


def test_it_leaves_no_trace_and_no_cache_is_kept():
    model, tokens, caches = llama(), text(20), []
    model.train()
    model.lm_head.weight.requires_grad_(False)
    model.register_forward_hook(lambda *given: caches.append(given[-1].past_key_values))
    before, random = snapshot(model), torch.get_rng_state()
    for ids in (tokens, torch.cat([tokens, torch.tensor([99])])):
        try:
            nmt.perplexity(model, ids, window=20)
        except nmsolve.InputError:
            assert len(ids) == 21
        assert not differing(snapshot(model), before)
        assert torch.equal(torch.get_rng_state(), random)
        assert model.training
        assert model.config.use_cache is True
    assert len(caches) == 3  # two that look for causality, one window
    assert set(caches) == {None}


def test_models_that_see_what_they_predict_are_refused():
    torch.manual_seed(0)
    bert = transformers.BertForMaskedLM(transformers.BertConfig(**SMALL)).eval()
    refuses(lambda: nmt.perplexity(bert, text(20), window=20), "BertForMaskedLM sees what it")
    refuses(lambda: nmt.perplexity(bert, text(2), window=20), "BertForMaskedLM sees what it")
    refuses(lambda: nmt.perplexity(bert, [7] * 20, window=20), "BertForMaskedLM sees what it")
    decoder = transformers.BertConfig(**SMALL, is_decoder=True)
    assert nmt.perplexity(transformers.BertLMHeadModel(decoder), text(20), window=20).tokens == 19
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    both_ways = nn.Sequential(nn.Embedding(32, 8), layer, nn.Linear(8, 32))
    refuses(lambda: nmt.perplexity(both_ways, text(20)), "Sequential sees what it has to predict")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_are_causal(dtype):
    """Later tokens change how the products of earlier ones are grouped."""
    assert nmt.perplexity(mixtral().to(dtype), text(20), window=20).tokens == 19


def test_tokens_that_are_never_next_make_no_difference():
    model = Running(vocabulary=12)
    closed = copy.deepcopy(model)
    with torch.no_grad():
        closed.head.weight[11], closed.head.bias[11] = 0, -math.inf
        model.head.weight[11], model.head.bias[11] = 0, -1e6
    tokens = text(20, 11)
    assert nmt.perplexity(closed, tokens).value == nmt.perplexity(model, tokens).value
    refuses(
        lambda: nmt.perplexity(closed, [1, 2, 11, 3]),
        "the token at position 2",
        "(id 11) a probability of 0",
    )


class Fixed(nn.Module):
    """Gives what it was made with."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, ids):
        return self.output


def test_what_cannot_be_measured_is_refused():
    model, tokens = llama(), text(30)
    refuses(lambda: nmt.perplexity(model, tokens), "window=2048", "24 positions", "pass window=24")
    refuses(lambda: nmt.perplexity(gpt2(), tokens), "window=2048", "24 positions")
    assert nmt.perplexity(model, tokens[:24]).tokens == 23  # fits, whatever the window
    for window in (1, 0, 2.0, True, "2048"):
        refuses(lambda window=window: nmt.perplexity(model, tokens, window=window), repr(window))
    for stride in (0, 21, 1.5):
        refuses(
            lambda stride=stride: nmt.perplexity(model, tokens, window=20, stride=stride),
            f"got {stride!r}",
            "1 to window=20",
        )
    refuses(lambda: nmt.perplexity(len, tokens), "nn.Module", "builtin_function_or_method")
    for too_short in ([], [1], [[1], [2]], tokens[:0], tokens[:, None]):
        refuses(lambda few=too_short: nmt.perplexity(model, few, window=20), "two tokens or more")
    for wrong, words in (
        (tokens.float(), ["torch.float32"]),
        (tokens > 3, ["torch.bool"]),
        (tokens.reshape(3, 2, 5), ["(3, 2, 5)"]),
        (torch.tensor(3), ["shape ()"]),
        ("text", ["tokenizer(text, return_tensors='pt')['input_ids']"]),
        (["some", "text"], ["tokenizer(text"]),
        ({"input_ids": tokens}, ["tokens['input_ids']"]),
        ([{"input_ids": tokens}], ["tokens['input_ids']"]),
        (tokens.numpy(), ["int64", "torch.tensor"]),
        (None, ["NoneType"]),
        ([1.5, 2.5], ["float"]),
    ):
        refuses(lambda wrong=wrong: nmt.perplexity(model, wrong, window=20), *words)
    refuses(
        lambda: nmt.perplexity(model, torch.cat([tokens, torch.tensor([40])]), window=20),
        "token 40 at position 30 is outside",
        "of 32 (0 to 31)",
    )
    refuses(
        lambda: nmt.perplexity(model, [tokens, torch.tensor([1, -100])], window=20),
        "token -100 at position 1 of text 1",
    )
    refuses(lambda: nmt.perplexity(Running(), [3, 4, 5, 11]), "IndexError")
    narrow = nn.Sequential(nn.Embedding(20, 4), nn.Linear(4, 11))
    refuses(lambda: nmt.perplexity(narrow, [3, 4, 5, 11]), "token 11 at position 3", "of 11")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: transformers.T5ForConditionalGeneration(
                transformers.T5Config(
                    vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2
                )
            ),
            ["encoder–decoder"],
        ),
        (
            lambda: transformers.LlamaModel(transformers.LlamaConfig(**SMALL)),
            ["BaseModelOutputWithPast", "AutoModelForCausalLM"],
        ),
        (
            lambda: transformers.LlamaForSequenceClassification(
                transformers.LlamaConfig(**SMALL, pad_token_id=0)
            ),
            ["(1, 2)", "one row for each token"],
        ),
        (lambda: Fixed(torch.zeros(1, 2, 32)), ["(1, 2, 32)", "(1, 16, vocabulary)"]),
        (lambda: Fixed(torch.zeros(1, 16, 32, dtype=torch.int64)), ["torch.int64"]),
        (lambda: Fixed((torch.zeros(1, 16, 32), None)), ["gave a tuple"]),
        (lambda: Fixed(torch.full((1, 16, 32), torch.nan)), ["position 1 hold nan", "bfloat16"]),
        (lambda: Fixed(torch.full((1, 16, 32), torch.inf)), ["position 1 hold inf"]),
        (lambda: nn.Linear(20, 4), ["Linear, called with ids of shape (1, 16)", "RuntimeError"]),
    ],
    ids=[
        "encoder-decoder",
        "no head",
        "classes",
        "short",
        "integers",
        "tuple",
        "nan",
        "inf",
        "no embedding",
    ],
)
def test_models_without_logits_of_the_next_token_are_refused(make, words):
    refuses(lambda: nmt.perplexity(make(), text(16)), *words)


def test_weights_without_values_are_refused():
    with torch.device("meta"):
        models = llama(), Running(), nn.Sequential(nn.Embedding(32, 4), nn.Linear(4, 32))
    for model in models:
        refuses(lambda model=model: nmt.perplexity(model, text(16, 11)), "meta device")


def test_a_hopeless_model_is_infinitely_perplexed():
    logits = torch.zeros(1, 16, 32)
    logits[..., 1] = 1e4
    assert nmt.perplexity(Fixed(logits), np.zeros(16, int).tolist()).value == math.inf
