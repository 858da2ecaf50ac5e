"""What names and shapes tell of weights, and what config.json's model tells, agree with what the
modules of real models say.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as tf

import nmsolve.torch as nmt
from nmsolve import checkpoint

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vocab_size": 40,
}
GPT2 = {
    "n_embd": 32,
    "n_layer": 1,
    "n_head": 4,
    "vocab_size": 40,
    "n_positions": 16,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
SHORT = {"max_position_embeddings": 16}
WHISPER = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 60, "num_mel_bins": 8,
    "max_source_positions": 16,
    "max_target_positions": 16, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
    "decoder_start_token_id": 0,
    "begin_suppress_tokens": None, "suppress_tokens": None,
}  # fmt: skip
MODELS = {
    "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES, num_key_value_heads=2)),
    "GPT-2, of Conv1D": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**GPT2)),
    "GPTBigCode, of nn.Linear by the same names": lambda: tf.GPTBigCodeForCausalLM(
        tf.GPTBigCodeConfig(**GPT2)
    ),
    "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**SIZES, **SHORT)),
    "T5": lambda: tf.T5ForConditionalGeneration(
        tf.T5Config(
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=1,
            num_heads=4,
            vocab_size=40,
            decoder_start_token_id=0,
        )
    ),
    "ResNet": lambda: tf.ResNetForImageClassification(
        tf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ),
    "Whisper": lambda: tf.WhisperForConditionalGeneration(tf.WhisperConfig(**WHISPER)),
    "Mamba": lambda: tf.MambaForCausalLM(
        tf.MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=40, state_size=8)
    ),
    "wav2vec 2.0": lambda: tf.Wav2Vec2ForCTC(
        tf.Wav2Vec2Config(
            **SIZES,
            conv_dim=(16, 16),
            conv_stride=(2, 2),
            conv_kernel=(3, 3),
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=4,
        )
    ),
}


def check(
    model: torch.nn.Module, report: checkpoint.PruneReport, folder: Path, pattern: str
) -> None:
    """The same weights, along the same axes: the pruned folder loads, and holds the plan that is
    made from its modules.
    """
    pruned = type(model).from_pretrained(folder)
    plan = nmt.plan(pruned, pattern)
    by_modules = {
        layer.name if layer.parameter != "weight" else f"{layer.name}.weight": layer
        for layer in plan.planned
    }
    assert {t.name for t in report.pruned} == set(by_modules)
    assert nmt.verify(pruned, plan).ok
    for t in report.pruned:
        assert t.axis == by_modules[t.name].axis, t.name
        dense = model.get_parameter(t.name)
        assert t.total == pytest.approx(dense.double().abs().sum().item())
        assert t.objective == pytest.approx(
            pruned.get_parameter(t.name).double().abs().sum().item()
        )


@pytest.mark.parametrize("pattern", ["2:4", "2:4T"])
@pytest.mark.parametrize("name", MODELS)
def test_names_alone_prune_what_modules_would(name: str, pattern: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    model.save_pretrained(tmp_path / "dense")
    config = (tmp_path / "dense/config.json").rename(tmp_path / "config.json")
    report = checkpoint.prune(tmp_path / "dense", tmp_path / "sparse", pattern)
    assert not any("modules" in note for note in report.notes)
    config.rename(tmp_path / "sparse/config.json")
    check(model, report, tmp_path / "sparse", pattern)


def test_a_model_that_config_json_names_is_asked(tmp_path: Path) -> None:
    """BiT standardises its convolutions' weights, which no name tells: zeros would not stay zeros
    in what multiplies.
    """
    torch.manual_seed(0)
    model = tf.BitForImageClassification(
        tf.BitConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], num_groups=4)
    )
    model.save_pretrained(tmp_path / "dense")
    report = checkpoint.prune(
        tmp_path / "dense", tmp_path / "sparse", "2:4", padding="dense", include=["*"]
    )
    check_notes = [
        note for note in report.notes if "BitForImageClassification of transformers" in note
    ]
    assert len(check_notes) == 1
    assert [t.name for t in report.pruned] == ["classifier.1.weight"]
    reasons = {t.name: t.reason for t in report.tensors}
    assert (
        "does not multiply by its weight as it is"
        in reasons["bit.encoder.stages.0.layers.0.conv2.weight"]
    )


def test_experts_in_tensors_of_their_own(tmp_path: Path) -> None:
    """Mixtral's checkpoint has a matrix an expert, its modules one tensor of three axes; the
    embedding and the head are tied.
    """
    torch.manual_seed(0)
    config = tf.MixtralConfig(
        **SIZES,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        tie_word_embeddings=True,
    )
    model = tf.MixtralForCausalLM(config)
    model.save_pretrained(tmp_path / "dense")
    report = checkpoint.prune(tmp_path / "dense", tmp_path / "sparse", "2:4")
    assert any("MixtralForCausalLM of transformers" in note for note in report.notes)
    assert sum("experts" in t.name for t in report.pruned) == 12
    assert not any("gate.weight" in t.name or "embed" in t.name for t in report.pruned)
    pruned = tf.MixtralForCausalLM.from_pretrained(tmp_path / "sparse")
    for name in ("gate_up_proj", "down_proj"):
        fused = pruned.get_parameter(f"model.layers.0.mlp.experts.{name}")
        assert nmt.verify(fused.detach(), "2:4").ok
        assert not nmt.verify(
            model.get_parameter(f"model.layers.0.mlp.experts.{name}").detach(), "2:4"
        ).ok
