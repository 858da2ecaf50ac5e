"""Folders with models in folders of their own, or with several files of one: all is pruned, or
named, or refused.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import nmsolve
from nmsolve import checkpoint
from tests.checkpoint import hostile
from tests.checkpoint.checkpoint_files import best_mask, contents, weights
from tests.checkpoint.hostile import PATTERN, Box
from tests.checkpoint.hostile_files import edit_json

ended = hostile.ended


def write_pipeline(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """As diffusers saves one, with a module of sentence-transformers in it: tensors by file."""
    files = {
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors": {
            "conv_in.weight": weights(8, 4, 3, 3, seed=1)
        },
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors": {
            "mid_block.to_q.weight": weights(16, 16, seed=2)
        },
        "text_encoder/model.safetensors": {
            "shared.weight": weights(16, 16, seed=3),
            "encoder.wi.weight": weights(32, 16, seed=4),
        },
        "2_Dense/model.safetensors": {
            "linear.weight": weights(8, 16, seed=5),
            "linear.bias": weights(8),
        },
    }
    for name, tensors in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / name)
    index = {
        tensor: os.path.basename(name)
        for name, tensors in files.items()
        if "unet" in name
        for tensor in tensors
    }
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"weight_map": index})
    )
    (folder / "model_index.json").write_text('{"unet": ["diffusers", "UNet"]}')
    for name in ("unet", "text_encoder", "2_Dense", "scheduler"):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "config.json").write_text("{}")
    return files


def about_files(report: checkpoint.PruneReport) -> tuple[str, ...]:
    """Notes but those on which models were asked."""
    return tuple(note for note in report.notes if "which tensors are weights" not in note)


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    write_pipeline(tmp_path / "dense")
    return tmp_path / "dense"


PRUNED = {
    "unet/conv_in.weight",
    "unet/mid_block.to_q.weight",
    "text_encoder/encoder.wi.weight",
    "2_Dense/linear.weight",
}


def test_a_pipeline_is_pruned_folder_by_folder(pipeline: Path, tmp_path: Path) -> None:
    files = write_pipeline(tmp_path / "again")
    report = checkpoint.prune(pipeline, tmp_path / "out", "2:4T")
    assert {t.name for t in report.pruned} == PRUNED
    assert {t.name: t.reason for t in report.dense}["text_encoder/shared.weight"] is not None
    assert report.left_behind == about_files(report) == ()
    masks = checkpoint.open_masks(tmp_path / "out")
    assert set(masks) == PRUNED
    for name, tensors in files.items():
        made, folder = load_file(tmp_path / "out" / name), name.partition("/")[0]
        assert set(made) == set(tensors)
        for tensor, values in tensors.items():
            full, mask = f"{folder}/{tensor}", np.ones(values.shape, bool)
            if full in PRUNED:
                rows = np.moveaxis(values, (0, 1), (-2, -1))
                mask = np.moveaxis(best_mask(rows, "2:4T"), (-2, -1), (0, 1))
                assert (masks[full] == mask).all()
            assert (made[tensor] == np.where(mask, values, 0)).all(), full
    old, new = contents(pipeline), contents(tmp_path / "out")
    assert set(new) == set(old) | {f"masks/{name}" for name in files} | {"report.json"}
    assert all(new[name] == old[name] for name in old if name.endswith(".json"))


def test_every_command_takes_it(pipeline: Path, box: Box) -> None:
    assert box.run("prune", pipeline, box / "out", *PATTERN)[0] == 0
    found = checkpoint.verify(box / "out")
    assert found.ok
    assert {check.name for check in found.checked} == PRUNED
    assert checkpoint.verify(box / "out", "2:4T", exclude="*/shared").ok
    report = checkpoint.report(box / "out", box / "page.html", against=pipeline)
    assert {t.name for t in report.pruned} == PRUNED
    assert all(t.status == "optimal" for t in report.pruned)
    assert box.run("solve", pipeline, *PATTERN, "--out", box / "masks")[0] == 0
    assert checkpoint.verify(box / "masks").ok  # masks alone
    assert {
        name: tuple(mask.shape) for name, mask in checkpoint.open_masks(box / "masks").items()
    }.keys() == PRUNED
    code, _, _ = box.run(
        "prune", pipeline, box / "part", *PATTERN, "--exclude", "unet", "--exclude", "*/linear"
    )
    assert code == 0
    assert {t.name for t in checkpoint.report(box / "part", box / "part.html").pruned} == {
        "text_encoder/encoder.wi.weight"
    }
    assert "'*/linear'" in box.refused(
        "prune", pipeline, box / "more", *PATTERN, "--exclude", "linear"
    )


def test_its_violations_are_found(pipeline: Path, tmp_path: Path) -> None:
    checkpoint.prune(pipeline, tmp_path / "out", "2:4T")
    place = tmp_path / "out" / "2_Dense" / "model.safetensors"
    save_file(load_file(pipeline / "2_Dense" / "model.safetensors"), place)
    assert [check.name for check in checkpoint.verify(tmp_path / "out") if not check.ok] == [
        "2_Dense/linear.weight"
    ]


def test_it_is_resumed(pipeline: Path, tmp_path: Path) -> None:
    checkpoint.prune(pipeline, tmp_path / "whole", "2:4T")

    def stop(event: checkpoint.Progress) -> None:
        if event.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.prune(pipeline, tmp_path / "out", "2:4T", progress=stop)
    seen: list[checkpoint.Progress] = []
    checkpoint.prune(pipeline, tmp_path / "out", "2:4T", resume=True, progress=seen.append)
    assert {event.before for event in seen} == {2}
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_rules_are_those_of_each_folder_s_model(tmp_path: Path) -> None:
    """GPT-2's layers are Conv1D, those of another model of the same names are not; a folder's name
    is no parameter's.
    """
    for name, order in (("gpt", 1), ("position_scale", -1)):
        (tmp_path / "dense" / name).mkdir(parents=True)
        tensors = {
            f"h.{i}.mlp.c_fc.weight": np.ascontiguousarray(weights(16, 64, seed=i)[::1][:, ::1])
            for i in range(2)
        }
        tensors = {
            key: np.ascontiguousarray(value if order > 0 else value.T)
            for key, value in tensors.items()
        }
        biases = {f"h.{i}.mlp.c_fc.bias": weights(64) for i in range(2)}
        save_file(
            tensors | biases | {"wte.weight": weights(16, 16)},
            tmp_path / "dense" / name / "model.safetensors",
        )
    report = checkpoint.prune(tmp_path / "dense", tmp_path / "out", "2:4")
    axes = {t.name: t.axis for t in report.pruned}
    assert axes == {
        **{f"gpt/h.{i}.mlp.c_fc.weight": 0 for i in range(2)},
        **{f"position_scale/h.{i}.mlp.c_fc.weight": 1 for i in range(2)},
    }


@pytest.mark.parametrize(
    "name",
    [
        "2_Dense/pytorch_model.bin",
        "unet/diffusion_pytorch_model.bin",
        "a/b/pytorch_model-00001-of-00002.bin",
        "x/adapter_model.bin",
    ],
)
def test_a_folder_whose_only_weights_are_pickled_is_refused(
    name: str, pipeline: Path, box: Box
) -> None:
    """It would be missing in what is written, and what is there would look whole."""
    (pipeline / name).parent.mkdir(parents=True, exist_ok=True)
    for file in (pipeline / name).parent.glob("*.safetensors*"):
        file.unlink()
    (pipeline / name).write_bytes(b"x")
    line = box.prune_refused(pipeline)
    assert str((pipeline / name).parent) in line
    assert "pickle" in line
    converted = Path(name).stem if "diffusion" in name else Path(name).stem.removeprefix("pytorch_")
    assert f"{converted}.safetensors" in line


def test_pickled_weights_beside_folders_are_refused(pipeline: Path, box: Box) -> None:
    (pipeline / "pytorch_model.bin").write_bytes(b"x")
    assert "pytorch_model.bin" in box.prune_refused(pipeline)


def test_exports_and_states_of_trainers_are_left_behind_and_named(
    pipeline: Path, tmp_path: Path
) -> None:
    left = [
        *(
            "optimizer.pt",
            "training_args.bin",
            "rng_state_0.pth",
            "2_Dense/pytorch_model.bin",
            "onnx/model.onnx",
        ),
        *(
            "onnx/model.onnx_data",
            "openvino/openvino_model.bin",
            "coreml/m.mlpackage/weights/weight.bin",
            "unet/model.gguf",
        ),
        "original/consolidated.00.pth",  # as Llama has it
    ]
    for name in (*left, "openvino/openvino_model.xml"):
        (pipeline / name).parent.mkdir(parents=True, exist_ok=True)
        (pipeline / name).write_bytes(b"x")
    report = checkpoint.prune(pipeline, tmp_path / "out", "2:4T")
    assert set(report.left_behind) == set(left)
    assert not any((tmp_path / "out" / name).exists() for name in left)
    assert all(name in str(report) for name in left)
    assert {note.split("/ has no weights")[0] for note in about_files(report)} == {
        *("onnx", "openvino", "coreml/m.mlpackage/weights", "original")
    }


def test_a_large_file_that_goes_along_is_pointed_out(pipeline: Path, tmp_path: Path) -> None:
    with (pipeline / "weights.npz").open("wb") as file:
        file.truncate(2**25)
    with (pipeline / "tokenizer.json").open("wb") as file:
        file.truncate(2**25)
    report = checkpoint.prune(pipeline, tmp_path / "out", "2:4T")
    assert about_files(report) == (
        "weights.npz (33,554,432 bytes) was copied as it is: if it holds weights, they are dense",
    )
    assert report.notes[0] in str(report)
    assert (
        "was copied as it is"
        in (
            checkpoint.report(tmp_path / "out", tmp_path / "p.html"),
            (tmp_path / "p.html").read_text(),
        )[1]
    )


def test_pruned_checkpoints_in_folders(tmp_path: Path) -> None:
    """Their masks are no weights; those of the run are its own."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_file({"fc.weight": weights(8, 8)}, tmp_path / name / "model.safetensors")
        checkpoint.prune(tmp_path / name, tmp_path / "all" / name, "2:4")
    report = checkpoint.prune(tmp_path / "all", tmp_path / "out", "1:4")
    assert {t.name for t in report} == {"a/fc.weight", "b/fc.weight"}
    assert report.left_behind == ("a/masks/model.safetensors", "b/masks/model.safetensors")
    assert checkpoint.verify(tmp_path / "out").ok


