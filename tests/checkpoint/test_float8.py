"""float8 checkpoints: weights that are pruned through their float32, and scales that decide whether
their numbers compare.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import nmsolve
from nmsolve import checkpoint
from nmsolve.checkpoint.scales import Companions
from nmsolve.checkpoint.stored import Stored
from nmsolve.elements import as_type
from tests.checkpoint.checkpoint_files import weights
from tests.checkpoint.hostile_files import tensor as entry
from tests.checkpoint.hostile_files import write_safetensors
from tests.core.small_types import small

STORED = {
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip


def as_tensor(W: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(W.view(np.uint8)).view(getattr(torch, W.dtype.name))


@pytest.mark.parametrize("text", ["2:4", "2:4T", "4:8T"])
@pytest.mark.parametrize("dtype", STORED)
def test_a_float8_weight_is_pruned_as_its_float32(dtype: str, text: str, tmp_path: Path) -> None:
    W = small(STORED[dtype], (24, 32), 1)
    rest = {"fc.bias": torch.ones(24), "fc.weight_scale": torch.tensor(0.5)}
    save_file({"fc.weight": as_tensor(W), **rest}, tmp_path / "dense.safetensors")
    report = checkpoint.prune(tmp_path / "dense.safetensors", tmp_path / "sparse.safetensors", text)
    best = nmsolve.solve(W.astype(np.float32), text)
    (pruned,) = report.pruned
    assert (pruned.name, pruned.dtype, pruned.status) == ("fc.weight", dtype, "optimal")
    assert (pruned.objective, pruned.bound) == (best.objective, best.bound)
    assert pruned.total == np.abs(W.astype(np.float64)).sum()
    sparse = load_file(tmp_path / "sparse.safetensors")
    codes = sparse["fc.weight"].view(torch.uint8).numpy()
    assert sparse["fc.weight"].dtype == getattr(torch, STORED[dtype])
    assert np.array_equal(codes, np.where(best.mask, W.view(np.uint8), 0))  # +0, and no bit of −0
    assert all(torch.equal(sparse[name], value) for name, value in rest.items())
    assert np.array_equal(
        checkpoint.open_masks(tmp_path / "sparse.safetensors")["fc.weight"], best.mask
    )
    assert checkpoint.verify(tmp_path / "sparse.safetensors").ok
    assert checkpoint.verify(tmp_path / "sparse.safetensors", text).ok
    assert not checkpoint.verify(tmp_path / "dense.safetensors", text).ok
    checkpoint.report(
        tmp_path / "sparse.safetensors",
        tmp_path / "page.html",
        against=tmp_path / "dense.safetensors",
    )


def test_what_is_no_number_is_named(tmp_path: Path) -> None:
    W = small("float8_e5m2", (8, 16), 2)
    W.view(np.uint8)[3, 5] = 0xFC
    save_file({"fc.weight": as_tensor(W)}, tmp_path / "dense.safetensors")
    with pytest.raises(nmsolve.InputError, match=r"'fc.weight'.*\[3, 5\] is -inf"):
        checkpoint.prune(tmp_path / "dense.safetensors", tmp_path / "sparse.safetensors", "2:4")


def test_a_weight_that_strays_from_its_mask_is_seen(tmp_path: Path) -> None:
    W = small("float8_e4m3fn", (8, 16), 3)
    save_file({"fc.weight": as_tensor(W)}, tmp_path / "dense.safetensors")
    checkpoint.prune(tmp_path / "dense.safetensors", tmp_path / "sparse.safetensors", "2:4")
    whole = bytearray((tmp_path / "sparse.safetensors").read_bytes())
    start = len(whole) - W.nbytes
    mask = checkpoint.open_masks(tmp_path / "sparse.safetensors")["fc.weight"]
    for code, strays in ((0x80, 0), (0x01, 1), (0xFF, 1)):  # −0, the smallest number, NaN
        whole[start + int(np.flatnonzero(~mask)[0])] = code
        (tmp_path / "sparse.safetensors").write_bytes(whole)
        found = {check.name: check for check in checkpoint.verify(tmp_path / "sparse.safetensors")}
        assert found["fc.weight"].strays == strays


@pytest.mark.parametrize(
    ("dtype", "shape", "word"),
    [
        ("F8_E8M0", [8, 8], "powers of two"),
        ("F4", [8, 16], "packed"),
        ("F6_E2M3", [8, 32], "packed"),
        ("F6_E3M2", [8, 32], "packed"),
    ],
)
def test_what_cannot_be_pruned_stays_dense(
    dtype: str, shape: list[int], word: str, tmp_path: Path
) -> None:
    size = {"F8_E8M0": 64, "F4": 64}.get(dtype, 192)
    header = {
        "fc1.weight": entry([8, 8], 0, 256),
        "fc2.weight": entry(shape, 256, 256 + size, dtype),
    }
    data = weights(8, 8).tobytes() + bytes(range(size))
    write_safetensors(tmp_path / "dense.safetensors", header, data)
    report = checkpoint.prune(
        tmp_path / "dense.safetensors",
        tmp_path / "sparse.safetensors",
        "2:4",
        include=["fc1", "fc2.weight"],
    )
    assert [t.name for t in report.pruned] == ["fc1.weight"]
    (reason,) = (t.reason for t in report.dense)
    assert reason.startswith(f"dtype {dtype} is not solved; ")
    assert word in reason
    assert (tmp_path / "sparse.safetensors").read_bytes().endswith(bytes(range(size)))


@pytest.mark.parametrize("name", ["float8_e4m3fn", "int4", "float8_e8m0fnu", "float4_e2m1fn"])
def test_arrays_whose_type_np_save_forgot_stay_dense(name: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "dense.npz", known=weights(8, 8), lost=small(name, (8, 8), 4))
    report = checkpoint.prune(tmp_path / "dense.npz", tmp_path / "sparse.npz", "2:4")
    assert [t.name for t in report.pruned] == ["known"]
    assert "a float8 or int4 that np.save stored lost its name" in str(report.dense[0].reason)


def test_arrays_that_np_save_cannot_read_back_say_so(tmp_path: Path) -> None:
    np.save(tmp_path / "dense.npy", small("float8_e5m2", (8, 8), 5))
    np.savez(tmp_path / "dense.npz", known=weights(8, 8), lost=small("float8_e5m2", (8, 8), 5))
    for name in ("dense.npy", "dense.npz"):
        with pytest.raises(
            nmsolve.InputError, match=rf"{name}.*it is a float8_e5m2.*save its float32"
        ):
            checkpoint.prune(tmp_path / name, tmp_path / f"sparse-{name}", "2:4")


#: Scales of a weight (256, 384): their shape, and the patterns that they let through.
ROWWISE, BLOCKS = {"2:4", "4:8", "16:32"}, {"2:4T", "4:8T", "16:32T"}
SCALES = {
    "of the tensor": ((), ROWWISE | BLOCKS),
    "of the tensor, as a vector": ((1,), ROWWISE | BLOCKS),
    "of the tensor, as a matrix": ((1, 1), ROWWISE | BLOCKS),
    "of every row": ((256, 1), ROWWISE),
    "of every row, as a vector": ((256,), ROWWISE),
    "of every column": ((1, 384), set()),
    "of every column, as a vector": ((384,), set()),
    "of every entry": ((256, 384), set()),
    "of blocks of 128": ((2, 3), ROWWISE | BLOCKS),
    "of blocks of 128, or of 96 columns": ((256, 3), ROWWISE),
    "of groups of 16": ((256, 24), {"2:4", "4:8"}),
    "of groups of 2": ((256, 192), set()),
    "of blocks of 4 rows": ((64, 1), ROWWISE | {"2:4T"}),
    "of a number of columns that fits nothing": ((256, 5), set()),
    "of another length": ((100,), set()),
    "of none": ((0,), set()),
    "of three axes": ((256, 3, 1), set()),
}


@pytest.mark.parametrize("case", SCALES)
def test_scales_let_through_what_they_do_not_change(case: str, tmp_path: Path) -> None:
    shape, through = SCALES[case]
    for name in (
        "fc.weight_scale",
        "fc.weight_scale_inv",
        "fc.scale_weight",
        "fc.weight._scale",
        "fc.scale",
        "fc.in_proj_scales",
    ):
        found = Companions(
            {"fc.weight": (256, 384), "fc.bias": (256,), "fc.input_scale": (), name: shape}
        )
        weight = Stored(
            name="fc.weight",
            dtype="F8_E4M3",
            element=as_type("float8_e4m3fn"),
            shape=(256, 384),
            start=0,
            size=0,
        )
        for text in ROWWISE | BLOCKS:
            reason = found.reason(weight, 1, 0, nmsolve.Pattern.parse(text))
            assert (reason is None) == (text in through), (name, text, reason)
            assert reason is None or (name in reason and "dequantise" in reason)


@settings(max_examples=150)
@given(data=st.data())
def test_where_scales_let_a_pattern_through_it_is_the_best_of_the_weights(
    data: st.DataObject,
) -> None:
    """Blocks of any width that a power of two or an even division can have; the mask of q against
    that of q × s.
    """
    shape = data.draw(st.sampled_from([(24, 48), (32, 40), (16, 16), (40, 24)]))
    pattern = nmsolve.Pattern.parse(data.draw(st.sampled_from(["2:4", "4:8", "2:4T", "4:8T"])))
    axis = data.draw(st.sampled_from([0, 1]))
    widths = [
        data.draw(
            st.sampled_from([w for w in range(1, size + 1) if size % w == 0 or w & (w - 1) == 0])
        )
        for size in shape
    ]
    scales = tuple(-(-size // width) for size, width in zip(shape, widths, strict=True))
    stored = scales[:1] if scales[1] == 1 and data.draw(st.booleans()) else scales
    weight = Stored(
        name="w", dtype="F8_E5M2", element=as_type("float8_e5m2"), shape=shape, start=0, size=0
    )
    if (
        Companions({"w": shape, "w_scale": stored}).reason(weight, axis, 1 - axis, pattern)
        is not None
    ):
        return
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    q, s = small("float8_e4m3fn", shape, 8).astype(float), 2.0 ** rng.integers(-9, 9, scales)
    dense = q * np.kron(s, np.ones(widths))[: shape[0], : shape[1]]
    given, wanted = (np.moveaxis(array, axis, -1) for array in (q, dense))
    mask = nmsolve.solve(given, pattern).mask
    assert np.abs(wanted)[mask].sum() == pytest.approx(
        nmsolve.solve(wanted, pattern).objective, rel=1e-12
    )


def test_a_vector_of_scales_beside_a_square_weight_may_be_of_rows_or_of_columns() -> None:
    weight = Stored(
        name="w", dtype="F8_E4M3", element=as_type("float8_e4m3fn"), shape=(8, 8), start=0, size=0
    )
    reason = Companions({"w": (8, 8), "w_scale": (8,)}).reason(weight, 1, 0, nmsolve.Pattern(2, 4))
    assert reason is not None
    assert "not known" in reason


def test_experts_have_scales_of_their_own() -> None:
    shapes = {
        "experts.up": (4, 64, 32),
        "experts.up_scale": (4, 1, 1),
        "experts.down": (4, 32, 64),
        "experts.down_scale": (4, 32, 1),
    }
    found, pattern = Companions(shapes), nmsolve.Pattern.parse("2:4T")
    up, down = (
        Stored(
            name=name,
            dtype="F8_E5M2",
            element=as_type("float8_e5m2"),
            shape=shapes[name],
            start=0,
            size=0,
        )
        for name in ("experts.up", "experts.down")
    )
    assert found.reason(up, 2, 1, pattern) is None
    assert "experts.down_scale" in str(found.reason(down, 2, 1, pattern))
    assert found.reason(down, 2, 1, nmsolve.Pattern(2, 4)) is None


@pytest.mark.parametrize(
    "name",
    [
        "fc1.amax",
        "fc1.s",
        "fc1.w_absmax",
        "fc1_scale",
        "fc1_weight_scale",
        "weight_scale",
        "scales.fc1",
    ],
)
def test_scales_under_any_name_keep_it_dense(name: str, tmp_path: Path) -> None:
    """One number a column, which changes the best mask, beside the weight, above it, or somewhere
    else.
    """
    made = {
        "fc1.weight": as_tensor(small("float8_e4m3fn", (8, 16), 6)),
        "fc2.weight": torch.from_numpy(weights(8, 8)),
    }
    save_file({**made, name: torch.ones(1, 16)}, tmp_path / "dense.safetensors")
    report = checkpoint.prune(
        tmp_path / "dense.safetensors", tmp_path / "sparse.safetensors", "2:4"
    )
    assert [t.name for t in report.pruned] == ["fc2.weight"]
    assert "dequantise it first" in {t.name: str(t.reason) for t in report.dense}["fc1.weight"]


@pytest.mark.parametrize(
    "name", ["weight_zero_point", "weight_bitmask", "weight.absmax", "weight_g_idx"]
)
def test_what_else_changes_a_weight_keeps_it_dense(name: str, tmp_path: Path) -> None:
    made = {
        "fc1.weight": as_tensor(small("float8_e4m3fn", (8, 8), 6)),
        "fc2.weight": torch.from_numpy(weights(8, 8)),
    }
    save_file({**made, f"fc1.{name}": torch.ones(8)}, tmp_path / "dense.safetensors")
    report = checkpoint.prune(
        tmp_path / "dense.safetensors", tmp_path / "sparse.safetensors", "2:4"
    )
    assert [t.name for t in report.pruned] == ["fc2.weight"]
    assert "dequantise it first" in {t.name: str(t.reason) for t in report.dense}["fc1.weight"]


def test_a_mask_of_stored_numbers_is_the_mask_of_the_weights(tmp_path: Path) -> None:
    """A layer as DeepSeek stores it, and one with a scale a row: pruned, they are as their
    dequantised weights would be.
    """
    q, r = small("float8_e4m3fn", (256, 256), 7), small("float8_e4m3fn", (256, 256), 8)
    rng = np.random.default_rng(7)
    blocks, rows = (
        rng.uniform(0.1, 9, (2, 2)).astype(np.float32),
        rng.uniform(0.1, 9, (256, 1)).astype(np.float32),
    )
    layers = {
        "fc1.weight": as_tensor(q),
        "fc1.weight_scale_inv": torch.from_numpy(blocks),
        "fc2.weight": as_tensor(r),
    }
    layers["fc2.weight_scale"] = torch.from_numpy(rows)
    (tmp_path / "dense").mkdir()
    save_file(layers, tmp_path / "dense" / "model.safetensors")
    (tmp_path / "dense" / "config.json").write_text(
        json.dumps({"quantization_config": {"quant_method": "fp8"}})
    )
    wide = {
        "fc1": np.kron(blocks.astype(np.float64), np.ones((128, 128))) * q.astype(float),
        "fc2": rows * r.astype(float),
    }
    for text, pruned in (("2:4", {"fc1.weight", "fc2.weight"}), ("2:4T", {"fc1.weight"})):
        report = checkpoint.prune(tmp_path / "dense", tmp_path / text, text)
        assert {t.name for t in report.pruned} == pruned
        for name in pruned:
            mask = checkpoint.open_masks(tmp_path / text)[name]
            dequantised = np.abs(wide[name[:3]])
            assert dequantised[mask].sum() == pytest.approx(
                nmsolve.solve(dequantised, text).objective, rel=1e-12
            )
    reason = str({t.name: t.reason for t in report.dense}["fc2.weight"])
    assert reason.startswith("its scales fc2.weight_scale (256, 1) differ within blocks of 4")
