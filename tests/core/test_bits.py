"""One order of bits for every mask that is stored; what earlier versions stored is read as they
meant it.
"""

import copy
import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import nmsolve.torch as nmt
from nmsolve import checkpoint
from nmsolve.bits import has_loose_bits, pack, packed_size, unpack
from nmsolve.errors import InputError

#: A 3 × 6 mask of 1:3, and how it is stored: by files at any time and by state dicts now; by state
#: dicts before.
MASK = torch.tensor(
    [
        [True, False, False, True, False, False],
        [False, False, True, False, True, False],
        [False, True, False, False, False, True],
    ]
)
LITTLE, BIG = [0x09, 0x25, 0x02], [0x90, 0xA4, 0x40]
#: A state dict of version 0.1.0, after two steps of STE.
OLD = {
    "0.weight": torch.tensor([[2.0, 0, 1, 8, 7, 6], [0, 1, 2, 6, 8, 7], [1, 2, 0, 7, 6, 8]]),
    "0.weight_mask": torch.tensor(BIG, dtype=torch.uint8),
    "0.weight_progress": torch.tensor([1, 3, 0, 0, 2, 2, 0, 0, 2 / 3], dtype=torch.float64),
}
#: A file of masks of version 0.1.0.
OLD_FILE = (
    '{"__metadata__":{"format":"nmsolve-masks","version":"1","masks":'
    '"{\\"w\\":{\\"shape\\":[3,6],\\"pattern\\":\\"1:3\\",\\"axis\\":1,\\"padding\\":\\"error\\"}}"},'
    '"w":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}'
)


def net():
    model = nn.Sequential(nn.Linear(6, 3, bias=False))
    return model, nmt.sparsify_(model, "1:3", nmt.STE())


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    st.integers(0, 2**32),
    st.sampled_from(["little", "big"]),
)
def test_packing_is_a_bijection(shape, seed, order):
    mask = np.random.default_rng(seed).random(shape) < 0.5
    packed = pack(mask) if order == "little" else np.packbits(mask)
    assert packed.size == packed_size(mask.size)
    assert (unpack(packed, tuple(shape), order) == mask).all()
    assert not has_loose_bits(packed, mask.size, order)
    for index, kept in enumerate(mask.reshape(-1)):
        assert (
            bool(packed[index // 8] >> (index % 8 if order == "little" else 7 - index % 8) & 1)
            == kept
        )
    for bit in range(8):
        beyond = (bit if order == "little" else 7 - bit) >= (mask.size % 8 or 8)
        packed[-1] ^= 1 << bit
        assert has_loose_bits(packed, mask.size, order) == beyond
        packed[-1] ^= 1 << bit


def test_any_strides():
    mask = np.random.default_rng(0).random((4, 6)) < 0.5
    assert (unpack(pack(mask.T), (6, 4)) == mask.T).all()


def test_state_dicts_and_files_have_the_same_bits(tmp_path):
    model, sparse = net()
    sparse.layers[0].masked.mask.copy_(MASK)
    assert model.state_dict()["0.weight_mask"].tolist() == LITTLE == pack(MASK.numpy()).tolist()
    header = OLD_FILE.encode() + b" " * (-len(OLD_FILE) % 8)
    (tmp_path / "old.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + bytes(LITTLE)
    )
    assert (checkpoint.open_masks(tmp_path / "old.safetensors")["w"] == MASK.numpy()).all()
    found = checkpoint.verify(tmp_path / "old.safetensors")
    assert found.ok


def test_a_state_dict_of_today():
    """As it was saved, bit by bit; and what is saved again is in the order of now, and is read as
    such.
    """
    model, sparse = net()
    model.load_state_dict(copy.deepcopy(OLD))
    masked = sparse.layers[0].masked
    assert torch.equal(masked.mask, MASK)
    assert (masked.progress.step, masked.progress.refreshes) == (2, 2)
    saved = model.state_dict()
    assert saved["0.weight_mask"].tolist() == LITTLE
    assert saved["0.weight_progress"].tolist() == [1, -3, 0, 0, 2, 2, 0, 0, 2 / 3]
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    again, other = net()
    again.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.layers[0].masked.mask, MASK)


def test_a_model_on_meta_takes_both():
    for state in (OLD, _loaded().state_dict()):
        empty = net()[0].to("meta")
        assert empty.state_dict()["0.weight_mask"].shape == (3,)
        empty.load_state_dict(state, assign=True)
        assert torch.equal(empty[0].parametrizations.weight[0].mask, MASK)


def _loaded():
    model = net()[0]
    model.load_state_dict(OLD)
    return model


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_distributed_checkpoints_of_today_and_before(tmp_path):
    """They are loaded into tensors that are there, in place, so a mark must not change a size."""
    from torch.distributed import checkpoint as dcp

    dcp.save(copy.deepcopy(OLD), checkpoint_id=tmp_path / "old")
    dcp.save(_loaded().state_dict(), checkpoint_id=tmp_path / "new")
    for name in ("old", "new"):
        model, sparse = net()
        state = model.state_dict()
        dcp.load(state, checkpoint_id=tmp_path / name)
        model.load_state_dict(state)
        assert torch.equal(sparse.layers[0].masked.mask, MASK), name
        assert sparse.layers[0].masked.progress.step == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"0.weight_mask": torch.tensor([0x09, 0x25, 0x82], dtype=torch.uint8)},
            "bits after its last entry",
        ),
        ({"0.weight_progress": OLD["0.weight_progress"]}, "bits after its last entry"),
        (
            {"0.weight_progress": torch.tensor([2, -3, 0, 0, 0, 0, 0, 0, 0], dtype=torch.float64)},
            "pattern 2:3, the plan 1:3",
        ),
    ],
)
def test_what_is_in_neither_order_is_refused(change, message):
    model, _ = net()
    state = _loaded().state_dict()
    with pytest.raises(InputError, match=message):
        model.load_state_dict(state | change)
