"""nmt.TrainerCallback in the real Trainer of transformers: what is trained, against plain loops."""

import pytest
import torch
import torch.nn.functional as F
import transformers

import nmsolve
import nmsolve.torch as nmt
from tests.checkpoint.snapshots import differing, snapshot
from tests.training.hugging_face_models import (
    METHODS,
    MODELS,
    InOrder,
    adamw,
    batches,
    bert,
    examples,
    gpt2,
    trainer_of,
)


def test_plans():
    """Groups of Conv1D lie along its first axis, and the head that shares the embedding's weight is
    left dense.
    """
    plan = {entry.name: entry for entry in nmt.plan(gpt2(), "2:4T")}
    assert {name: entry.axis for name, entry in plan.items() if entry.pattern} == {
        f"transformer.h.0.{name}": 0
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    assert {entry.kind for entry in plan.values() if entry.pattern} == {"Conv1D"}
    assert "tied to transformer.wte, a Embedding" in plan["lm_head"].reason
    plan = nmt.plan(bert(), "2:4T")
    assert len(plan.planned) == 7
    assert {entry.name: entry.reason for entry in plan}[
        "classifier"
    ] == "2 output channels do not consist of blocks of 4"
    assert len(nmt.plan(bert(), "2:4").planned) == 8


@pytest.mark.parametrize("pattern", ["2:4", "2:4T"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", ["SRSTE", "Fixed", "LBC"])
def test_trains_and_is_saved(tmp_path, name, pattern, method):
    """The loss falls, masks move, and what save_pretrained writes is sparse and computes the
    same.
    """
    model = MODELS[name](dropout=0.1)
    if (pattern, method) == ("2:4T", "LBC"):
        with pytest.raises(nmsolve.PatternError, match=r"layer .*2:4T"):
            nmt.sparsify_(model, pattern, METHODS[method])
        return
    sparse = nmt.sparsify_(model, pattern, METHODS[method])
    trainer = trainer_of(model, tmp_path / "run", sparse, max_steps=24)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before
    stats = sparse.stats()
    assert stats.step == 24
    assert stats.density == 0.5
    assert (stats.flips > 0) == (method != "Fixed")
    if method == "Fixed":
        assert not any(layer.weight[~layer.masked.mask].any() for layer in sparse.layers)
    if method == "LBC":  # all is kept until t_f, and then half
        assert stats.flips == stats.weights // 2
        assert stats.mean_density > 0.5
    assert nmt.verify(model, sparse.plan).ok
    assert sparse.finalize_().ok
    assert nmt.verify(model, sparse.plan).density == 0.5
    assert not any(
        "mask" in key or "progress" in key or "parametrizations" in key
        for key in model.state_dict()
    )
    model.save_pretrained(tmp_path / "saved")
    loaded = type(model).from_pretrained(tmp_path / "saved")
    assert nmt.verify(loaded, sparse.plan).ok
    assert differing(loaded.state_dict(), model.state_dict()) == []
    ids = torch.stack([example["input_ids"] for example in examples(model)])
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
    if name == "gpt2":
        assert loaded.lm_head.weight is loaded.transformer.wte.weight


@pytest.mark.parametrize("pattern", ["2:4", "2:4T"])
@pytest.mark.parametrize("name", MODELS)
def test_srste_written_out(tmp_path, name, pattern):
    """W∘E forward and backward, λ γ (1 − E)∘W taken from the weights, AdamW on clipped gradients,
    new masks: without nmsolve's hooks, and with a decay that is large enough to be missed.
    """
    model = MODELS[name]()
    sparse = nmt.sparsify_(model, pattern, nmt.SRSTE(decay=5.0))
    trainer_of(
        model, tmp_path, sparse, InOrder, optimizer=adamw(model), max_grad_norm=0.5, max_steps=8
    ).train()

    plain = MODELS[name]()
    optimizer = adamw(plain)
    scheduler = transformers.get_linear_schedule_with_warmup(optimizer, 0, 8)
    entries = sparse.plan.planned
    weights = [plain.get_submodule(entry.name).weight for entry in entries]

    def solved():
        axes = [entry.axis for entry in entries]
        turned = [
            w.detach() if axis else w.detach().T for w, axis in zip(weights, axes, strict=True)
        ]
        masks = [nmt.solve(w, pattern).mask for w in turned]
        return [mask if axis else mask.T for mask, axis in zip(masks, axes, strict=True)]

    masks = solved()
    for batch in batches(plain, steps=8):
        dense = [w.detach().clone() for w in weights]
        with torch.no_grad():
            torch._foreach_mul_(weights, masks)
        plain(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        rate = optimizer.param_groups[0]["lr"]
        with torch.no_grad():
            for w, whole, mask in zip(weights, dense, masks, strict=True):
                w.copy_(whole - rate * 5.0 * ~mask * whole)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        masks = solved()

    for layer, w, mask in zip(sparse.layers, weights, masks, strict=True):
        assert torch.equal(layer.masked.mask, mask), layer.path
        torch.testing.assert_close(layer.weight, w.detach(), rtol=1e-5, atol=1e-6)
    assert sparse.stats().flips > 0


@pytest.mark.parametrize(
    ("name", "method", "variant"),
    [
        *((name, method, "accumulated and clipped") for name in MODELS for method in METHODS),
        *(("bert", method, "plain") for method in ("SRSTE", "Fixed", "LBC")),
        *(("gpt2", method, "bf16") for method in ("SRSTE", "Fixed", "LBC")),
    ],
)
def test_same_as_a_plain_loop(tmp_path, name, method, variant):
    """Bit for bit: what the Trainer does around an optimizer's step changes nothing about the
    masks.
    """
    accumulated = 2 if variant == "accumulated and clipped" else 1
    norm = 0.3 if variant == "accumulated and clipped" else 0.0
    autocast = variant == "bf16"

    def loss_of(outputs, labels, num_items_in_batch=None):
        """The mean over all that is accumulated, as the Trainer defines it."""
        logits = outputs.logits.float()
        return (
            F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum")
            / num_items_in_batch
        )

    model = MODELS[name]()
    sparse = nmt.sparsify_(model, "2:4", METHODS[method])
    trainer = trainer_of(
        model,
        tmp_path,
        sparse,
        InOrder,
        optimizer=adamw(model),
        lr_scheduler_type="linear",
        warmup_steps=3,
        gradient_accumulation_steps=accumulated,
        max_grad_norm=norm,
        bf16=autocast,
    )
    trainer.compute_loss_func = loss_of
    trainer.train()

    plain = MODELS[name]()
    optimizer = adamw(plain)
    same = nmt.sparsify_(plain, "2:4", METHODS[method]).attach(optimizer)
    scheduler = transformers.get_linear_schedule_with_warmup(optimizer, 3, 12)
    plain.train()
    rows = batches(plain, steps=12 * accumulated)
    for step in range(12):
        parts = rows[accumulated * step :][:accumulated]
        count = sum(part["labels"].numel() for part in parts)
        for part in parts:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                outputs = plain(input_ids=part["input_ids"])
            loss_of(outputs, part["labels"], count).backward()
        if norm:
            torch.nn.utils.clip_grad_norm_(plain.parameters(), norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

    assert differing(snapshot(model), snapshot(plain)) == []
    assert sparse.stats() == same.stats()
    assert sparse.stats().step == 12
    assert all(layer.parameter.dtype == torch.float32 for layer in sparse.layers)
    assert (sparse.stats().flips > 0) == (method != "Fixed")
    assert sparse.finalize_().ok


@pytest.mark.parametrize("name", MODELS)
def test_the_trainers_own_optimizer(tmp_path, name):
    """Masks change no parameter's group: the same names decay as without."""

    def groups(masked):
        model = MODELS[name]()
        if masked:
            nmt.sparsify_(model, "2:4")
        trainer = trainer_of(model, tmp_path, weight_decay=0.1)
        optimizer = trainer.create_optimizer()
        names = {
            id(p): n.replace("parametrizations.", "").replace(".original", "")
            for n, p in model.named_parameters()
        }
        return [
            (group["weight_decay"], {names[id(p)] for p in group["params"]})
            for group in optimizer.param_groups
        ]

    assert groups(masked=True) == groups(masked=False)
    assert any("attn.c_attn.weight" in n or "query.weight" in n for n in groups(masked=True)[0][1])


@pytest.mark.parametrize("name", MODELS)
def test_gradient_checkpointing(tmp_path, name):
    """Activations that are computed again see the same masks."""
    states, passes = [], []
    for checkpointing in (False, True):
        model = MODELS[name]()
        sparse = nmt.sparsify_(model, "2:4")
        seen = []
        sparse.layers[0].module.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        if checkpointing and hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable()
        elif checkpointing:  # its name in older versions
            model.gradient_checkpointing_enable({"use_reentrant": False})
        trainer_of(model, tmp_path, sparse, InOrder, max_steps=6).train()
        states.append(snapshot(model))
        passes.append(len(seen))
    assert passes == [6, 12]
    assert differing(*states) == []
