"""Activations that are in files while their forwards stand still: nothing is computed otherwise,
whoever holds them, and they take no memory.
"""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import nmsolve
import nmsolve.torch as nmt
from nmsolve.torch.calibration import parked
from nmsolve.torch.calibration.activations import Use
from nmsolve.torch.calibration.parked import Parking
from nmsolve.torch.calibration.suspended import Forward, current_forward, suspend
from tests.checkpoint.snapshots import differing, snapshot
from tests.pruning.deep_models import MODELS, made, rows
from tests.pruning.pruning_models import refuses
from tests.pruning.test_dense_copies import mounted, needs_root

pytestmark = [
    pytest.mark.usefixtures("nothing_is_left"),
    pytest.mark.skipif(sys.platform != "linux", reason="looks at the mappings of a process"),
]
ROOT = Path(__file__).resolve().parents[2]
WAYS = [{}, {"targets": "own"}, {"sequential": False}]


def mappings(folder):
    """Bytes of files in a folder, named or not, that are mapped; and those of them in memory."""
    mapped = here = 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        word, *rest = line.split()
        if not word.endswith(":"):
            inside = f"{folder}/" in line
        elif inside and word == "Size:":
            mapped += 1024 * int(rest[0])
        elif inside and word == "Rss:":
            here += 1024 * int(rest[0])
    return mapped, here


@pytest.fixture(autouse=True)
def no_file_is_left(tmp_path):
    yield
    gc.collect()
    assert mappings(tmp_path) == (0, 0)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def all_are_large(monkeypatch):
    monkeypatch.setattr(parked, "_LEAST", 1)


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_the_same_bit_for_bit(name, tmp_path, all_are_large):
    for options in WAYS if name in ("llama", "resnet") else WAYS[:1]:
        found = []
        for offload in (None, tmp_path):
            model, blocks, items = made(name, 2)
            seen = []
            hook = blocks[-1].register_forward_pre_hook(
                lambda *_, seen=seen: seen.append(mappings(tmp_path)[0])
            )
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "the calibration never reached")
                report = nmt.sparsegpt_(model, "2:4", items(3), offload=offload, **options)
            hook.remove()
            assert "side by side" in report.way
            assert (max(seen) > 0) == (offload is not None)
            found.append(model.state_dict())
        without, with_files = found
        assert all(torch.equal(x, with_files[key]) for key, x in without.items())


def test_adaprune_with_samples_in_files(tmp_path, all_are_large):
    found = []
    for offload in (None, tmp_path):
        model, _, items = made("bert", 2)
        torch.manual_seed(3)
        nmt.adaprune_(model, "2:4T", items(3), update=nmt.Adam(steps=5), offload=offload)
        found.append(model.state_dict())
    assert all(torch.equal(x, found[1][key]) for key, x in found[0].items())


@contextlib.contextmanager
def standing(parking, body):
    """A forward at its stop, with what its body has yielded until then."""
    held = {}

    def run():
        held["made"] = body()
        suspend(current_forward(), "layer", Use(nn.Identity(), (torch.zeros(1),)))
        held["after"] = held["resumes"]()

    forward = Forward(run, 0, 0)
    try:
        with torch.no_grad(), parking:
            forward.advance()
            yield forward, held
            forward.advance()
    finally:
        forward.end()


