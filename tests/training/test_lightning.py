"""nmt.LightningCallback in Lightning's real Trainer, against plain loops: closures, clipping,
accumulation, precisions.
"""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

import nmsolve.torch as nmt
from tests.checkpoint.snapshots import differing, hooks_of, snapshot
from tests.training.lightning_models import (
    MARKS,
    METHODS,
    NETS,
    Net,
    fitted,
    loader,
    mlp,
    optimizer_of,
)

pytestmark = MARKS


def loss_of(net):
    with torch.no_grad():
        return float(sum(F.cross_entropy(net(x), y) for x, y in loader()))


@pytest.mark.parametrize("whole", [False, True], ids=["a model inside", "the module itself"])
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize(
    ("name", "pattern", "method"),
    [
        ("mlp", "2:4", "SRSTE"),
        ("mlp", "2:4T", "Fixed"),
        ("conv", "2:4T", "STE"),
        ("conv", "2:4", "LBC"),
        ("conv", "1:4", "Fixed"),
    ],
)
def test_trains_and_is_saved(tmp_path, name, pattern, method, optimizer, whole):
    """The loss falls, masks move, and what the Trainer saves at the end is sparse and loads into a
    plain module.
    """
    module = Net(NETS[name](), optimizer)
    sparse = nmt.sparsify_(module if whole else module.net, pattern, METHODS[method])
    before = loss_of(module.net)
    trainer = fitted(module, sparse)
    assert loss_of(module.net) < before
    stats = sparse.stats()
    assert stats.step == 16
    assert stats.density == (0.25 if pattern == "1:4" else 0.5)
    assert (stats.flips > 0) == (method != "Fixed")
    if method == "Fixed":
        assert not any(layer.weight[~layer.masked.mask].any() for layer in sparse.layers)
    assert all(path.startswith("net.") == whole for path in stats.layers)
    assert sparse.finalize_().ok
    assert nmt.verify(sparse.model, sparse.plan).density == stats.density
    assert hooks_of(trainer.optimizers[0]) == (0, 0)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    loaded = Net.load_from_checkpoint(tmp_path / "end.ckpt", net=NETS[name](), optimizer=optimizer)
    assert differing(loaded.state_dict(), module.state_dict()) == []
    assert nmt.verify(loaded if whole else loaded.net, sparse.plan).ok


@pytest.mark.parametrize("pattern", ["2:4", "2:4T"])
def test_srste_written_out(pattern):
    """W∘E forward and backward, λ (1 − E)∘W added to the gradients of this very batch, SGD, new
    masks: without nmsolve's hooks.
    """
    module = Net(mlp())
    sparse = nmt.sparsify_(module.net, pattern, nmt.SRSTE(decay=0.5))
    fitted(module, sparse)

    net = mlp()
    optimizer = optimizer_of(net, "SGD")
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    weights = [net[1].weight, net[3].weight]
    masks = [nmt.solve(w.detach(), pattern).mask for w in weights]
    for _ in range(2):
        for x, y in loader():
            hidden = F.relu(
                F.linear(
                    x.flatten(1),
                    weights[0] + (weights[0] * masks[0] - weights[0]).detach(),
                    net[1].bias,
                )
            )
            loss = F.cross_entropy(
                F.linear(
                    hidden, weights[1] + (weights[1] * masks[1] - weights[1]).detach(), net[3].bias
                ),
                y,
            )
            optimizer.zero_grad()
            loss.backward()
            for w, mask in zip(weights, masks, strict=True):
                w.grad += 0.5 * ~mask * w.detach()
            optimizer.step()
            masks = [nmt.solve(w.detach(), pattern).mask for w in weights]
        scheduler.step()

    for layer, w, mask in zip(sparse.layers, weights, masks, strict=True):
        assert torch.equal(layer.masked.mask, mask)
        torch.testing.assert_close(layer.weight, w.detach(), rtol=1e-5, atol=1e-6)
    assert sparse.stats().flips > 0


VARIANTS = {
    "plain": {},
    "accumulated": {"accumulate_grad_batches": 2},
    "clipped": {"gradient_clip_val": 0.3, "accumulate_grad_batches": 2},
    "clipped by value": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "bf16-true": {"precision": "bf16-true"},
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(
    ("method", "optimizer", "variant"),
    [
        *((method, optimizer, "plain") for method in METHODS for optimizer in ("SGD", "AdamW")),
        *(("LBC", "SGD", variant) for variant in VARIANTS if variant != "plain"),
        *(("SRSTE", "SGD", variant) for variant in VARIANTS if variant != "plain"),
        ("SRSTE", "AdamW", "clipped"),
        ("Fixed", "AdamW", "clipped"),
        ("Fixed", "SGD", "bf16-true"),
    ],
)
def test_same_as_a_plain_loop(name, method, optimizer, variant):
    """Bit for bit: decay and scores see the gradients that Lightning computes in the optimizer's
    closure, accumulated and clipped.
    """
    accumulated = VARIANTS[variant].get("accumulate_grad_batches", 1)
    clipping, mixed, half = (
        variant.startswith("clipped"),
        variant == "bf16-mixed",
        variant == "bf16-true",
    )
    module = Net(NETS[name](), optimizer)
    sparse = nmt.sparsify_(module.net, "2:4", METHODS[method])
    fitted(module, sparse, max_epochs=2 * accumulated, **VARIANTS[variant])

    net = NETS[name]()
    same = nmt.sparsify_(net, "2:4", METHODS[method])
    if half:
        net.to(torch.bfloat16)
    steps = optimizer_of(net, optimizer)
    scheduler = torch.optim.lr_scheduler.StepLR(steps, 1, 0.5)
    same.attach(steps)
    for _ in range(2 * accumulated):
        for index, (x, y) in enumerate(loader()):
            with (
                torch.autocast("cpu", torch.bfloat16, cache_enabled=False)
                if mixed
                else nullcontext()
            ):
                loss = F.cross_entropy(net(x.to(torch.bfloat16) if half else x), y)
            (loss / accumulated).backward()
            if (index + 1) % accumulated:
                continue
            if clipping and variant != "clipped":
                torch.nn.utils.clip_grad_value_(net.parameters(), 0.01)
            elif clipping:
                torch.nn.utils.clip_grad_norm_(net.parameters(), 0.3)
            steps.step()
            steps.zero_grad()
        scheduler.step()

    assert differing(snapshot(module.net), snapshot(net)) == []
    assert sparse.stats() == same.stats()
    assert sparse.stats().step == 16
    assert {layer.weight.dtype for layer in sparse.layers} == {
        torch.bfloat16 if half else torch.float32
    }
    assert (sparse.stats().flips > 0) == (method != "Fixed")
    assert sparse.finalize_().ok