def test_weights_where_masks_are_written_are_refused(pipeline: Path, box: Box) -> None:
    shutil.copytree(pipeline / "text_encoder", pipeline / "masks")
    assert "masks/ is where masks are written" in box.prune_refused(pipeline)
    shutil.rmtree(pipeline / "masks")
    for name in ("report.json", "masks/notes.txt"):
        (pipeline / name).parent.mkdir(exist_ok=True)
        (pipeline / name).write_text("{}")
    report = checkpoint.prune(pipeline, box / "out", "2:4T", threads=1)
    assert [note.split()[0] for note in about_files(report)] == ["report.json", "masks/notes.txt"]


# Which file a loader takes.


def two_in_one(folder: Path, stem: str, variant: str = "") -> Path:
    """STEM.safetensors, with values of its own, beside STEM's index and shard, or beside a variant
    of it.
    """
    folder.mkdir()
    save_file({"fc.weight": weights(8, 8, seed=1)}, folder / f"{stem}.safetensors")
    other = f"{stem}.{variant}.safetensors" if variant else f"{stem}-00001-of-00001.safetensors"
    save_file({"fc.weight": weights(8, 8, seed=2)}, folder / other)
    if not variant:
        (folder / f"{stem}.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"fc.weight": other}})
        )
    return folder


