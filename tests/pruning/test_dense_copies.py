"""Dense weights that are kept on disk while a model is pruned: bit for bit, wherever it fails, and
nothing of them is left.
"""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

import nmsolve.torch as nmt
from nmsolve.torch.pruning.dense_copies import DenseCopies
from tests.checkpoint.snapshots import differing, snapshot
from tests.pruning.deep_models import rows
from tests.pruning.pruning_models import refuses

ROOT = Path(__file__).resolve().parents[2]
DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int8,
    torch.uint8,
    torch.int64,
    torch.bool,
    torch.complex64,
]
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="mounts a folder, which takes root")


@contextlib.contextmanager
def mounted(folder, *options):
    """A folder in memory, which is as small as it is told to be."""
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", ",".join(options), "none", folder], capture_output=True
    )
    if made.returncode:
        pytest.skip("this machine mounts nothing")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def raw(tensor):
    return tensor.detach().contiguous().flatten().view(torch.uint8).clone()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_comes_back(dtype, tmp_path):
    """Of NaNs too, and of tensors that lie in memory in other ways."""
    generator = torch.Generator().manual_seed(0)

    def made(*shape):
        size = torch.empty((), dtype=dtype).element_size()
        high = 2 if dtype == torch.bool else 256
        bits = torch.randint(high, (*shape[:-1], shape[-1] * size), generator=generator)
        return bits.to(torch.uint8).view(dtype)

    base = made(6, 7)
    tensors = [
        made(300, 11),
        base.T,
        base[1:4, ::2],
        made(2, 3, 4, 5).to(memory_format=torch.channels_last),
        made(1).reshape(()),
        made(1)[:0],
        nn.Parameter(made(3), requires_grad=False),
    ]
    before = [raw(tensor) for tensor in tensors]
    with DenseCopies(tmp_path) as copies:
        for tensor in tensors:
            copies.keep([tensor])
            tensor.copy_(made(*tensor.shape) if tensor.numel() > 1 else torch.ones_like(tensor))
        copies.keep(tensors[:2])  # another time, once they have changed
        tensors[0].zero_()
        assert not list(tmp_path.iterdir())
        copies.put_back()
        for tensor, bits in zip(tensors, before, strict=True):
            assert torch.equal(raw(tensor), bits)
        tensors[0].zero_()
        copies.put_back()  # nothing is kept any more
        assert not raw(tensors[0]).any()


def chain(dtype=torch.float32, width=64):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width), nn.Linear(width, width)
    ).to(dtype)


class Interrupted(nn.Module):
    """Fails once there are zeros in a layer."""

    def __init__(self, body, error):
        super().__init__()
        self.body, self.error = body, error

    def forward(self, x):
        for layer in self.body:
            x = layer(x)
            if isinstance(layer, nn.Linear) and bool((self.body[2].weight == 0).sum() > 100):
                raise self.error
        return x


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
def test_models_of_every_dtype_come_back(dtype, bias):
    model = Interrupted(chain(dtype), KeyboardInterrupt())
    model.body[0].weight.data[0, 0] = -0.0
    before = {name: raw(tensor) for name, tensor in model.state_dict().items()}
    for prune in (nmt.adaprune_, nmt.sparsegpt_):
        with pytest.raises(KeyboardInterrupt):
            prune(model, "2:4", [x.to(dtype) for x in rows(3, (40, 64))], bias=bias)
        assert all(
            torch.equal(raw(tensor), before[name]) for name, tensor in model.state_dict().items()
        )


@needs_root
@pytest.mark.parametrize("room", [4, 8, 20, 24, 28, 32, 36, 40])
def test_a_disk_that_fills(room, tmp_path):
    """In kilobytes: three layers have 16.25 each, of which the last is written too."""
    model, items = chain(), rows(3, (80, 64))
    before = snapshot(model)
    with mounted(tmp_path, f"size={room}k") as folder:
        for prune in (nmt.adaprune_, nmt.sparsegpt_):
            refuses(
                lambda prune=prune: prune(model, "2:4", items, offload=folder),
                f"dense weights are kept in {folder} until the model is pruned",
                "No space left on device",
                "offload=",
            )
            assert not differing(snapshot(model), before)
            assert not list(folder.iterdir())
    with mounted(tmp_path, "size=60k") as folder:
        nmt.adaprune_(model, "2:4", items, offload=folder)
        assert nmt.verify(model, "2:4")


