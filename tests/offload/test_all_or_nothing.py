"""Whatever ends a block: the source is as it was, and `out` is whole or not there."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.overrides import TorchFunctionMode

import nmsolve
import nmsolve.torch as nmt
from tests.checkpoint.snapshots import differing, snapshot
from tests.offload.offloaded_models import empty_like, items_of, made, mlp, prune, run, same, save
from tests.pruning.deep_models import Keeping
from tests.pruning.pruning_models import refuses

ROOT = Path(__file__).resolve().parents[2]
WIDE = (16, 32, 32, 32, 8)


class Late(nn.Module):
    """Fails once one weight of four is left in its first layer: with an error, or by NaN."""

    def __init__(self, error=None):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.error = mlp(WIDE), error
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x):
        for layer in self.body:
            x = layer(x)
            first = self.body[0].weight
            if self.error is not None and int((first == 0).sum()) > 0.6 * first.numel():
                if self.error != "nan":
                    raise self.error
                x = x * torch.nan
        return self.norm(x)


def breaking(items):
    yield from items
    raise ValueError("no more items")


ERRORS = [KeyboardInterrupt(), ValueError("mine"), MemoryError(), SystemExit(3)]


@pytest.fixture
def model():
    return Late().eval()


@pytest.fixture
def source(model, tmp_path):
    return save(model, tmp_path / "source")


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_errors_that_leave_the_block(error, model, source, tmp_path):
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    empty = empty_like(Late(error).eval())
    parameters = list(empty.parameters())
    with (
        pytest.raises((type(error), nmsolve.InputError, nmsolve.SolverError)),
        nmt.offloaded(empty, source, out=tmp_path / "out"),
    ):
        nmt.adaprune_(empty, "1:4", items_of("mlp"))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    assert all(a is b and a.is_meta for a, b in zip(parameters, empty.parameters(), strict=True))
    with nmt.offloaded(empty, source, out=tmp_path / "out"):  # once more
        pass
    assert not same(model, tmp_path / "out")


@pytest.mark.parametrize("how", ["least squares", "second order"])
@pytest.mark.parametrize("first", [None, "mask", "least squares"])
@pytest.mark.parametrize("fails", ["nan", "items", "interrupt"])
def test_errors_that_the_user_catches(how, first, fails, model, source, tmp_path):
    """What was there before the call stays: of the source, or of a call before it."""
    items, empty = items_of("mlp"), empty_like(model)
    with nmt.offloaded(empty, source, out=tmp_path / "out"):
        if first is not None:
            prune(empty, first, items)
            prune(model, first, items)
        empty.error = {"nan": "nan", "interrupt": KeyboardInterrupt()}.get(fails)
        with pytest.raises((nmsolve.InputError, ValueError, KeyboardInterrupt)):
            prune(empty, how, breaking(items) if fails == "items" else items, "1:4")
        empty.error = None
        assert torch.equal(run(empty, items[0]), run(model, items[0]))
    assert not same(model, tmp_path / "out")


class Interrupting(TorchFunctionMode):
    """Ctrl-C when zeros are written the second time."""

    written = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.masked_fill_:
            self.written += 1
            if self.written == 2:
                raise KeyboardInterrupt
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("first", [None, "1:2"])
def test_masks_that_are_interrupted(first, model, source, tmp_path):
    """They are written one by one."""
    empty = empty_like(model)
    with nmt.offloaded(empty, source, out=tmp_path / "out"):
        if first is not None:
            nmt.mask_(empty, first)
            nmt.mask_(model, first)
        with pytest.raises(KeyboardInterrupt), Interrupting():
            nmt.mask_(empty, "1:4")
    assert not same(model, tmp_path / "out")


def test_models_that_cannot_stop(tmp_path):
    model = Keeping(mlp(WIDE)).eval()
    empty, items = empty_like(model), items_of("mlp")
    with nmt.offloaded(empty, save(model, tmp_path / "source"), out=tmp_path / "out"):
        for call in (nmt.adaprune_, nmt.sparsegpt_):
            refuses(
                lambda call=call: call(empty, "2:4", items),
                "all items side by side",
                "kept",
                "in memory",
            )
        assert torch.equal(run(empty, items[0]), run(model, items[0]))
        twice = nn.Sequential(empty, nn.Flatten(), nn.Linear(8, 16), empty)
        refuses(lambda: nmt.adaprune_(twice, "2:4", items), "in memory")
    assert not same(model, tmp_path / "out")


def test_generators_that_leave_the_block(model, source, tmp_path):
    empty = empty_like(model)

    def work():
        with nmt.offloaded(empty, source, out=tmp_path / "out"):
            nmt.mask_(empty, "2:4")
            yield 1

    steps = work()
    next(steps)
    assert (tmp_path / "out.part").is_dir()
    steps.close()
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    assert all(p.is_meta for p in empty.parameters())
    block = nmt.offloaded(empty, source, out=tmp_path / "out")
    with block:
        nmt.mask_(empty, "2:4")
    assert not block.__exit__(None, None, None)  # a second time
    nmt.mask_(model, "2:4")
    assert not same(model, tmp_path / "out")


@pytest.mark.parametrize("error", [None, *ERRORS[:2]], ids=repr)
def test_models_in_memory(error):
    """On another device, for which the host stands here; they are changed in place, and keep what
    was done before an error.
    """
    model, expected, items = Late().eval(), Late().eval(), items_of("mlp")
    parameters, held = list(model.parameters()), model.body[0].weight
    with contextlib.suppress(ValueError, KeyboardInterrupt), nmt.offloaded(model, device="cpu"):
        assert model.body[0].weight is not held
        nmt.sparsegpt_(model, "2:4", items)
        if error is not None:
            raise error
    nmt.sparsegpt_(expected, "2:4", items)
    assert not differing(snapshot(model), snapshot(expected))
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert all(p.requires_grad for p in model.parameters())
    before = snapshot(model)
    model.error = KeyboardInterrupt()
    with (
        pytest.raises(KeyboardInterrupt),
        nmt.offloaded(model, device="cpu"),
    ):
        nmt.adaprune_(model, "1:4", items)
    assert not differing(snapshot(model), before)


def test_buffers_that_a_model_replaces():
    """Such as tables that grow with the longest input."""

    class Growing(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.ones(2), persistent=False)
            self.layer = nn.Linear(16, 16)

        def forward(self, x):
            if len(x) > len(self.table):
                self.register_buffer("table", torch.ones(len(x)), persistent=False)
            return self.layer(x) * self.table[: len(x), None]

    model = Growing()
    with nmt.offloaded(model, device="cpu"):
        run(model, torch.ones(9, 16))
    assert len(model.table) == 9


PROGRAM = """
    import os, resource, signal, sys
    from pathlib import Path
    import torch
    from torch import nn
    import nmsolve, nmsolve.torch as nmt

    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(30)))
    items = [torch.randn(80, 64) for _ in range(3)]
