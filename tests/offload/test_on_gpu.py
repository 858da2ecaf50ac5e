"""Models beside a GPU are computed with there. These tests exist only where there is one."""

import pytest
import torch

import nmsolve.torch as nmt
from tests.checkpoint.snapshots import differing, snapshot
from tests.offload.offloaded_models import empty_like, items_of, made, run, same, save

if torch.cuda.is_available():
    NAMES = ["mlp", "conv", "tied llama", "t5"]

    def there(items):
        return [
            {k: v.cuda() for k, v in item.items()} if isinstance(item, dict) else item.cuda()
            for item in items
        ]

    @pytest.mark.gpu
    @pytest.mark.parametrize("name", NAMES)
    def test_models_in_files_and_on_the_host(name, tmp_path):
        """Pruned bit for bit as the model that is all on the GPU."""
        items, expected = there(items_of(name)), made(name).cuda()
        host, empty = made(name), empty_like(made(name))
        source = save(made(name), tmp_path / "source")
        torch.manual_seed(0)
        nmt.sparsegpt_(expected, "2:4", items)
        with nmt.offloaded(host, device="cuda"):
            assert all(p.is_cuda for p in host.parameters())
            torch.manual_seed(0)
            nmt.sparsegpt_(host, "2:4", items)
            assert torch.equal(run(host, items[0]), run(expected, items[0]))
        assert not any(p.is_cuda for p in host.parameters())
        with nmt.offloaded(empty, source, out=tmp_path / "out", device="cuda"):
            torch.manual_seed(0)
            nmt.sparsegpt_(empty, "2:4", items)
        assert not differing(snapshot(host), snapshot(expected.cpu()))
        assert not same(expected, tmp_path / "out")

    @pytest.mark.gpu
    def test_recurrent_weights(tmp_path):
        model = made("past").requires_grad_(False)
        ids, empty = torch.randint(0, 32, (5, 4)), empty_like(model)
        with nmt.offloaded(empty, save(model, tmp_path / "source"), device="cuda"):
            for _ in range(2):
                found = run(empty, ids.cuda()).cpu()
                torch.testing.assert_close(found, run(model, ids), rtol=1e-2, atol=1e-3)