@needs_root
def test_folders_that_cannot_be_written(tmp_path):
    model = chain()
    before = snapshot(model)
    with mounted(tmp_path, "ro") as folder:
        refuses(
            lambda: nmt.adaprune_(model, "2:4", rows(1, (40, 64)), offload=folder),
            f"dense weights are kept in {folder}",
            "Read-only file system",
        )
    assert not differing(snapshot(model), before)


@pytest.mark.parametrize("prune", [nmt.adaprune_, nmt.sparsegpt_])
def test_folders_that_are_none(prune, tmp_path):
    model, items = chain(), rows(1, (40, 64))
    file = tmp_path / "file"
    file.write_text("")
    for offload in (tmp_path / "none", file):
        refuses(
            lambda offload=offload: prune(model, "2:4", items, offload=offload),
            f"offload must be an existing folder, got '{offload}'",
        )
    prune(model, "2:4", items, offload=str(tmp_path))
    assert list(tmp_path.iterdir()) == [file]


PROGRAM = """
    import os, resource, signal, sys, tempfile
    import torch
    from torch import nn
    import nmsolve, nmsolve.torch as nmt

    torch.set_num_threads(1)
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))
    before = [p.detach().clone() for p in model.parameters()]
    items = [torch.randn(80, 64) for _ in range(3)]
"""


def runs(program, *words):
    """A program of its own, to its end or its kill."""
    text = textwrap.dedent(PROGRAM) + textwrap.dedent(program)
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", text, *map(str, words)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )


def test_a_limit_on_the_size_of_files():
    """Within a weight, and within a bias, which alone would wait in a buffer."""
    done = runs("""
        for limit in (40_000, 16_400, 100):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, 40_000))
            try:
                nmt.adaprune_(model, "2:4", items)
            except nmsolve.InputError as error:
                print(error)
            print(all(map(torch.equal, model.parameters(), before)))
    """)
    said = done.stdout.splitlines()
    assert len(said) == 6
    for error, same in zip(said[::2], said[1::2], strict=True):
        assert "dense weights are kept in" in error
        assert "File too large" in error
        assert same == "True"
    assert not done.stderr


def test_copies_that_were_kept_before_the_disk_was_full():
    """Whatever is left to be written, small or large."""
    done = runs("""
        from nmsolve.torch.pruning.dense_copies import DenseCopies

        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
        for lengths in ((500, 3, 2000, 3), (1000, 1000, 3, 99), (900, 2000), (1, 3000), (2047, 2)):
            tensors = [torch.randn(length) for length in lengths]
            before = [tensor.clone() for tensor in tensors]
            refused = 0
            with DenseCopies(None) as copies:
                for tensor in tensors:
                    try:
                        copies.keep([tensor])
                    except nmsolve.InputError:
                        refused += 1
                        continue
                    tensor.zero_()
                copies.put_back()
            print(all(map(torch.equal, tensors, before)), refused)
    """)
    assert done.stdout.split("\n") == ["True 1"] * 5 + [""]
    assert not done.stderr


def test_no_folder_for_temporary_files():
    done = runs("""
        tempfile._candidate_tempdir_list = lambda: ["/nowhere/at/all"]
        try:
            nmt.adaprune_(model, "2:4", items)
        except nmsolve.InputError as error:
            print(error)
        print(all(map(torch.equal, model.parameters(), before)))
    """)
    said, same = done.stdout.splitlines()
    assert "dense weights are kept in a temporary file" in said
    assert "offload=" in said
    assert same == "True"


def test_a_kill_leaves_no_file(tmp_path):
    """In the middle of the model, with weights of two layers on disk."""
    done = runs(
        """
        def die(module, args):
            if bool((model[1].weight == 0).any()):
                print(len(os.listdir(sys.argv[1])), flush=True)
                os.kill(os.getpid(), signal.SIGKILL)

        model[2].register_forward_pre_hook(die)
        nmt.adaprune_(model, "2:4", items, offload=sys.argv[1])
        """,
        tmp_path,
    )
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == "0\n"
    assert not list(tmp_path.iterdir())