@pytest.mark.parametrize("inside", ["", "part"])
@pytest.mark.parametrize(
    ("stem", "variant", "seed", "left"),
    [
        ("model", "", 1, {"model.safetensors.index.json", "model-00001-of-00001.safetensors"}),
        ("diffusion_pytorch_model", "", 2, {"diffusion_pytorch_model.safetensors"}),
        ("model", "fp16", 1, {"model.fp16.safetensors"}),
        ("diffusion_pytorch_model", "fp16", 1, {"diffusion_pytorch_model.fp16.safetensors"}),
    ],
)
def test_what_its_loader_would_take_is_pruned(
    inside: str, stem: str, variant: str, seed: int, left: set[str], tmp_path: Path
) -> None:
    (tmp_path / "dense").mkdir()
    src = two_in_one(tmp_path / "dense" / inside if inside else tmp_path / "src", stem, variant)
    report = checkpoint.prune(tmp_path / "dense" if inside else src, tmp_path / "out", "2:4")
    (t,) = report.pruned
    assert t.objective == nmsolve.solve(weights(8, 8, seed=seed), "2:4").objective
    assert {os.path.basename(name) for name in report.left_behind} == left
    (note,) = about_files(report)
    assert all(name in note for name in left)
    made = {path.name for path in (tmp_path / "out" / inside).iterdir()}
    assert not made & left
    assert made & {path.name for path in src.iterdir()}


