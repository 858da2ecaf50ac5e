"""float8 tensors: solved as the float32 numbers that they are, on a CPU and by the engines of
devices; what cannot be, says so.
"""

from __future__ import annotations

import pytest
import torch

import nmsolve
import nmsolve.torch as nmt
from tests.tensors import engines
from tests.tensors.engines import on_every_place

FLOATS8 = [
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
]  # fmt: skip
on_every_float8 = pytest.mark.parametrize("dtype", FLOATS8, ids=str)


def weights(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Any finite numbers of a float8, each code as often as the others; of the powers of two, those
    around 1.
    """
    first, last = (120, 136) if dtype == torch.float8_e8m0fnu else (0, 256)
    code = torch.randint(
        first, last, shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.uint8
    )
    return torch.where(torch.isfinite(code.view(dtype).float()), code, 0).view(dtype)


@on_every_float8
@pytest.mark.parametrize("text", ["2:4", "2:4T", "4:8T"])
def test_on_the_host_they_are_their_float32(text: str, dtype: torch.dtype) -> None:
    W = weights(dtype, 16, 32)
    for tensor in (W, W.t().contiguous().t(), W.view(2, 8, 32), weights(dtype, 8, 16, 3, 3)):
        for scored in (False, True):
            found, same = (
                nmt.solve(A, text, A if scored else None, duals=True)
                for A in (tensor, tensor.float())
            )
            assert torch.equal(found.mask, same.mask)
            assert (found.objective, found.bound, found.status) == (
                same.objective,
                same.bound,
                same.status,
            )
            assert found.verify(tensor, *([tensor] if scored else [])).ok


@on_every_place
@on_every_float8
@pytest.mark.parametrize("text", ["2:4", "2:4T"])
def test_on_a_device_they_are_their_float32(
    text: str, dtype: torch.dtype, place: tuple[str, str]
) -> None:
    W = weights(dtype, 12, 20)
    for scores in (None, W):
        found = engines.solve(place, W, text, scores, padding="dense", duals=text == "2:4")
        wide = None if scores is None else scores.float()
        same = engines.solve(place, W.float(), text, wide, padding="dense", duals=text == "2:4")
        assert torch.equal(found.mask, same.mask)
        assert (found.objective, found.bound, found.status) == (
            same.objective,
            same.bound,
            same.status,
        )
        assert found.objective == pytest.approx(
            nmt.solve(W, text, scores, padding="dense").objective, rel=1e-6
        )
        assert found.verify(W, *([] if scores is None else [scores])).ok


#: Codes that are no numbers, and how they read.
WRONG = [
    (torch.float8_e4m3fn, 0x7F, "nan"), (torch.float8_e4m3fn, 0xFF, "nan"),
    (torch.float8_e5m2, 0x7C, "inf"),
    (torch.float8_e5m2, 0xFC, "-inf"), (torch.float8_e4m3fnuz, 0x80, "nan"),
    (torch.float8_e5m2fnuz, 0x80, "nan"),
    (torch.float8_e8m0fnu, 0xFF, "nan"),
]  # fmt: skip


@on_every_place
@pytest.mark.parametrize(("dtype", "code", "value"), WRONG)
def test_what_is_no_number_is_named(
    dtype: torch.dtype, code: int, value: str, place: tuple[str, str]
) -> None:
    W = weights(dtype, 8, 16)
    W.view(torch.uint8)[3, 5] = code
    for text in ("2:4", "2:4T"):
        for scored in (False, True):
            name = "scores" if scored else "weights"
            with pytest.raises(nmsolve.InputError, match=rf"{name}\[3, 5\] is {value}"):
                nmt.solve(W, text, W if scored else None)
            with pytest.raises(nmsolve.InputError, match=rf"{name}\[3, 5\] is {value}"):
                engines.solve(place, W, text, W if scored else None)


@on_every_float8
def test_verify_counts_what_is_not_zero(dtype: torch.dtype) -> None:
    W = torch.arange(256, dtype=torch.uint8).view(16, 16).view(dtype)
    wide = W.float()
    assert nmt.verify(W, "1:4") == nmt.verify(wide, "1:4")
    assert nmt.verify(W, "1:4").density == (wide != 0).float().mean()


def test_plans_leave_them_alone_and_what_trains_refuses_them() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    plan, dense = nmt.plan(model, "2:4"), model[0].weight.detach().clone()
    model.to(torch.float8_e4m3fn)
    assert {layer.reason for layer in nmt.plan(model, "2:4").layers} == {
        "torch.float8_e4m3fn cannot be trained"
    }
    calibration = [torch.randn(4, 8)]
    for change in (
        lambda: nmt.sparsify_(model, plan, nmt.Fixed()),
        lambda: nmt.sparsegpt_(model, plan, calibration),
        lambda: nmt.adaprune_(model, plan, calibration),
    ):
        with pytest.raises(
            nmsolve.InputError,
            match=r"layer 0 has dtype torch\.float8_e4m3fn, which cannot be trained",
        ):
            change()
    assert torch.equal(model[0].weight.float(), dense.to(torch.float8_e4m3fn).float())
    assert not nmt.verify(model, plan).ok


def test_scores_of_a_layer_may_be_float8() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    scores = weights(torch.float8_e4m3fn, 8, 8)
    nmt.sparsify_(model, "2:4", nmt.Fixed(), scores={"0": scores}).finalize_()
    assert torch.equal(model[0].weight != 0, nmt.solve(scores, "2:4", scores).mask)
