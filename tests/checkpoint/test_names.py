"""The closed world of names: what is pruned without a model to ask, and what stays dense, with the
reason.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from torch import nn
from transformers import MobileBertConfig, MobileBertForMaskedLM

import nmsolve.torch as nmt
from nmsolve import InputError, checkpoint
from nmsolve.checkpoint.planning import TensorPlan, plan_tensors
from nmsolve.checkpoint.source import read_source
from nmsolve.selection import Selection

#: Pruned by the open world of names that this one replaces, or along another axis; none is a weight
#: (out, in) of a product.
NONE = {
    "blocks.0.attn.rel_pos_h": (16, 64),
    "attn.height_rel.weight": (16, 64),
    "rel_pos_emb.weight": (16, 64),
    "segment_emb.weight": (4, 64),
    "transformer.w.weight": (256, 64),
    "semantic.input_embeds_layers.3.weight": (256, 64),
    "quantizer.layers.0.codebook.embed": (256, 64),
    "quantizer.codebook.weight": (256, 64),
    "decoder.query.weight": (128, 64),
    "perceiver.latents": (64, 64),
    "decoder.mask_embed_table.weight": (8, 64),
    "decoder.reference_points.weight": (64, 64),
    "dct.weights": (8, 8),
    "stft.mel_basis": (80, 64),
    "mamba.D": (8, 64),
    "embed_vision.mm_input_projection_weight": (64, 64),
    "prompts_visual_projection": (64, 64),
    "text_projection": (64, 64),
    "visual.proj": (64, 64),
    "block_sparse_moe.input_linear.weight": (8, 64, 64),
    "experts.gate_up_proj": (8, 64, 64),
    "upsample.conv.weight": (64, 64, 4),
    "decoder.up.0.weight": (64, 64, 2, 2),
    "mystery.weight": (64, 64),
    "mlp.gate.weight": (8, 64),
    "0.weight": (64, 64),
    "rnn.weight_ih_l0": (64, 64),
}
#: What is another form of a weight.
FORMS = {
    "q_proj.weight_v": "weight norm",
    "q_proj.parametrizations.weight.original1": "parametrized",
    "q_proj.lora_A.weight": "adapter",
    "q_proj.lora_B.default.weight": "adapter",
    "q_proj.weight.compressed": "compressed",
    "q_proj.weight_packed": "packed",
    "q_proj.qzeros": "quantized",
    "q_proj.weight.absmax": "quantized",
}
PRODUCTS = {
    "model.layers.0.self_attn.q_proj.weight": (64, 32),
    "encoder.layer.0.attention.self.query.weight": (64, 32),
    "attn.in_proj_weight": (192, 64),
    "attn.out_proj.weight": (64, 64),
    "encoder.conv1.weight": (64, 32, 3),
    "layer1.0.conv2.weight": (64, 32, 3, 3),
    "visual.patch_embed.proj.weight": (64, 4, 2, 4, 4),
    "mystery.weight": (64, 32),
    "mystery.bias": (64,),
}


def planned(
    folder: Path, shapes: dict[str, tuple[int, ...]], include: object = None, pattern: str = "2:4"
) -> dict[str, TensorPlan]:
    rng = np.random.default_rng(0)
    save_file(
        {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()},
        folder / "model.safetensors",
    )
    return {
        plan.tensor.name: plan
        for plan in plan_tensors(
            read_source(folder).files, Selection.of(pattern, include, (), "skip")
        )
    }


@pytest.mark.parametrize("pattern", ["2:4", "2:4T"])
def test_what_is_not_known_stays_dense(pattern: str, tmp_path: Path) -> None:
    found = planned(tmp_path, NONE, pattern=pattern)
    assert {name for name, plan in found.items() if plan.pattern is not None} == set()
    assert all(plan.reason for plan in found.values())
    assert "by its full name" in str(found["mystery.weight"].reason)


def test_other_forms_of_weights_stay_dense_even_if_they_are_named(tmp_path: Path) -> None:
    found = planned(tmp_path, dict.fromkeys(FORMS, (64, 64)), list(FORMS))
    for name, why in FORMS.items():
        assert found[name].pattern is None
        assert why in str(found[name].reason)


def test_a_weight_with_its_quantized_form_beside_it(tmp_path: Path) -> None:
    found = planned(
        tmp_path,
        {
            "fc1.weight": (64, 64),
            "fc1.weight.absmax": (64,),
            "fc2.weight": (64, 64),
            "fc2.gain": (64, 1),
        },
    )
    assert "quantized" in str(found["fc1.weight"].reason)
    assert "standardised" in str(found["fc2.weight"].reason)


def test_what_is_known(tmp_path: Path) -> None:
    found = planned(tmp_path, PRODUCTS)
    assert {name: plan.axis for name, plan in found.items() if plan.pattern is not None} == {
        name: 1 for name in PRODUCTS if name != "mystery.bias"
    }


def test_biases_decide(tmp_path: Path) -> None:
    shapes: dict[str, tuple[int, ...]] = {
        "fc1.weight": (32, 64),
        "fc1.bias": (64,),
        "conv1d.weight": (32, 64, 3),
        "conv1d.bias": (64,),
    }
    found = planned(tmp_path, shapes)
    assert "not (out, in)" in str(found["fc1.weight"].reason)
    assert "transposed convolution" in str(found["conv1d.weight"].reason)
    assert (
        planned(tmp_path, shapes, ["fc1.weight"])["fc1.weight"].axis == 0
    )  # (in, out), as its bias says
    assert (
        planned(tmp_path, {"h.0.c_attn.weight": (32, 96), "h.0.c_attn.bias": (96,)})[
            "h.0.c_attn.weight"
        ].axis
        == 0
    )
    assert (
        planned(tmp_path, {"h.0.c_attn.weight": (96, 32), "h.0.c_attn.bias": (96,)})[
            "h.0.c_attn.weight"
        ].axis
        == 1
    )
    assert "Conv1D" in str(
        planned(tmp_path, {"h.0.c_attn.weight": (96, 32)})["h.0.c_attn.weight"].reason
    )


def test_a_full_name_includes(tmp_path: Path) -> None:
    shapes = {
        "mystery.weight": (64, 32),
        "up.weight": (64, 32, 2, 2),
        "experts.w": (8, 64, 32),
        "experts.weight": (8, 64, 32),
    }
    named = planned(tmp_path, shapes, list(shapes))
    assert {name: plan.axis for name, plan in named.items()} == {
        "mystery.weight": 1, "up.weight": 1, "experts.w": None, "experts.weight": None,
    }  # fmt: skip
    assert (
        planned(tmp_path, shapes, list(shapes), "2:4T")["experts.w"].axis == 2
    )  # one mask for both orientations
    assert planned(tmp_path, shapes, ["myst*"])["mystery.weight"].pattern is None
    beside = planned(tmp_path, {**shapes, "fc1.weight": (8, 8)}, ["*", "mystery.weight"])
    assert beside["mystery.weight"].pattern is not None
    assert beside["fc1.weight"].pattern is not None
    square = {
        "0.weight": np.eye(8, dtype=np.float32),
        "fc1.weight": 2 * np.eye(8, dtype=np.float32),
    }
    save_file(square, tmp_path / "model.safetensors")
    given = plan_tensors(
        read_source(tmp_path).files, Selection.of({"0.weight": "2:4"}, None, (), "skip")
    )
    assert given[0].pattern is not None
    assert "0 is not known" in str(
        plan_tensors(read_source(tmp_path).files, Selection.of("2:4", None, (), "skip"))[0].reason
    )
    assert "though they may be weights" in str(
        checkpoint.verify(tmp_path / "model.safetensors", "2:4")
    )


def test_a_full_name_is_no_licence_to_guess(tmp_path: Path) -> None:
    """Of a layer that is Conv1D in some models neither axis is known; a bias counts whatever the
    weight is called.
    """
    found = planned(tmp_path, {"h.0.c_attn.weight": (32, 96)}, ["h.0.c_attn.weight"])
    assert "Conv1D" in str(found["h.0.c_attn.weight"].reason)
    found = planned(tmp_path, {"h.0.c_attn.weight": (32, 96)}, ["h.0.c_attn.weight"], "2:4T")
    assert found["h.0.c_attn.weight"].pattern is not None
    assert (
        planned(tmp_path, {"fc.kernel": (32, 64), "fc.bias": (64,)}, ["fc.kernel"])[
            "fc.kernel"
        ].axis
        == 0
    )
    assert (
        planned(tmp_path, {"fc.kernel": (32, 64), "fc.bias": (32,)}, ["fc.kernel"])[
            "fc.kernel"
        ].axis
        == 1
    )


def test_part_of_a_weight_that_multiplies_transposed(tmp_path: Path) -> None:
    """MobileBERT's head: hidden @ cat([decoder.weight.T, dense.weight]), whose products reduce over
    the rows of dense.weight.
    """
    config = MobileBertConfig(
        vocab_size=96, hidden_size=64, embedding_size=32, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=64,
        intra_bottleneck_size=32, true_hidden_size=32,
    )  # fmt: skip
    model = MobileBertForMaskedLM(config)
    plan = {layer.path: layer for layer in nmt.plan(model, "2:4").layers}
    assert "transposed" in str(plan["cls.predictions.dense"].reason)
    assert plan["cls.predictions.transform.dense"].pattern is not None
    model.save_pretrained(tmp_path / "src")
    for settings in (True, False):
        if not settings:
            (tmp_path / "src" / "config.json").unlink()
        found = {
            p.tensor.name: p
            for p in plan_tensors(
                read_source(tmp_path / "src").files, Selection.of("2:4", None, (), "skip")
            )
        }
        assert found["cls.predictions.dense.weight"].pattern is None
        assert found["cls.predictions.transform.dense.weight"].pattern is not None


def test_a_model_that_is_trained_under_masks(tmp_path: Path) -> None:
    """Its weights are dense and have masks of their own: a second mask would be another one's."""
    model = nn.Sequential(OrderedDict(fc1=nn.Linear(32, 32), fc2=nn.Linear(32, 16)))
    nmt.sparsify_(model, {"fc1": "2:4"}, nmt.Fixed())
    found = planned(
        tmp_path, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    )
    assert "finalize_" in str(found["fc1.weight"].reason)
    assert found["fc2.weight"].pattern is not None