def test_transformers_takes_the_same(tmp_path: Path) -> None:
    """Asked itself: its own loader, of the source and of what was written."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 20,
    }
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(tmp_path / "dense")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors = load_file(tmp_path / "dense" / "model.safetensors")
    other = {key: np.zeros_like(value) for key, value in tensors.items()}
    save_file(other, tmp_path / "dense" / "model-00001-of-00001.safetensors", {"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(other, "model-00001-of-00001.safetensors")}
    (tmp_path / "dense" / "model.safetensors.index.json").write_text(json.dumps(index))
    checkpoint.prune(tmp_path / "dense", tmp_path / "out", "2:4")
    dense, sparse = (
        LlamaForCausalLM.from_pretrained(tmp_path / folder).get_parameter(name).detach().numpy()
        for folder in ("dense", "out")
    )
    assert (dense == tensors[name]).all()
    assert (sparse == np.where(checkpoint.open_masks(tmp_path / "out")[name], dense, 0)).all()
    assert sparse.any()


def test_an_index_that_names_the_file_itself(tmp_path: Path) -> None:
    two_in_one(tmp_path / "dense", "model")
    edit_json(
        tmp_path / "dense" / "model.safetensors.index.json",
        lambda whole: {"weight_map": {"fc.weight": "model.safetensors"}},
    )
    (tmp_path / "dense" / "model-00001-of-00001.safetensors").unlink()
    report = checkpoint.prune(tmp_path / "dense", tmp_path / "out", "2:4")
    assert report.left_behind == about_files(report) == ()
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()


def test_what_a_config_names(tmp_path: Path, box: Box) -> None:
    src = two_in_one(tmp_path / "dense", "model")
    (src / "config.json").write_text('{"transformers_weights": "model.safetensors.index.json"}')
    report = checkpoint.prune(src, tmp_path / "pruned", "2:4", threads=1)
    assert report.left_behind == ("model.safetensors",)
    assert report.pruned[0].objective == nmsolve.solve(weights(8, 8, seed=2), "2:4").objective
    (src / "config.json").write_text('{"transformers_weights": "other.safetensors"}')
    assert "other.safetensors is missing" in box.prune_refused(src)


def test_variants_of_an_index(tmp_path: Path) -> None:
    src = two_in_one(tmp_path / "dense", "model")
    (src / "model.safetensors").unlink()
    save_file({"fc.weight": weights(8, 8, seed=3)}, src / "model.fp16-00001-of-00001.safetensors")
    variant = {"weight_map": {"fc.weight": "model.fp16-00001-of-00001.safetensors"}}
    for name in ("model.safetensors.index.fp16.json", "model.fp16.safetensors.index.json"):
        (src / name).write_text(json.dumps(variant))
        report = checkpoint.prune(src, tmp_path / f"out{name}", "2:4")
        assert report.pruned[0].objective == nmsolve.solve(weights(8, 8, seed=2), "2:4").objective
        assert set(report.left_behind) == {name, "model.fp16-00001-of-00001.safetensors"}
        assert not any("fp16" in path.name for path in (tmp_path / f"out{name}").iterdir())
        (src / name).unlink()
    (src / name).write_text(json.dumps(variant))  # a variant by itself is all there is
    (src / "model.safetensors.index.json").unlink()
    (src / "model-00001-of-00001.safetensors").unlink()
    report = checkpoint.prune(src, tmp_path / "only", "2:4")
    assert report.pruned[0].objective == nmsolve.solve(weights(8, 8, seed=3), "2:4").objective


def test_which_of_two_is_not_known_is_refused(box: Box) -> None:
    src = two_in_one(box / "dense", "weights")
    line = box.prune_refused(src)
    assert "weights.safetensors" in line
    assert "move the other away" in line


def test_shards_without_an_index_are_counted(box: Box) -> None:
    (box / "dense").mkdir()
    for number in (1, 3):
        save_file(
            {f"fc{number}.weight": weights(8, 8)},
            box / "dense" / f"model-0000{number}-of-00003.safetensors",
        )
    assert "2 of 3 shards" in box.prune_refused(box / "dense")
    save_file({"fc2.weight": weights(8, 8)}, box / "dense" / "model-00002-of-00003.safetensors")
    assert box.run("prune", box / "dense", box / "out", *PATTERN)[0] == 0


def test_links_to_folders_are_named(box: Box) -> None:
    write_pipeline(box / "dense")
    (box / "dense" / "vae").symlink_to(box / "dense" / "unet")
    report = checkpoint.prune(box / "dense", box / "out", "2:4T", threads=1)
    assert about_files(report) == ("vae/ is a link to a folder, and was not followed",)