def inside(x, folder):
    """Whether the memory of a tensor is that of a file in a folder."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        ends = line.split()[0].split("-")
        if int(ends[0], 16) <= x.data_ptr() < int(ends[1], 16):
            return f"{folder}/" in line
    return False


def test_views_and_changes_in_place_go_together(tmp_path):
    def body():
        x = torch.arange(2 * 3 * 64 * 64.0).reshape(2, 3, 64, 64)
        x = x.to(memory_format=torch.channels_last)
        return [x, x[1:, :2], x.permute(3, 2, 1, 0), x.flatten(2).T if x.dim() < 3 else x.mT]

    parking = Parking(tmp_path)
    with standing(parking, body) as (forward, held):
        tensors = held["made"]
        before = [(x.clone(), x.stride(), x.storage_offset(), x._version, id(x)) for x in tensors]
        parking.park(forward)
        for x, (values, strides, offset, version, name) in zip(tensors, before, strict=True):
            assert inside(x, tmp_path)
            assert torch.equal(x, values)
            assert (x.stride(), x.storage_offset(), id(x)) == (strides, offset, name)
            assert x._version == version
        x, part, *_ = tensors
        part.mul_(-1)
        assert torch.equal(x[1:, :2], part)
        assert torch.equal(part, -before[1][0])
        assert x._version == before[0][3] + 1
        parking.park(forward)
        mapped, here = mappings(tmp_path)
        assert mapped == x.untyped_storage().nbytes()
        assert here == 0
        assert torch.equal(part, -before[1][0])  # it was written to the file
        held["resumes"] = lambda: x.add_(1).sum()
    assert torch.equal(part, 1 - before[1][0])
    assert held["after"] == x.sum()
    assert not inside(x, tmp_path)  # what is kept is in memory again


def test_what_others_may_hold_stays_in_memory(tmp_path):
    given = torch.randn(200, 200)
    weight = nn.Parameter(torch.randn(200, 200))
    array = torch.randn(200, 200).numpy()

    def body():
        shared = torch.randn(200, 200)
        small = torch.randn(100, 100)
        learned = torch.randn(200, 200).requires_grad_()
        kept = {
            "given": given.to(torch.float32),
            "part of given": given[:50],
            "weight": weight.T,
            "data": weight.data,
            "array": shared.numpy(),
            "under the array": shared,
            "of an array": torch.from_numpy(array).detach(),
            "small": small,
            "learned": learned,
            "conjugate": torch.randn(200, 200, dtype=torch.complex64).conj(),
            "sparse": torch.eye(200).to_sparse(),
        }
        with torch.inference_mode():
            kept["of inference"] = torch.randn(200, 200)
        return kept

    parking = Parking(tmp_path)
    with standing(parking, body) as (forward, held):
        parking.park(forward)
        assert mappings(tmp_path) == (0, 0)
        made = held["made"]
        assert (made["array"] == made["under the array"].numpy()).all()
        array[:] = 7
        assert made["of an array"].eq(7).all()
        held["resumes"] = lambda: None


def test_files_go_with_their_activations(tmp_path):
    parking = Parking(tmp_path)
    with standing(parking, lambda: [torch.randn(200, 200) for _ in range(3)]) as (forward, held):
        parking.park(forward)
        for left in (3, 2, 1, 0):
            assert mappings(tmp_path)[0] == left * 40 * 4096  # whole pages
            assert len(os.listdir("/proc/self/fd")) < 200
            held["made"] = held["made"][1:]
        held["resumes"] = lambda: None


def wide(depth=3):
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(64, 64) for _ in range(depth)))


class Interrupted(nn.Module):
    """Ends once a layer is pruned."""

    def __init__(self, error):
        super().__init__()
        self.body, self.error = wide(4), error

    def forward(self, x):
        for layer in self.body:
            x = layer(x)
            if bool((self.body[1].weight == 0).sum() > 100):
                raise self.error
        return x


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("no such thing")], ids=repr)
def test_forwards_that_fail(error, tmp_path):
    model = Interrupted(error)
    before = snapshot(model)
    with pytest.raises((KeyboardInterrupt, nmsolve.InputError)):
        nmt.adaprune_(model, "2:4", rows(3, (400, 64)), offload=tmp_path)
    error.__traceback__ = None
    assert not differing(snapshot(model), before)


def test_a_model_that_keeps_what_it_makes(tmp_path):
    """It is pruned otherwise, and has what it kept in memory."""

    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.table = wide(), None

        def forward(self, x):
            if self.table is None or len(self.table) < len(x):
                self.table = torch.zeros(len(x), 64)
            return self.body(x + self.table[: len(x)])

    model = Keeping()
    items = [x[: 350 + 10 * i] for i, x in enumerate(rows(4, (400, 64)))]
    report = nmt.sparsegpt_(model, "2:4", items, offload=tmp_path)
    assert "changes" in report.way
    assert not inside(model.table, tmp_path)
    assert not model.table.any()


@needs_root
@pytest.mark.parametrize("room", [100, 300, 700])
def test_a_disk_that_fills(room, tmp_path):
    """In kilobytes: an activation has 100, of which up to six are there at a time."""
    model, items = wide(), rows(3, (400, 64))
    before = snapshot(model)
    with mounted(tmp_path, f"size={room}k") as folder:
        for prune in (nmt.adaprune_, nmt.sparsegpt_):
            refuses(
                lambda prune=prune: prune(model, "2:4", items, offload=folder),
                f"activations of the calibration items are kept in {folder} until",
                "No space left on device",
                "offload=",
            )
            assert not differing(snapshot(model), before)
            gc.collect()
            assert mappings(folder) == (0, 0)
    with mounted(tmp_path, "size=2000k") as folder:
        report = nmt.adaprune_(model, "2:4", items, offload=folder)
        assert "side by side" in report.way
        gc.collect()


PROGRAM = """
    import os, resource, signal, sys
    import torch
    from torch import nn
    import nmsolve, nmsolve.torch as nmt

    torch.set_num_threads(1)
    width, folder = 64, sys.argv[1]
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(4)))
    before = [p.detach().clone() for p in model.parameters()]
