"""nmt.LightningCallback in Lightning's real Trainer: closures, clipping, accumulation, precisions, resuming, several optimizers."""

import csv
from contextlib import nullcontext

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import nmsolve
import nmsolve.torch as nmt

pytestmark = [
    # Lightning's advice for machines with more cores: these datasets are eight batches.
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers:UserWarning"),
    # Lightning's own use of a name that torch has given up.
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
]

METHODS = {
    "SRSTE": nmt.SRSTE(decay=0.05),
    "every 3": nmt.SRSTE(update_every=3),
    "STE": nmt.STE(),
    "Fixed": nmt.Fixed(),
    "LBC": nmt.LBC(t_i=0, t_f=9),
    "LBC gradient": nmt.LBC(t_i=0, t_f=9, criterion="gradient"),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Models this small spend their time on waking threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4))


def conv():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)
    )


NETS = {"mlp": mlp, "conv": conv}


def optimizer_of(model, name, rate=None):
    if name == "AdamW":
        return torch.optim.AdamW(model.parameters(), lr=rate or 1e-2, weight_decay=0.1)
    return torch.optim.SGD(model.parameters(), lr=rate or 0.1, momentum=0.9, weight_decay=1e-3)


class Net(pl.LightningModule):
    """A network, with a learning rate that halves after every epoch."""

    def __init__(self, net, optimizer="SGD"):
        super().__init__()
        self.net = net
        self.optimizer = optimizer

    def training_step(self, batch, index):
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer = optimizer_of(self.net, self.optimizer)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


def loader():
    """Eight batches of four images, whose class is the channel that is brightest."""
    x = torch.randn(32, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, x.mean((2, 3)).argmax(1)), batch_size=4)


def trainer_of(sparse=None, *callbacks, **options):
    options = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        **options,
    }
    return pl.Trainer(callbacks=[*([] if sparse is None else [nmt.LightningCallback(sparse)]), *callbacks], **options)


def fitted(module, sparse=None, *callbacks, ckpt_path=None, **options):
    trainer = trainer_of(sparse, *callbacks, **options)
    trainer.fit(module, loader(), ckpt_path=ckpt_path)
    return trainer


def loss_of(net):
    with torch.no_grad():
        return float(sum(F.cross_entropy(net(x), y) for x, y in loader()))


def state_of(model):
    """Weights, masks, counters and LBC's candidates."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def differing(found, expected):
    assert found.keys() == expected.keys()
    return [name for name in found if not torch.equal(found[name], expected[name])]


def hooks_of(optimizer):
    """How many of them are on an optimizer; Lightning itself puts on none."""
    optimizer = getattr(optimizer, "optimizer", optimizer)
    return len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)


class At(pl.Callback):
    """Calls a function after some batches."""

    def __init__(self, steps, call):
        self.steps, self.call = steps, call

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step in self.steps:
            self.call(trainer)


@pytest.mark.parametrize("whole", [False, True], ids=["a model inside", "the module itself"])
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize(
    ("name", "pattern", "method"),
    [("mlp", "2:4", "SRSTE"), ("mlp", "2:4T", "Fixed"), ("conv", "2:4T", "STE"), ("conv", "2:4", "LBC"), ("conv", "1:4", "Fixed")],
)
def test_trains_and_is_saved(tmp_path, name, pattern, method, optimizer, whole):
    """The loss falls, masks move, and what the Trainer saves at the end is sparse and loads into a plain module."""
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
    """W∘E forward and backward, λ (1 − E)∘W added to the gradients of this very batch, SGD, new masks: without nmsolve's hooks."""
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
            hidden = F.relu(F.linear(x.flatten(1), weights[0] + (weights[0] * masks[0] - weights[0]).detach(), net[1].bias))
            loss = F.cross_entropy(F.linear(hidden, weights[1] + (weights[1] * masks[1] - weights[1]).detach(), net[3].bias), y)
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
    """Bit for bit: decay and scores see the gradients that Lightning computes in the optimizer's closure, accumulated and
    clipped."""
    accumulated = VARIANTS[variant].get("accumulate_grad_batches", 1)
    clipping, mixed, half = variant.startswith("clipped"), variant == "bf16-mixed", variant == "bf16-true"
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
            with torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if mixed else nullcontext():
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

    assert differing(state_of(module.net), state_of(net)) == []
    assert sparse.stats() == same.stats()
    assert sparse.stats().step == 16
    assert {layer.weight.dtype for layer in sparse.layers} == {torch.bfloat16 if half else torch.float32}
    assert (sparse.stats().flips > 0) == (method != "Fixed")
    assert sparse.finalize_().ok


