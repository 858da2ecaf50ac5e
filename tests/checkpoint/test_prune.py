"""`nmsolve.checkpoint.prune`: what is written is W ∘ M with the optimal M, and everything else is
as it was.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch

import nmsolve
from nmsolve import checkpoint
from tests.checkpoint.checkpoint_files import BF16, best_mask, contents, weights, write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path / "dense")
    return tmp_path / "dense"


def stored(path: Path) -> dict[str, np.ndarray]:
    return {
        name: tensor
        for file in sorted(path.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_a_folder_is_pruned_shard_by_shard(folder: Path, tmp_path: Path) -> None:
    before, dense = contents(folder), stored(folder)
    report = checkpoint.prune(folder, tmp_path / "sparse", "2:4T", exclude="lm_head")
    assert contents(folder) == before
    sparse = stored(tmp_path / "sparse")
    assert list(sparse) == list(dense)
    pruned = {t.name for t in report.pruned}
    assert pruned == {name for name in dense if "proj" in name}
    for name, tensor in dense.items():
        mask = best_mask(tensor, "2:4T") if name in pruned else np.ones(tensor.shape, bool)
        assert same_bits(sparse[name], np.where(mask, tensor, np.zeros((), tensor.dtype))), name
    reasons = {t.name: t.reason for t in report.dense if len(t.shape) > 1}
    assert set(reasons) == {"model.embed_tokens.weight", "lm_head.weight"}
    assert str(reasons["model.embed_tokens.weight"]).startswith("by its name")
    assert reasons["lm_head.weight"] == "excluded"


def test_headers_index_and_companions_stay_byte_for_byte(folder: Path, tmp_path: Path) -> None:
    checkpoint.prune(folder, tmp_path / "sparse", "2:4T")
    new = {
        "masks/model-00001-of-00002.safetensors",
        "masks/model-00002-of-00002.safetensors",
        "report.json",
    }
    old, made = contents(folder), contents(tmp_path / "sparse")
    assert set(made) == set(old) | new
    assert {name for name in old if made[name] != old[name]} == {
        name for name in old if "of-00002" in name
    }
    for file in folder.glob("*.safetensors"):
        length = int.from_bytes(file.read_bytes()[:8], "little") + 8
        assert (tmp_path / "sparse" / file.name).read_bytes()[:length] == file.read_bytes()[:length]
        assert (tmp_path / "sparse" / file.name).stat().st_size == file.stat().st_size


def test_the_report_says_what_solve_says(folder: Path, tmp_path: Path) -> None:
    report = checkpoint.prune(
        folder,
        tmp_path / "sparse",
        {"*.mlp": "4:8T", "*.k_proj": None, "*": "2:4"},
        method="greedy",
    )
    written = json.loads((tmp_path / "sparse" / "report.json").read_text())
    dense = stored(folder)
    assert written["settings"] == {
        "pattern": {"*.mlp": "4:8T", "*.k_proj": None, "*": "2:4"},
        "method": "greedy",
        "include": None,
        "exclude": [],
        "padding": "skip",
    }
    assert [entry["name"] for entry in written["tensors"]] == [t.name for t in report]
    patterns = {"mlp": "4:8T", "q_proj": "2:4", "k_proj": None, "lm_head": "2:4"}
    for entry, t in zip(written["tensors"], report, strict=True):
        for part, pattern in patterns.items():
            if part in t.name:
                assert entry["pattern"] == pattern, t.name
        if t.pattern is None:
            assert entry["reason"]
            continue
        result = nmsolve.solve(dense[t.name], t.pattern, method="greedy")
        assert (entry["objective"], entry["bound"], entry["gap"]) == (
            result.objective,
            result.bound,
            result.gap,
        )
        assert entry["status"] == t.status == result.status.value
        assert entry["kept"] == result.mask.sum()
        assert entry["total"] == pytest.approx(
            np.abs(dense[t.name].astype(np.float64)).sum(), rel=1e-12
        )
        assert t.share == entry["objective"] / entry["total"]
        assert t.seconds is not None
        assert t.seconds > 0
    assert (
        written["density"]
        == report.density
        == sum(t.kept or t.weights for t in report) / sum(w.size for w in dense.values())
    )
    assert report.share is not None
    assert 0.5 < report.share < 1
    assert report.gap is not None
    assert 0 < report.gap < 0.1  # greedy


def test_threads_and_repetition_change_no_byte(folder: Path, tmp_path: Path) -> None:
    for name, threads in (("a", 1), ("b", 2), ("c", None)):
        checkpoint.prune(folder, tmp_path / name, "4:8T", threads=threads)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")


def test_one_file(tmp_path: Path) -> None:
    tensors = {"fc.weight": weights(8, 16), "head.weight": weights(6, 16), "fc.bias": weights(8)}
    save_file(tensors, tmp_path / "dense.safetensors", {"format": "pt", "author": "me"})
    checkpoint.prune(tmp_path / "dense.safetensors", tmp_path / "sparse.safetensors", "2:4T")
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "dense.safetensors",
        "sparse.masks.safetensors",
        "sparse.report.json",
        "sparse.safetensors",
        "sparse.times.json",
    ]
    with safe_open(tmp_path / "sparse.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt", "author": "me"}
    (reason,) = [
        t.reason
        for t in checkpoint.report(tmp_path / "sparse.safetensors", tmp_path / "page.html")
        if t.name == "head.weight"
    ]
    assert reason == "its axis 0 does not consist of blocks of 4"
    (tmp_path / "there").mkdir()
    checkpoint.prune(tmp_path / "dense.safetensors", tmp_path / "there", "2:4T")  # as cp does
    assert (tmp_path / "there" / "dense.safetensors").read_bytes() == (
        tmp_path / "sparse.safetensors"
    ).read_bytes()


def test_padding(tmp_path: Path) -> None:
    tensors = {
        "fc1.weight": weights(10, 13),
        "fc2.weight": weights(8, 8),
        "fc3.weight": weights(2, 9),
    }
    save_file(tensors, tmp_path / "whole.safetensors")

    def pruned(padding: str) -> checkpoint.PruneReport:
        return checkpoint.prune(
            tmp_path / "whole.safetensors",
            tmp_path / f"{padding}.safetensors",
            "2:4T",
            padding=padding,
        )

    assert [t.name for t in pruned("skip").pruned] == ["fc2.weight"]
    assert [t.name for t in pruned("pad").pruned] == list(tensors)
    dense = pruned("dense")
    assert [t.reason for t in dense] == [None, None, "smaller than one block of 4"]
    for padding in ("pad", "dense"):
        masks = checkpoint.open_masks(tmp_path / f"{padding}.safetensors")
        assert (masks["fc1.weight"] == best_mask(weights(10, 13), "2:4T", padding=padding)).all()
        assert checkpoint.verify(tmp_path / f"{padding}.safetensors").ok
        assert checkpoint.verify(tmp_path / f"{padding}.safetensors", "2:4T", padding=padding).ok
    with pytest.raises(
        nmsolve.InputError,
        match=r"whole\.safetensors: tensor 'fc1\.weight' of shape \(10, 13\), pattern 2:4T: its "
        r"axis 1",
    ):
        pruned("error")


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:4", "2:4T", "<=2:4T"])
def test_convolutions_are_grouped_along_input_channels(pattern: str, tmp_path: Path) -> None:
    tensors = {
        "layers.0.conv1.weight": weights(8, 4, 3),
        "conv2.weight": weights(4, 8, 3, 3),
        "conv3.weight": weights(8, 8, 1, 2, 3),
        "depthwise.weight": weights(8, 1, 3, 3),
        "up.weight": weights(8, 4, 2, 2),
        "up.bias": weights(4),
    }
    save_file(tensors, tmp_path / "dense.safetensors")
    included = list(tensors)  # whose names alone do not say what they are
    report = checkpoint.prune(
        tmp_path / "dense.safetensors", tmp_path / "sparse.safetensors", pattern, include=included
    )
    sparse, masks = (
        load_file(tmp_path / "sparse.safetensors"),
        checkpoint.open_masks(tmp_path / "sparse.safetensors"),
    )
    for name in ("layers.0.conv1.weight", "conv2.weight", "conv3.weight"):
        by_position = np.moveaxis(tensors[name], (0, 1), (-2, -1))
        mask = np.moveaxis(best_mask(by_position, pattern), (-2, -1), (0, 1))
        assert (masks[name] == mask).all()
        assert same_bits(sparse[name], np.where(mask, tensors[name], np.float32(0)))
    reasons = {t.name: t.reason for t in report.dense}
    unit = "blocks" if pattern.endswith("T") else "groups"
    assert reasons["depthwise.weight"] == f"its axis 1 does not consist of {unit} of 4"
    assert "transposed convolution" in reasons["up.weight"]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8", "<i4", "<i1", "<u2"])
def test_npy(dtype: str, order: str, tmp_path: Path) -> None:
    array = np.asarray((weights(2, 8, 12) * 50).astype(dtype), order=order)  # type: ignore[call-overload]
    np.save(tmp_path / "dense.npy", array)
    checkpoint.prune(tmp_path / "dense.npy", tmp_path / "sparse.npy", "2:4T")
    sparse = np.load(tmp_path / "sparse.npy")
    mask = best_mask(array, "2:4T")
    assert sparse.dtype == array.dtype
    assert sparse.flags.f_contiguous == array.flags.f_contiguous
    assert (sparse == np.where(mask, array, 0)).all()
    assert (checkpoint.open_masks(tmp_path / "sparse.npy")["arr_0"] == mask).all()
    assert checkpoint.verify(tmp_path / "sparse.npy").ok


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(save: object, tmp_path: Path) -> None:
    arrays = {
        "a/b": weights(8, 8),
        "ints": np.arange(64).reshape(8, 8),
        "flags": np.ones((4, 4), bool),
        "x": weights(3),
    }
    save(tmp_path / "dense.npz", **arrays)  # type: ignore[operator]
    report = checkpoint.prune(tmp_path / "dense.npz", tmp_path / "sparse.npz", "2:4T")
    with np.load(tmp_path / "sparse.npz") as sparse:
        assert list(sparse) == list(arrays)
        for name in ("a/b", "ints"):
            assert (
                sparse[name] == np.where(best_mask(arrays[name], "2:4T"), arrays[name], 0)
            ).all()
        assert (sparse["flags"] == arrays["flags"]).all()
    assert {t.name: t.reason for t in report.dense} == {
        "flags": "dtype |b1 is not solved",
        "x": "fewer than two axes",
    }
    with (
        zipfile.ZipFile(tmp_path / "dense.npz") as a,
        zipfile.ZipFile(tmp_path / "sparse.npz") as b,
    ):
        for old, new in zip(a.infolist(), b.infolist(), strict=True):
            assert (old.filename, old.compress_type, old.date_time) == (
                new.filename,
                new.compress_type,
                new.date_time,
            )
    assert checkpoint.verify(tmp_path / "sparse.npz").ok


def test_dtypes_without_arithmetic_here_are_copied(tmp_path: Path) -> None:
    tensors = {
        "fc1.weight": torch.randn(8, 8).bfloat16(),
        "fc2.weight": torch.randn(8, 8).abs().to(torch.float8_e8m0fnu),
        "fc3.weight": torch.arange(64).reshape(8, 8),
        "flags": torch.ones(8, 8, dtype=torch.bool),
        "fc.weight": torch.zeros(0, 8),
        "scalar": torch.tensor(3.0),
    }
    save_torch(tensors, tmp_path / "dense.safetensors")
    report = checkpoint.prune(
        tmp_path / "dense.safetensors", tmp_path / "sparse.safetensors", "2:4"
    )
    sparse = load_torch(tmp_path / "sparse.safetensors")
    assert [t.name for t in report.pruned] == ["fc1.weight"]
    assert all(
        torch.equal(sparse[name].float(), tensors[name].float())
        for name in tensors
        if name != "fc1.weight"
    )
    reasons = {t.name: t.reason for t in report.dense}
    assert (
        reasons["fc2.weight"]
        == "dtype F8_E8M0 is not solved; it holds powers of two, and has no zero for what is "
        "dropped"
    )
    assert reasons["fc3.weight"] == "dtype I64 is not solved"
    assert reasons["fc.weight"] == "it has no element"


def test_names_decide_unless_the_user_does(tmp_path: Path) -> None:
    names = [
        "model.embed_tokens.weight", "transformer.wte.weight", "shared.weight", "pos_embed",
        "cls_token",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "attn.bias",
        "mixer.A_log", "fc.weight_scale_inv",
    ]  # fmt: skip
    linear = [
        "time_embedding.linear_1.weight",
        "proj.weight",
        "lm_head.weight",
        "mlp.down_proj.weight",
    ]
    save_file(
        {name: weights(8, 8, seed=i) for i, name in enumerate([*names, *linear])},
        tmp_path / "dense.safetensors",
    )
    report = checkpoint.prune(tmp_path / "dense.safetensors", tmp_path / "a.safetensors", "2:4")
    assert {t.name for t in report.pruned} == set(linear)
    included = [*names[:3], "pr*", "*embed*"]
    report = checkpoint.prune(
        tmp_path / "dense.safetensors", tmp_path / "b.safetensors", "2:4", include=included
    )
    assert {t.name for t in report.pruned} == {
        *names[:3],
        "proj.weight",
        "time_embedding.linear_1.weight",
    }


def test_zeros_are_positive_and_kept_weights_keep_their_bits(tmp_path: Path) -> None:
    values = -np.abs(weights(8, 8))
    values[0, 0] = -0.0
    save_file({"fc.weight": values}, tmp_path / "dense.safetensors")
    checkpoint.prune(tmp_path / "dense.safetensors", tmp_path / "sparse.safetensors", "2:4T")
    sparse, mask = (
        read(tmp_path / "sparse.safetensors")["fc.weight"]
        for read in (load_file, checkpoint.open_masks)
    )
    assert not np.signbit(sparse[~mask]).any()
    assert same_bits(sparse[mask], values[mask])


def test_globs_that_match_nothing_are_errors(folder: Path, tmp_path: Path) -> None:
    for options in ({"exclude": "lm_haed"}, {"include": "mlp"}, {"exclude": ["lm_head", "x.*"]}):
        with pytest.raises(nmsolve.InputError, match="matches no layer of the checkpoint"):
            checkpoint.prune(folder, tmp_path / "sparse", "2:4", **options)  # type: ignore[arg-type]
    with pytest.raises(nmsolve.InputError, match=r"pattern='\*\.mpl'"):
        checkpoint.prune(folder, tmp_path / "sparse", {"*.mpl": "2:4"})
    with pytest.raises(
        nmsolve.InputError, match=r"no tensor of .*dense can have 2:4: .*not included"
    ):
        checkpoint.prune(folder, tmp_path / "sparse", "2:4", include="model.embed_tokens")
    with pytest.raises(nmsolve.PatternError, match="min_cost_flow"):
        checkpoint.prune(folder, tmp_path / "sparse", "2:4", method="min_cost_flow")
    with pytest.raises(nmsolve.InputError, match="padding must be"):
        checkpoint.prune(folder, tmp_path / "sparse", "2:4", padding="zeros")
    with pytest.raises(nmsolve.InputError, match="threads must be"):
        checkpoint.prune(folder, tmp_path / "sparse", "2:4", threads=0)
    assert not (tmp_path / "sparse").exists()


def test_masks_alone(folder: Path, tmp_path: Path) -> None:
    checkpoint.prune(folder, tmp_path / "sparse", "2:4T")
    checkpoint.solve(folder, tmp_path / "masks", "2:4T")
    made, whole = contents(tmp_path / "masks"), contents(tmp_path / "sparse")
    assert set(made) == {name for name in whole if name.startswith("masks/")} | {"report.json"}
    assert all(
        made[name] == whole[name] for name in made if name != "report.json"
    )  # which tells of the files
    assert checkpoint.verify(tmp_path / "masks" / "masks" / "model-00001-of-00002.safetensors").ok
    np.save(tmp_path / "w.npy", weights(8, 8))
    checkpoint.solve(tmp_path / "w.npy", tmp_path / "m.safetensors", "1:4T")
    masks = checkpoint.open_masks(tmp_path / "m.safetensors")
    assert (masks["arr_0"] == best_mask(weights(8, 8), "1:4T")).all()


def test_a_hugging_face_cache_of_links(folder: Path, tmp_path: Path) -> None:
    """Snapshots are links to blobs without a suffix, and resolve to nothing like their names."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    for number, file in enumerate(sorted(f for f in folder.iterdir() if f.is_file())):
        shutil.copyfile(file, blobs / str(number))
        (snapshot / file.name).symlink_to(Path("..") / "blobs" / str(number))
    shutil.rmtree(folder / "1_Pooling")
    checkpoint.prune(snapshot, tmp_path / "a", "2:4T")
    checkpoint.prune(folder, tmp_path / "b", "2:4T")
    a, b = contents(tmp_path / "a"), contents(tmp_path / "b")
    a.pop("report.json")
    b.pop("report.json")  # the source's name is in it
    assert a == b