def head(folder: Path, same: bool, **settings: object) -> TensorPlan:
    """The plan of a head that is stored beside its embedding."""
    rng = np.random.default_rng(1)
    table, other = rng.standard_normal((2, 64, 32), dtype=np.float32)
    tensors = {
        "model.embed_tokens.weight": table,
        "lm_head.weight": table.copy() if same else other,
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(settings))
    found = plan_tensors(read_source(folder).files, Selection.of("2:4", None, (), "skip"))
    return next(plan for plan in found if plan.tensor.name == "lm_head.weight")


def test_a_tied_head_that_is_stored_twice(tmp_path: Path) -> None:
    assert head(tmp_path, False).pattern is not None
    assert head(tmp_path, False, tie_word_embeddings=False).pattern is not None
    for tied in (
        head(tmp_path, True),
        head(tmp_path, False, tie_word_embeddings=True),
        head(tmp_path, False, text_config={"tie_word_embeddings": True}),
    ):
        assert tied.pattern is None
        assert "the same tensor as model.embed_tokens.weight" in str(tied.reason)


def test_a_head_without_an_embedding_may_be_one(tmp_path: Path) -> None:
    assert "which it may stand for" in str(
        planned(tmp_path, {"lm_head.weight": (64, 32)})["lm_head.weight"].reason
    )
    assert (
        planned(tmp_path, {"lm_head.weight": (64, 32)}, ["lm_head.weight"])["lm_head.weight"].axis
        == 1
    )