"""


def runs(program, *words, **options):
    """A program of its own, to its end or its kill."""
    return subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-c"),
            textwrap.dedent(PROGRAM) + textwrap.dedent(program),
            *map(str, words),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        **options,
    )


def test_a_limit_on_the_size_of_files(tmp_path):
    """Which the weights are below."""
    done = runs(
        """
        resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, 90_000))
        try:
            nmt.sparsegpt_(model, "2:4", [torch.randn(400, 64)] * 2, offload=folder)
        except nmsolve.InputError as error:
            print(error)
        print(all(map(torch.equal, model.parameters(), before)))
        """,
        tmp_path,
    )
    said, same = done.stdout.splitlines()
    assert said.startswith(f"activations of the calibration items are kept in {tmp_path} until")
    assert "File too large" in said
    assert same == "True"
    assert not done.stderr


def test_many_items_with_few_open_files(tmp_path):
    done = runs(
        """
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        found = nmt.sparsegpt_(
            model, "2:4", [torch.randn(400, 64) for _ in range(60)], offload=folder
        )
        print("side by side" in found.way)
        """,
        tmp_path,
    )
    assert done.stdout == "True\n", done.stderr


def test_a_kill_leaves_no_file(tmp_path):
    done = runs(
        """
        def die(module, args):
            if bool((model[1].weight == 0).any()):
                print(open("/proc/self/maps").read().count(folder + "/") > 3, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)

        model[2].register_forward_pre_hook(die)
        nmt.sparsegpt_(model, "2:4", [torch.randn(400, 64) for _ in range(4)], offload=folder)
        """,
        tmp_path,
    )
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == "True\n"


def test_memory_without_activations(tmp_path):
    """The most that is taken, in activations: 2 × 16 forwards have three each, of which those of a
    forward at work are left.
    """
    program = """
        class Block(nn.Module):
            def __init__(self):
                super().__init__()
                self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)

            def forward(self, x):
                return x + self.down(self.up(x.tanh()).sin() * x)

        def most():
            status = open("/proc/self/status").read().splitlines()
            return 1024 * next(int(line.split()[1]) for line in status if "VmHWM" in line)

        model = nn.Sequential(Block(), Block(), Block())
        nmt.adaprune_(Block(), "2:4", [torch.randn(10_000, width)])
        items = [torch.randn(10_000, width) for _ in range(16)]
        begun = most()
        found = nmt.adaprune_(
            model, "2:4", items, offload=folder if sys.argv[2] == "in files" else None
        )
        assert "side by side" in found.way
        print((most() - begun) / items[0].nbytes)
    """
    in_memory, in_files = (
        float(
            runs(
                program,
                *(tmp_path, way),
                check=True,
                # What is freed goes back to the system at once.
                env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
            ).stdout
        )
        for way in ("in memory", "in files")
    )
    assert in_memory > 2 * 16 * 2.5
    assert in_files < 2 * 16 * 0.5
