"""Training with masks on a real GPU: every method moves its masks there, and packed products give
the dense ones' numbers.
"""

import pytest
import torch
from torch import nn

import nmsolve.torch as nmt
from tests.dispatch.layers import CUDA

if CUDA:
    METHODS = [
        nmt.Fixed(),
        nmt.STE(update_every=2),
        nmt.SRSTE(decay=0.01),
        nmt.SRSTE(decay=0.01, decoupled=False),
    ]

    def train(method, pattern, accelerate=False, device="cuda", steps=6, fused=False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(128, 256), nn.GELU(), nn.Linear(256, 128)).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
        sparse = nmt.sparsify_(model, pattern, method, accelerate=accelerate).attach(optimizer)
        generator = torch.Generator().manual_seed(1)
        losses = []
        for _ in range(steps):
            x = torch.randn(64, 128, generator=generator).to(device)
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                loss = (model(x) - x).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return model, sparse, losses

    @pytest.mark.gpu
    @pytest.mark.parametrize("fused", [False, True])
    @pytest.mark.parametrize("pattern", ["2:4", "2:4T", "4:8T"])
    @pytest.mark.parametrize("method", METHODS, ids=str)
    def test_methods_on_a_gpu(method, pattern, fused):
        model, sparse, losses = train(method, pattern, fused=fused)
        assert losses == pytest.approx(train(method, pattern, device="cpu")[2], rel=0.05)
        assert all(layer.masked.mask.is_cuda for layer in sparse.layers)
        state = model.state_dict()
        model.load_state_dict(state)
        assert sparse.finalize_().ok

    @pytest.mark.gpu
    def test_lbc_on_a_gpu():
        model, sparse, losses = train(nmt.LBC(t_i=0, t_f=5), "2:4")
        assert losses == pytest.approx(
            train(nmt.LBC(t_i=0, t_f=5), "2:4", device="cpu")[2], rel=0.05
        )
        assert sparse.layers[0].masked.candidates.scores.is_cuda
        model.load_state_dict(model.state_dict())
        assert sparse.finalize_().ok

    @pytest.mark.gpu
    @pytest.mark.parametrize("method", METHODS, ids=str)
    def test_packed_products_give_the_dense_numbers(method):
        _, dense, expected = train(method, "2:4T")
        _, packed, losses = train(method, "2:4T", accelerate=True)
        assert losses == pytest.approx(expected, rel=0.05)
        if any(nmt.backends()[name] for name in ("cusparselt", "cutlass")):
            assert all("packed" in reason for reason in packed.acceleration.values()), (
                packed.acceleration
            )
        assert dense.finalize_().ok
        assert packed.finalize_().ok