def test_an_adapter_says_that_it_is_one(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    matrices = {
        "base_model.model.q_proj.lora_A.weight": np.ones((8, 64), np.float32),
        "score.weight": np.ones((8, 64), np.float32),
    }
    save_file(matrices, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(
        InputError, match=r"of an adapter \(adapter_config.json\).*merge_and_unload"
    ):
        checkpoint.prune(folder, tmp_path / "sparse", "2:4")
    with pytest.raises(InputError, match="merge_and_unload"):
        checkpoint.prune(folder, tmp_path / "sparse", "2:4", include=["score.weight"])


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        pytest.param(
            {"model_type": "no-such-model", "architectures": ["NoSuchModel"]},
            "could not be built",
            marks=pytest.mark.long,
        ),
        (
            {
                "model_type": "llama",
                "architectures": ["MyLlama"],
                "auto_map": {"AutoModel": "m.MyLlama"},
            },
            "custom code is not run",
        ),
        ({"_class_name": "UNet2DConditionModel"}, "it names no architecture"),
    ],
)
def test_models_that_cannot_be_asked(settings: dict[str, object], why: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(settings))
    found = planned(tmp_path, {"fc1.weight": (64, 32)})
    assert found["fc1.weight"].pattern is not None
    assert "read off their names" in str(found["fc1.weight"].note)
    assert why in str(found["fc1.weight"].note)