@pytest.mark.parametrize("whole", [False, True], ids=["a model inside", "the module itself"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("name", "optimizer"), [("mlp", "SGD"), ("conv", "AdamW")])
def test_resumes_bit_for_bit(tmp_path, name, optimizer, method, whole):
    """Two epochs, and one, new objects, and another one."""

    def started():
        module = Net(NETS[name](), optimizer)
        pattern = "2:4" if "LBC" in method or name == "mlp" else "2:4T"
        return module, nmt.sparsify_(module if whole else module.net, pattern, METHODS[method])

    module, sparse = started()
    trainer = fitted(module, sparse)

    first, halfway = started()
    fitted(first, halfway, max_epochs=1).save_checkpoint(tmp_path / "first.ckpt")
    assert halfway.stats().step == 8

    resumed, continued = started()
    second = fitted(resumed, continued, ckpt_path=tmp_path / "first.ckpt")
    assert second.global_step == 16
    assert differing(state_of(resumed), state_of(module)) == []
    assert continued.stats() == sparse.stats()
    assert continued.stats().step == 16
    moments = [
        [value for entry in t.optimizers[0].state_dict()["state"].values() for value in entry.values() if value is not None]
        for t in (trainer, second)
    ]
    assert moments[0]
    assert all(torch.equal(a, b) for a, b in zip(*moments, strict=True))
    assert hooks_of(second.optimizers[0]) == (1, 1)
    assert continued.finalize_().ok
    sparse.finalize_()
    assert differing(state_of(resumed), state_of(module)) == []


def test_checkpoints_while_training(tmp_path):
    """Those of ModelCheckpoint, in the middle of an epoch and at its end, hold the masks of their steps."""
    module = Net(mlp())
    sparse = nmt.sparsify_(module.net, "2:4", nmt.STE())
    states = {}
    record = At((5, 10, 15), lambda trainer: states.update({trainer.global_step: state_of(module)}))
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=5, save_top_k=-1)
    fitted(module, sparse, record, saver, enable_checkpointing=True)
    for step in (5, 10, 15):
        other = Net(mlp())
        loaded = nmt.sparsify_(other.net, "2:4", nmt.STE())
        other.load_state_dict(torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)["state_dict"])
        assert loaded.stats().step == step
        assert differing(state_of(other), states[step]) == []


@pytest.mark.parametrize("part", ["", "net", "net.1"], ids=["the module itself", "a model inside", "a layer inside"])
def test_checkpoints_of_another_plan(tmp_path, part):
    """An error that names the layer, and nothing of the sparsified model is loaded."""

    def started(pattern):
        module = Net(mlp())
        return module, nmt.sparsify_(module.get_submodule(part), pattern)

    fitted(*started("2:4")).save_checkpoint(tmp_path / "end.ckpt")
    other, sparse = started("1:4")
    before = state_of(sparse.model)
    with pytest.raises(nmsolve.InputError, match=r"net\.1\.weight.*pattern 2:4, the plan 1:4"):
        fitted(other, sparse, ckpt_path=tmp_path / "end.ckpt")
    assert differing(state_of(sparse.model), before) == []
    assert sparse.stats().step == 0


def logged(folder):
    """The rows of CSVLogger, by step."""
    with (folder / "lightning_logs" / "version_0" / "metrics.csv").open() as file:
        return {int(row["step"]): row for row in csv.DictReader(file)}


@pytest.mark.parametrize("accumulated", [1, 2])
def test_logs(tmp_path, accumulated):
    """With every row that the Trainer logs, and as masks are after that step."""
    module = Net(mlp())
    sparse = nmt.sparsify_(module, "2:4T", nmt.STE())
    found = {}
    record = At(range(1, 17), lambda trainer: found.setdefault(trainer.global_step - 1, sparse.stats()))
    options = {"max_epochs": 2 * accumulated, "accumulate_grad_batches": accumulated, "log_every_n_steps": 3}
    fitted(module, sparse, record, logger=CSVLogger(tmp_path), **options)
    rows = logged(tmp_path)
    assert list(rows) == [2, 5, 8, 11, 14]
    for step, row in rows.items():
        assert row["loss"]
        assert float(row["nm_density"]) == 0.5
        assert float(row["nm_flips"]) == found[step].flips
        assert float(row["nm_sad_share"]) == pytest.approx(found[step].sad_share)
    assert float(rows[14]["nm_flips"]) > float(rows[2]["nm_flips"]) > 0