"""


def runs(program, folder):
    text = textwrap.dedent(PROGRAM) + textwrap.dedent(program)
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", text, str(folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )


def test_a_kill_in_block_17_of_30_and_the_next_run(tmp_path):
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(30)))
    source = save(model, tmp_path / "source")
    before = (source / "model.safetensors").read_bytes()
    done = runs(
        """
        def die(module, args):
            if bool((model[15].weight == 0).any()):
                os.kill(os.getpid(), signal.SIGKILL)

        with nmt.offloaded(model, folder / "source", out=folder / "out"):
            model[16].register_forward_pre_hook(die)
            nmt.adaprune_(model, "2:4", items)
        """,
        tmp_path,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (source / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.part", "source"]
    empty = empty_like(model)
    with nmt.offloaded(empty, source, out=tmp_path / "out"):
        prune(empty, "mask", None)
    prune(model, "mask", None)
    assert not same(model, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
    assert sorted(os.listdir(tmp_path / "out")) == ["model.safetensors"]


def test_a_limit_on_the_size_of_files(tmp_path):
    """The copy does not fit, and nothing of it stays."""
    save(nn.Sequential(*(nn.Linear(64, 64) for _ in range(30))), tmp_path / "source")
    done = runs(
        """
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
        try:
            with nmt.offloaded(model, folder / "source", out=folder / "out"):
                print("inside")
        except nmsolve.InputError as error:
            print(error)
        print(all(p.is_meta for p in model.parameters()))
        """,
        tmp_path,
    )
    said, left = done.stdout.splitlines()
    assert "the checkpoint is copied to" in said
    assert "File too large" in said
    assert "out=" in said
    assert left == "True"
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_is_published_is_what_was_verified(tmp_path):
    model = made("llama")
    empty = empty_like(model)
    with nmt.offloaded(empty, save(model, tmp_path / "source"), out=tmp_path / "out"):
        report = nmt.mask_(empty, "2:4")
    found = {
        k: v for f in (tmp_path / "out").glob("*.safetensors") for k, v in load_file(f).items()
    }
    for layer in report.layers:
        assert nmt.verify(found[f"{layer.path}.weight"], "2:4")