def test_other_weights_are_left_behind_and_named(folder: Path, tmp_path: Path) -> None:
    for name in (
        "pytorch_model.bin",
        "consolidated.safetensors",
        "model.gguf",
        "training_args.bin",
    ):
        (folder / name).write_bytes(b"x")
    report = checkpoint.prune(folder, tmp_path / "sparse", "2:4T")
    assert set(report.left_behind) == {
        "pytorch_model.bin",
        "consolidated.safetensors",
        "model.gguf",
        "training_args.bin",
    }
    assert not any((tmp_path / "sparse" / name).exists() for name in report.left_behind)


def test_pruning_what_was_pruned(folder: Path, tmp_path: Path) -> None:
    """Its masks and reports are the first run's: the second has its own."""
    checkpoint.prune(folder, tmp_path / "a", "2:4T")
    report = checkpoint.prune(tmp_path / "a", tmp_path / "b", "1:4")
    assert sorted(contents(tmp_path / "a")) == sorted(contents(tmp_path / "b"))
    assert checkpoint.verify(tmp_path / "b").ok
    assert {str(t.pattern) for t in report.pruned} == {"1:4"}


kinds = st.sampled_from([np.dtype(np.float32), np.dtype(np.float16), BF16, np.dtype(np.float64)])


@given(st.data())
def test_any_checkpoint(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Weights outside the mask are zero, others as they were; masks hold their patterns, and keep
    what solve's keep.
    """
    folder = tmp_path_factory.mktemp("any")
    pattern = data.draw(st.sampled_from(["2:4", "2:4T", "1:4", "<=2:4T", "4:8T"]))
    padding = data.draw(st.sampled_from(["skip", "pad", "dense"]))
    sizes = st.integers(1, 20)
    tensors = {"fc.weight": weights(8, 16)}
    for number in range(data.draw(st.integers(0, 4))):
        shape = tuple(data.draw(st.lists(sizes, min_size=1, max_size=4)))
        values = data.draw(hnp.arrays(np.int8, shape, elements=st.integers(-9, 9))).astype(
            data.draw(kinds)
        )
        tensors[f"{data.draw(st.sampled_from(['fc', 'é.fc', 'layers.0.fc']))}{number}.weight"] = (
            values
        )
    save_file(tensors, folder / "dense.safetensors")
    report = checkpoint.prune(
        folder / "dense.safetensors", folder / "sparse.safetensors", pattern, padding=padding
    )
    sparse, masks = (
        load_file(folder / "sparse.safetensors"),
        checkpoint.open_masks(folder / "sparse.safetensors"),
    )
    assert set(masks) == {t.name for t in report.pruned}
    for t in report:
        mask = masks[t.name] if t.pattern else np.ones(t.shape, bool)
        assert same_bits(
            sparse[t.name], np.where(mask, tensors[t.name], np.zeros((), tensors[t.name].dtype))
        )
        if t.pattern:
            assert t.objective == pytest.approx(np.abs(tensors[t.name].astype(float)[mask]).sum())
            assert t.axis is not None
            view = np.moveaxis(tensors[t.name], (t.axis - 1, t.axis), (-2, -1))
            assert (
                t.objective == nmsolve.solve(view, pattern, padding=t.padding or "error").objective
            )
    found = checkpoint.verify(folder / "sparse.safetensors")
    assert found.ok
    assert len(found.checked) == len(masks)
    assert checkpoint.verify(folder / "sparse.safetensors", pattern, padding=padding).ok


def test_memory_is_that_of_the_largest_tensor(tmp_path: Path) -> None:
    """A checkpoint of 40 weights takes hardly more than one of a single weight, though it is larger
    than all that is taken.
    """
    program = (
        "import sys, resource, nmsolve.checkpoint as c\n"
        "c.prune(sys.argv[1], sys.argv[2], '2:4T', threads=1)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    one = weights(1024, 1024)  # 4 MiB
    peaks = []
    for count in (1, 40):
        save_file(
            {f"layers.{i}.fc.weight": one for i in range(count)}, tmp_path / f"{count}.safetensors"
        )
        command = [
            sys.executable,
            "-c",
            program,
            str(tmp_path / f"{count}.safetensors"),
            str(tmp_path / f"{count}-out.safetensors"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] - peaks[0] < 10  # MiB


def test_the_package_shows_its_documented_names_alone() -> None:
    code = "import nmsolve.checkpoint as c; print(dir(c) == sorted(c.__all__), len(dir(c)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"True {len(checkpoint.__all__)}\n"
    assert {"pruning", "masks"}.isdisjoint(dir(checkpoint))