def test_logs_nothing(tmp_path):
    """Where the Trainer does not log, and in its rehearsal."""
    module = Net(mlp())
    sparse = nmt.sparsify_(module, "2:4")
    fitted(module, sparse, logger=CSVLogger(tmp_path), log_every_n_steps=0)
    assert sparse.stats().step == 16
    fitted(module, sparse, fast_dev_run=True)
    assert sparse.stats().step == 17


class Manual(pl.LightningModule):
    """Optimizers of its own, stepped by hand: one for each layer's weight, of which the second rests at every other batch, and
    one for biases."""

    def __init__(self, closure=False):
        super().__init__()
        self.automatic_optimization = False
        self.net = mlp()
        self.closure = closure

    def configure_optimizers(self):
        return optimizers_of(self.net)

    def training_step(self, batch, index):
        train(self.net, self.optimizers(), batch, index, self.closure, self.manual_backward)


def optimizers_of(net):
    weights = [p for p in net.parameters() if p.dim() == 2]
    first = torch.optim.SGD([weights[0]], lr=0.1, momentum=0.9)
    second = torch.optim.AdamW([weights[1]], lr=1e-2)
    return first, second, torch.optim.SGD([p for p in net.parameters() if p.dim() == 1], lr=0.1)


def train(net, optimizers, batch, index, closure, backward):
    x, y = batch
    first, second, biases = optimizers

    def compute():
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        backward(loss)
        return loss

    if closure:
        first.step(closure=compute)
    else:
        compute()
        first.step()
    biases.step()
    if index % 2:
        second.step()


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_several_optimizers(method, closure):
    """Each moves the masks of what it holds, when it steps."""
    module = Manual(closure)
    sparse = nmt.sparsify_(module, "2:4", METHODS[method])
    trainer = fitted(module, sparse, max_epochs=3)
    assert [hooks_of(optimizer) for optimizer in trainer.optimizers] == [(1, 1), (1, 1), (0, 0)]

    net = mlp()
    optimizers = optimizers_of(net)
    same = nmt.sparsify_(net, "2:4", METHODS[method]).attach(*optimizers)
    for _ in range(3):
        for index, batch in enumerate(loader()):
            train(net, optimizers, batch, index, closure, torch.Tensor.backward)
    assert differing(state_of(module.net), state_of(net)) == []
    assert [layer.step for layer in sparse.stats().layers.values()] == [24, 12]
    assert [layer.step for layer in same.stats().layers.values()] == [24, 12]
    assert sparse.finalize_().ok


def test_resumes_several_optimizers(tmp_path):
    module = Manual()
    sparse = nmt.sparsify_(module, "2:4")
    fitted(module, sparse)
    first = Manual()
    fitted(first, nmt.sparsify_(first, "2:4"), max_epochs=1).save_checkpoint(tmp_path / "first.ckpt")
    resumed = Manual()
    continued = nmt.sparsify_(resumed, "2:4")
    fitted(resumed, continued, ckpt_path=tmp_path / "first.ckpt")
    assert differing(state_of(resumed), state_of(module)) == []
    assert continued.stats() == sparse.stats()


def test_logs_of_several_optimizers(tmp_path):
    """Lightning counts batches for its logs, but the steps of all optimizers in global_step."""
    module = Manual()
    fitted(module, nmt.sparsify_(module, "2:4"), logger=CSVLogger(tmp_path), log_every_n_steps=4)
    rows = logged(tmp_path)
    assert list(rows) == [3, 7, 11, 15]
    assert all(row["nm_density"] == "0.5" for row in rows.values())


