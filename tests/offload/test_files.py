"""Files that are not as they should be, or where they should be."""

import json
import os
import shutil

import pytest
import safetensors.torch
import torch
from accelerate import init_empty_weights
from torch import nn

import nmsolve
import nmsolve.torch as nmt
from tests.offload.offloaded_models import ConvNet, empty_like, items_of, made, mlp, run, same, save
from tests.offload.offloaded_models import prune as pruned_by
from tests.pruning.pruning_models import refuses


@pytest.fixture
def model():
    return made("mlp")


@pytest.fixture
def source(model, tmp_path):
    return save(model, tmp_path / "source")


def start(model, source, **options):
    with nmt.offloaded(empty_like(model), source, **options):
        raise AssertionError("this was to be refused")


def prune(model, source, out):
    empty = empty_like(model)
    with nmt.offloaded(empty, source, out=out):
        nmt.mask_(empty, "2:4")
    expected = made("mlp")
    nmt.mask_(expected, "2:4")
    return not same(expected, out)


def written(path):
    return {p.name: p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_a_file_becomes_a_file(model, source, tmp_path):
    file = source / "model.safetensors"
    assert prune(model, file, tmp_path / "new" / "out.safetensors")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["out.safetensors"]
    assert prune(model, str(file), source / "beside.safetensors")


def test_folders_of_links(model, source, tmp_path):
    """As in Hugging Face's cache; the files may be read alone."""
    cache, blobs = tmp_path / "snapshot", tmp_path / "blobs"
    blobs.mkdir()
    cache.mkdir()
    (source / "config.json").write_text("{}")
    for i, path in enumerate(source.iterdir()):
        shutil.copyfile(path, blobs / str(i))
        (blobs / str(i)).chmod(0o444)
        (cache / path.name).symlink_to(f"../blobs/{i}")
    (tmp_path / "link").symlink_to(cache, target_is_directory=True)
    before = written(blobs)
    assert prune(model, tmp_path / "link", tmp_path / "out")
    assert prune(model, cache / "model.safetensors", tmp_path / "file.safetensors")
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    assert sorted(written(tmp_path / "out")) == ["config.json", "model.safetensors"]
    assert written(blobs) == before


def test_what_is_copied_beside_weights(model, source, tmp_path):
    for name in ("config.json", "1_Pooling/config.json", "onnx/model.onnx", "pytorch_model.bin"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("{}")
    for name in ("original/consolidated.safetensors", ".cache/x", ".hidden"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("{}")
    (source / "gone").symlink_to("nowhere")
    assert prune(model, source, tmp_path / "out")
    found = sorted(
        str(p.relative_to(tmp_path / "out"))
        for p in (tmp_path / "out").rglob("*")
        if p.is_file() or p.is_symlink()
    )
    assert found == ["1_Pooling/config.json", "config.json", "model.safetensors"]


def test_relative_paths_stay_what_they_were(model, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    empty = empty_like(model)
    (tmp_path / "elsewhere").mkdir()
    with nmt.offloaded(empty, "source", out="out"):
        os.chdir(tmp_path / "elsewhere")
        nmt.mask_(empty, "2:4")
    nmt.mask_(model, "2:4")
    assert not same(model, tmp_path / "out")


@pytest.mark.parametrize("kind", ["file", "folder", "empty", "dangling", "source"])
def test_places_that_are_taken(kind, model, source, tmp_path):
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind == "dangling":
        out.symlink_to("nowhere")
    elif kind == "source":
        out = source
    else:
        out.mkdir()
        if kind == "folder":
            (out / "file").write_text("mine")
    before = written(tmp_path)
    refuses(lambda: start(model, source, out=out), f"{out} exists", "out=")
    assert written(tmp_path) == before


def test_places_within_the_source(model, source, tmp_path):
    before = written(tmp_path)
    (tmp_path / "link").symlink_to(source)
    for out in (source / "out", tmp_path / "link" / "out", source / "new" / "out"):
        refuses(lambda out=out: start(model, source, out=out), "lies in", "another place")
    assert written(tmp_path) == before


def test_parts_of_others(model, source, tmp_path):
    part = tmp_path / "out.part"
    part.mkdir()
    (part / "file").write_text("mine")
    refuses(lambda: start(model, source, out=tmp_path / "out"), f"{part} exists", "move it away")
    assert (part / "file").read_text() == "mine"
    shutil.rmtree(part)
    part.symlink_to(source)
    refuses(lambda: start(model, source, out=tmp_path / "out"), f"{part} exists", "move it away")
    part.unlink()
    (part).write_text("mine")
    refuses(lambda: start(model, source, out=tmp_path / "out"), f"{part} exists", "move it away")
    part.unlink()
    (tmp_path / "file").write_text("")
    refuses(lambda: start(model, source, out=tmp_path / "file" / "out"), "failed: ", "out=")


def test_two_runs_to_one_place(model, source, tmp_path):
    empty = empty_like(model)
    with nmt.offloaded(empty, source, out=tmp_path / "out"):
        refuses(lambda: start(model, source, out=tmp_path / "out"), "another run is writing")
        nmt.mask_(empty, "2:4")
    nmt.mask_(model, "2:4")
    assert not same(model, tmp_path / "out")


def test_a_place_that_is_taken_meanwhile(model, source, tmp_path):
    out, empty = tmp_path / "out", empty_like(model)
    for place in (source, source / "model.safetensors"):

        def work(place=place):
            with nmt.offloaded(empty, place, out=out):
                nmt.mask_(empty, "2:4")
                out.write_text("mine")

        refuses(work, f"{tmp_path / 'out.part' / 'out'} is whole", "File exists", "move it")
        assert out.read_text() == "mine"
        whole = tmp_path / "out.part" / "out"
        out.unlink()
        refuses(lambda place=place: start(model, place, out=out), "move it away")
        whole.rename(out)
        (tmp_path / "out.part").rmdir()
        expected = made("mlp")
        nmt.mask_(expected, "2:4")
        assert not same(expected, out)
        shutil.rmtree(out) if out.is_dir() else out.unlink()


def bytes_of(header, values=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + values


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        bytes_of(b"no header"),
        bytes_of({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
        bytes_of({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}, bytes(8)),
        bytes_of({"a": {"dtype": "X9", "shape": [4], "data_offsets": [0, 16]}}, bytes(16)),
        (1 << 62).to_bytes(8, "little") + b"{}",
    ],
)
def test_files_that_are_none(data, model, source, tmp_path):
    (source / "model.safetensors").write_bytes(data)
    refuses(lambda: start(model, source, out=tmp_path / "out"), "model.safetensors", "valid")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_dtypes_that_torch_or_plain_weights_do_not_have(model, source):
    values = {k: v.detach().clone() for k, v in model.state_dict().items()}
    for codes in (torch.float8_e4m3fn, torch.int8):
        values["0.weight"] = torch.zeros(32, 16).to(codes)
        safetensors.torch.save_file(values, source / "model.safetensors")
        refuses(lambda: start(model, source), "0.weight is torch.float32", str(codes), "quantized")


def test_truncated_files(model, source):
    file = source / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    refuses(lambda: start(model, source), "not a whole, valid")


@pytest.mark.parametrize("how", ["written", "replaced", "shorter", "gone"])
def test_files_that_change_meanwhile(how, model, source, tmp_path):
    file, empty = source / "model.safetensors", empty_like(model)

    def work():
        with nmt.offloaded(empty, source, out=tmp_path / "out"):
            data = file.read_bytes()
            if how in ("replaced", "gone"):
                file.unlink()
            if how != "gone":
                file.write_bytes(data[:-100] if how == "shorter" else data[:-1] + b"x")
                os.utime(file, ns=(1, 1))
            run(empty, items_of("mlp")[0])

    with pytest.raises((nmsolve.InputError, FileNotFoundError)) as caught:
        work()
    assert str(file) in str(caught.value)
    assert how == "gone" or "has changed" in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def index_of(source, **changed):
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": changed}))


def test_indices_and_shards_that_are_missing(model, source, tmp_path):
    index_of(source, a="model-2.safetensors")
    refuses(lambda: start(model, source), "names files that are not there", "model-2.safetensors")
    for name in ("../source/model.safetensors", "/etc/passwd", "..", ""):
        index_of(source, a=name)
        refuses(lambda: start(model, source), "is no index of .safetensors files")
    index_of(source)
    refuses(lambda: start(model, source), "is no index")
    (source / "model.safetensors.index.json").write_text("[")
    refuses(lambda: start(model, source), "is not an index")
    index_of(source, a="model.safetensors")
    index_of(source, a="model.safetensors")
    shutil.copy(source / "model.safetensors.index.json", source / "b.safetensors.index.json")
    refuses(lambda: start(model, source), "several indices")
    for path in source.iterdir():
        path.unlink()
    refuses(lambda: start(model, source), "has no .safetensors file")
    refuses(lambda: start(model, tmp_path / "nowhere"), "neither a .safetensors file nor a folder")


def test_a_tensor_in_two_files(model, source):
    shutil.copy(source / "model.safetensors", source / "model.fp16.safetensors")
    refuses(lambda: start(model, source), "nothing says which is the model's")


def test_names_and_shapes_of_another_model(model, source):
    other = nn.ModuleDict({"encoder": mlp()})
    refuses(
        lambda: start(other, source),
        "encoder.0.weight",
        f"not in {source}",
        "0.bias",
        "tie_weights",
    )
    refuses(lambda: start(mlp((16, 8)), source), "0.weight has shape (8, 16)", "(32, 16)")


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_models_that_are_somewhere_else(model, source, tmp_path):
    refuses(lambda: nmt.offloaded(model, source).__enter__(), "in memory already", "meta device")
    refuses(lambda: nmt.offloaded(empty_like(model)).__enter__(), "0.weight", "source=")
    refuses(lambda: nmt.offloaded(model).__enter__(), "device='cuda'")
    refuses(lambda: nmt.offloaded(model, out=tmp_path / "out", device="cpu").__enter__(), "out=")
    refuses(lambda: nmt.offloaded("model", source).__enter__(), "nn.Module", "str")
    for device in ("no such", "meta:", 3.5):
        refuses(lambda d=device: start(model, source, out=tmp_path / "o", device=d), "device=")
    with torch.device("meta"):
        all_meta = nn.Sequential(nn.BatchNorm2d(4))
        all_meta.register_buffer("table", torch.zeros(3), persistent=False)
    refuses(lambda: nmt.offloaded(all_meta, source).__enter__(), "table", "include_buffers=False")
    refuses(
        lambda: nmt.offloaded(torch.jit.trace(model, torch.ones(1, 16)), device="cpu").__enter__(),
        "ScriptModule",
    )
    shared = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    shared[1].weight.data = shared[0].weight.data.T
    refuses(lambda: nmt.offloaded(shared, device="cpu").__enter__(), "1.weight", "share memory")
    shared[1].weight = nn.Parameter(torch.ones(16).expand(16, 16))
    refuses(lambda: nmt.offloaded(shared, device="cpu").__enter__(), "1.weight", "strides")
    nmt.sparsify_(model, "2:4")
    refuses(lambda: nmt.offloaded(model, device="cpu").__enter__(), "finalize_()")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_tied_weights_that_are_stored_twice(tmp_path):
    model = made("tied llama")
    (tmp_path / "source").mkdir()
    values = {k: v.clone() for k, v in model.state_dict().items()}
    assert "lm_head.weight" in values
    safetensors.torch.save_file(values, tmp_path / "source" / "model.safetensors")
    empty = empty_like(model)
    with nmt.offloaded(empty, tmp_path / "source", out=tmp_path / "out"), torch.no_grad():
        pruned_by(empty, "mask", None)
        empty.lm_head.weight.mul_(2)
    pruned_by(model, "mask", None)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    assert not same(model, tmp_path / "out")


def test_buffers_that_hold_nan_are_as_they_were(tmp_path):
    class Marked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)
            self.register_buffer("seen", torch.tensor([1.0, torch.nan]))

    safetensors.torch.save_file(Marked().state_dict(), tmp_path / "model.safetensors")
    with init_empty_weights(include_buffers=False):
        model = Marked()
    with nmt.offloaded(model, tmp_path):  # nothing is written here, so nothing may have changed
        assert model.seen.isnan().any()


def test_buffers_on_the_meta_device_come_from_the_files(tmp_path):
    model = made("conv")
    source = save(model, tmp_path / "source")
    with torch.device("meta"):
        empty = ConvNet().eval()
    item = items_of("conv")[0]
    with nmt.offloaded(empty, source):
        assert torch.equal(run(empty, item), run(model, item))
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