def test_errors():
    for wrong in (Net(mlp()), None, nmt.SRSTE()):
        with pytest.raises(nmsolve.InputError, match=f"what sparsify_ returned, got {type(wrong).__name__}"):
            nmt.LightningCallback(wrong)
    sparse = nmt.sparsify_(mlp(), "2:4")
    trainer = trainer_of(sparse)
    with pytest.raises(nmsolve.InputError, match="the Net is not, and does not contain, the model that was sparsified"):
        trainer.fit(Net(mlp()), loader())
    assert hooks_of(trainer.optimizers[0]) == (0, 0)
    assert sparse.stats().step == 0

    class Part(Net):
        def configure_optimizers(self):
            return optimizer_of(self.net[3], "SGD")

    module = Part(mlp())
    trainer = trainer_of(nmt.sparsify_(module, "2:4"))
    with pytest.raises(nmsolve.InputError, match=r"SGD does not hold the weight of net\.1"):
        trainer.fit(module, loader())
    assert hooks_of(trainer.optimizers[0]) == (0, 0)


def test_frozen_layers():
    """Their masks stay, and the optimizer need not hold them."""

    class Part(Net):
        def configure_optimizers(self):
            return optimizer_of(self.net[3], "SGD")

    module = Part(mlp())
    module.net[1].requires_grad_(False)
    sparse = nmt.sparsify_(module, "2:4")
    before = state_of(module.net[1])
    fitted(module, sparse)
    assert differing(state_of(module.net[1]), before) == []
    assert [layer.step for layer in sparse.stats().layers.values()] == [0, 16]
    assert sparse.finalize_().ok


def test_fits_twice():
    """With the same Trainer, and then with another: masks are attached once, to the last optimizer."""
    module = Net(mlp())
    sparse = nmt.sparsify_(module, "2:4", nmt.STE())
    trainer = fitted(module, sparse)
    first = trainer.optimizers[0]
    assert hooks_of(first) == (1, 1)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module, loader())
    assert hooks_of(trainer.optimizers[0]) == (1, 1)
    assert sparse.stats().step == 32
    assert sparse.stats().layers["net.1"].refreshes == 32
    last = trainer.optimizers[0]
    other = fitted(module, sparse, max_epochs=1)
    assert hooks_of(first) == hooks_of(last) == (0, 0)
    assert hooks_of(other.optimizers[0]) == (1, 1)
    assert sparse.stats().step == 40


def test_two_models_in_one_module():
    """Each with a plan, a method and a callback of its own, at the steps of one optimizer."""
    module = Net(mlp())
    first, second = nmt.sparsify_(module.net[1], "2:4T"), nmt.sparsify_(module.net[3], "1:4", nmt.Fixed())
    trainer = fitted(module, first, nmt.LightningCallback(second))
    assert hooks_of(trainer.optimizers[0]) == (2, 2)
    assert first.stats().step == second.stats().step == 16
    assert first.stats().flips > 0 == second.stats().flips
    assert first.finalize_().ok
    assert second.finalize_().ok


def test_after_finalize():
    """Another fit trains a plain module: no hooks, no masks, the numbers of one that never had them."""
    module = Net(mlp())
    sparse = nmt.sparsify_(module, "2:4")
    trainer = fitted(module, sparse)
    assert sparse.finalize_().ok
    assert hooks_of(trainer.optimizers[0]) == (0, 0)
    trainer.fit_loop.max_epochs = 4
    with pytest.raises(nmsolve.InputError, match="finalized"):
        trainer.fit(module, loader())
    plain = Net(mlp())
    plain.load_state_dict(state_of(module))
    assert hooks_of(fitted(module).optimizers[0]) == (0, 0)
    fitted(plain)
    assert differing(state_of(module), state_of(plain)) == []
    assert not nmt.verify(module, sparse.plan).ok


def test_finalized_while_training(tmp_path):
    """By a callback, at the end of an epoch: the steps after it are dense ones, and logs say nothing of masks. (Within an epoch
    Lightning repeats what was logged.)"""
    module = Net(mlp())
    sparse = nmt.sparsify_(module, "2:4")
    reports = []
    end = At((8,), lambda trainer: reports.append(sparse.finalize_()))
    trainer = fitted(module, sparse, end, logger=CSVLogger(tmp_path), log_every_n_steps=4)
    assert [report.ok for report in reports] == [True]
    assert hooks_of(trainer.optimizers[0]) == (0, 0)
    assert trainer.global_step == 16
    assert {step: row["nm_density"] for step, row in logged(tmp_path).items()} == {3: "0.5", 7: "0.5", 11: "", 15: ""}
    assert not nmt.verify(module, sparse.plan).ok
