"""nmt.TrainerCallback in the real Trainer of transformers: masks against plain loops, clipping, accumulation, resuming, logs."""

import gc

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch.utils.data import DataLoader

import nmsolve
import nmsolve.torch as nmt

METHODS = {
    "SRSTE": nmt.SRSTE(),
    "every 3": nmt.SRSTE(update_every=3),
    "STE": nmt.STE(),
    "Fixed": nmt.Fixed(),
    "LBC": nmt.LBC(t_i=0, t_f=9),
}


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Models this small spend their time on waking threads, and the Trainer on collecting garbage among all that is imported."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(threads)


def bert(dropout=0.0):
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=32,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            num_labels=2,
        )
    )


def gpt2(dropout=0.0):
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=32,
            n_positions=16,
            n_embd=16,
            n_layer=1,
            n_head=2,
            bos_token_id=0,
            eos_token_id=0,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
            resid_pdrop=dropout,
        )
    )


MODELS = {"bert": bert, "gpt2": gpt2}


def examples(model, count=32):
    """Sentences of eight tokens: whether the first is odd for BERT, a next token that is one more than the last for GPT-2."""
    first = torch.randint(0, 32, (count, 1), generator=torch.Generator().manual_seed(0))
    ids = (first + torch.arange(8)) % 32
    labels = ids if isinstance(model, transformers.GPT2LMHeadModel) else ids[:, 0] % 2
    return [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]


class InOrder(transformers.Trainer):
    """The Trainer, without the shuffling."""

    def get_train_dataloader(self):
        return self.accelerator.prepare(DataLoader(self.train_dataset, self.args.train_batch_size, collate_fn=self.data_collator))


def trainer_of(
    model, folder, sparse=None, kind=transformers.Trainer, callbacks=(), optimizer=None, compute_metrics=None, **options
):
    options = {
        "max_steps": 12,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 4,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **options,
    }
    data = examples(model)
    return kind(
        model=model,
        args=transformers.TrainingArguments(output_dir=str(folder), **options),
        train_dataset=data,
        eval_dataset=data[:8],
        callbacks=[*([] if sparse is None else [nmt.TrainerCallback(sparse)]), *callbacks],
        optimizers=(optimizer, None),
        compute_metrics=compute_metrics,
    )


def batches(model, size=4, steps=12):
    loader = DataLoader(examples(model), size, collate_fn=transformers.default_data_collator)
    rows = list(loader)
    return [rows[i % len(rows)] for i in range(steps)]


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)


def state_of(model):
    """Weights, masks, counters and LBC's candidates."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def differing(found, expected):
    assert found.keys() == expected.keys()
    return [name for name in found if not torch.equal(found[name], expected[name])]


def hooks_of(trainer):
    """How many of them the Trainer's optimizer has; the Trainer itself puts on none."""
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    return len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)


class At(transformers.TrainerCallback):
    """Calls a function after a step."""

    def __init__(self, step, call):
        self.step, self.call = step, call

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.call(control)


def stopped(control):
    control.should_save = control.should_training_stop = True


def test_plans():
    """Groups of Conv1D lie along its first axis, and the head that shares the embedding's weight is left dense."""
    plan = {entry.name: entry for entry in nmt.plan(gpt2(), "2:4T")}
    assert {name: entry.axis for name, entry in plan.items() if entry.pattern} == {
        f"transformer.h.0.{name}": 0 for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    assert {entry.kind for entry in plan.values() if entry.pattern} == {"Conv1D"}
    assert "tied to transformer.wte, a Embedding" in plan["lm_head"].reason
    plan = nmt.plan(bert(), "2:4T")
    assert len(plan.planned) == 7
    assert {entry.name: entry.reason for entry in plan}["classifier"] == "2 output channels do not consist of blocks of 4"
    assert len(nmt.plan(bert(), "2:4").planned) == 8


@pytest.mark.parametrize("pattern", ["2:4", "2:4T"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", ["SRSTE", "Fixed", "LBC"])
def test_trains_and_is_saved(tmp_path, name, pattern, method):
    """The loss falls, masks move, and what save_pretrained writes is sparse and computes the same."""
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
    assert not any("mask" in key or "progress" in key or "parametrizations" in key for key in model.state_dict())
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
    """W∘E forward and backward, λ γ (1 − E)∘W taken from the weights, AdamW on clipped gradients, new masks: without nmsolve's
    hooks, and with a decay that is large enough to be missed."""
    model = MODELS[name]()
    sparse = nmt.sparsify_(model, pattern, nmt.SRSTE(decay=5.0))
    trainer_of(model, tmp_path, sparse, InOrder, optimizer=adamw(model), max_grad_norm=0.5, max_steps=8).train()

    plain = MODELS[name]()
    optimizer = adamw(plain)
    scheduler = transformers.get_linear_schedule_with_warmup(optimizer, 0, 8)
    entries = sparse.plan.planned
    weights = [plain.get_submodule(entry.name).weight for entry in entries]

    def solved():
        axes = [entry.axis for entry in entries]
        turned = [w.detach() if axis else w.detach().T for w, axis in zip(weights, axes, strict=True)]
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
    """Bit for bit: what the Trainer does around an optimizer's step changes nothing about the masks."""
    accumulated = 2 if variant == "accumulated and clipped" else 1
    norm = 0.3 if variant == "accumulated and clipped" else 0.0
    autocast = variant == "bf16"

    def loss_of(outputs, labels, num_items_in_batch=None):
        """The mean over all that is accumulated, as the Trainer defines it."""
        logits = outputs.logits.float()
        return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum") / num_items_in_batch

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

    assert differing(state_of(model), state_of(plain)) == []
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
        names = {id(p): n.replace("parametrizations.", "").replace(".original", "") for n, p in model.named_parameters()}
        return [(group["weight_decay"], {names[id(p)] for p in group["params"]}) for group in optimizer.param_groups]

    assert groups(masked=True) == groups(masked=False)
    assert any("attn.c_attn.weight" in n or "query.weight" in n for n in groups(masked=True)[0][1])


@pytest.mark.parametrize(
    ("name", "pattern", "method", "part"),
    [
        ("bert", "2:4T", "SRSTE", None),
        ("bert", "2:4", "Fixed", None),
        ("bert", "2:4", "LBC", None),
        ("gpt2", "2:4", "SRSTE", None),
        ("gpt2", "2:4T", "every 3", None),
        ("gpt2", "2:4", "LBC", "transformer"),
        ("bert", "2:4", "STE", "bert"),
    ],
)
def test_resumes_bit_for_bit(tmp_path, name, pattern, method, part):
    """Twelve steps, and seven, a new process' worth of new objects, and five more."""

    def started(folder, *callbacks):
        model = MODELS[name](dropout=0.1)
        sparse = nmt.sparsify_(model if part is None else getattr(model, part), pattern, METHODS[method])
        return model, sparse, trainer_of(model, folder, sparse, callbacks=callbacks, seed=3)

    model, sparse, trainer = started(tmp_path / "whole")
    trainer.train()

    _, halfway, first = started(tmp_path / "parts", At(7, stopped))
    first.train()
    assert halfway.stats().step == 7

    resumed, continued, second = started(tmp_path / "parts")
    second.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-7"))
    assert differing(state_of(resumed), state_of(model)) == []
    assert continued.stats() == sparse.stats()
    assert continued.stats().step == 12
    moments = [
        [tensor for entry in t.optimizer.state_dict()["state"].values() for tensor in entry.values()] for t in (trainer, second)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*moments, strict=True))
    assert hooks_of(second) == (1, 1)
    assert continued.finalize_().ok
    sparse.finalize_()
    assert differing(state_of(resumed), state_of(model)) == []


def test_resumes_from_the_latest_checkpoint(tmp_path):
    """resume_from_checkpoint=True, with checkpoints that save_steps and save_total_limit choose."""
    model = bert()
    sparse = nmt.sparsify_(model, "2:4", METHODS["LBC"])
    saving = {"save_strategy": "steps", "save_steps": 5, "save_total_limit": 1}
    trainer_of(model, tmp_path, sparse, **saving).train()
    assert sparse.stats().step == 12
    again = bert()
    resumed = nmt.sparsify_(again, "2:4", METHODS["LBC"])
    trainer_of(again, tmp_path, resumed, max_steps=15, **saving).train(resume_from_checkpoint=True)
    assert resumed.stats().step == 15
    assert resumed.finalize_().ok


def test_checkpoints_of_another_plan(tmp_path):
    """An error that names the layer, and nothing is loaded."""
    model = bert()
    trainer_of(model, tmp_path, nmt.sparsify_(model, "2:4"), callbacks=[At(5, stopped)]).train()
    other = bert()
    sparse = nmt.sparsify_(other, "1:4")
    before = state_of(other)
    trainer = trainer_of(other, tmp_path, sparse)
    with pytest.raises(
        nmsolve.InputError, match=r"nothing was loaded into the sparsified model: bert\..*pattern 2:4, the plan 1:4"
    ):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert differing(state_of(other), before) == []
    assert sparse.stats().step == 0


def test_logs(tmp_path):
    """In every entry of the history, those of evaluation too, and in what later callbacks are given."""

    class Seen(transformers.TrainerCallback):
        entries = ()

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.entries = (*self.entries, dict(logs))

    seen = Seen()
    model = bert()
    sparse = nmt.sparsify_(model, "2:4T")
    flips = {}
    record = [At(step, lambda control, step=step: flips.update({step: sparse.stats().flips})) for step in (4, 8, 12)]
    options = {"eval_strategy": "steps", "eval_steps": 6, "logging_steps": 4}
    trainer = trainer_of(model, tmp_path, sparse, callbacks=[seen, *record], **options)
    trainer.train()
    history = trainer.state.log_history
    assert [entry["step"] for entry in history if "loss" in entry] == [4, 8, 12]
    assert [entry["step"] for entry in history if "eval_loss" in entry] == [6, 12]
    for entry in (*history, *seen.entries):
        assert entry["nm_density"] == 0.5
        assert 0 <= entry["nm_sad_share"] < 0.5
        assert entry["nm_flips"] >= 0
    assert len(seen.entries) == len(history)
    assert {entry["step"]: entry["nm_flips"] for entry in history if "loss" in entry} == flips
    assert 0 < flips[4] <= flips[8] <= flips[12]
    stats = sparse.stats()
    assert history[-1]["nm_flips"] == stats.flips
    assert history[-1]["nm_sad_share"] == stats.sad_share
    sparse.finalize_()
    trainer.evaluate()  # logs too, of a model without masks
    assert "eval_loss" in trainer.state.log_history[-1]
    assert "nm_density" not in trainer.state.log_history[-1]


def test_evaluation_before_training(tmp_path):
    model = bert()
    sparse = nmt.sparsify_(model, "2:4")
    trainer = trainer_of(model, tmp_path, sparse, eval_on_start=True, eval_strategy="steps", eval_steps=12)
    before = state_of(model)
    trainer.evaluate()
    assert differing(state_of(model), before) == []
    assert trainer.state.log_history[-1]["nm_flips"] == 0
    trainer.train()
    assert sparse.stats().step == 12


def test_errors(tmp_path):
    for wrong in (bert(), None, nmt.SRSTE()):
        with pytest.raises(nmsolve.InputError, match=f"what sparsify_ returned, got {type(wrong).__name__}"):
            nmt.TrainerCallback(wrong)
    sparse = nmt.sparsify_(bert(), "2:4")
    trainer = trainer_of(bert(), tmp_path, sparse)
    with pytest.raises(nmsolve.InputError, match="a BertForSequenceClassification that is not, and does not contain, the model"):
        trainer.train()
    assert hooks_of(trainer) == (0, 0)
    assert sparse.stats().step == 0

    model = bert()
    optimizer = adamw(model.classifier)
    trainer = trainer_of(model, tmp_path, nmt.sparsify_(model, "2:4"), optimizer=optimizer)
    with pytest.raises(nmsolve.InputError, match=r"AdamW does not hold the weight of bert\.encoder"):
        trainer.train()
    assert hooks_of(trainer) == (0, 0)


def test_frozen_layers(tmp_path):
    """Their masks stay, and the Trainer's optimizer need not hold them."""
    model = bert()
    model.bert.requires_grad_(False)
    sparse = nmt.sparsify_(model, "2:4")
    before = state_of(model.bert)
    trainer_of(model, tmp_path, sparse).train()
    assert differing(state_of(model.bert), before) == []
    layers = sparse.stats().layers
    assert layers["classifier"].step == 12
    assert layers["bert.pooler.dense"].step == 0
    assert sparse.finalize_().ok


def test_trains_twice(tmp_path):
    """With the same Trainer, and then with another: masks are attached once, to the last."""
    model = gpt2()
    sparse = nmt.sparsify_(model, "2:4", nmt.STE())
    trainer = trainer_of(model, tmp_path, sparse)
    trainer.train()
    assert hooks_of(trainer) == (1, 1)
    assert sparse.stats().step == 12
    trainer.train()
    assert hooks_of(trainer) == (1, 1)
    assert sparse.stats().step == 24
    assert sparse.stats().layers["transformer.h.0.mlp.c_fc"].refreshes == 24
    other = trainer_of(model, tmp_path, sparse)
    other.train()
    assert hooks_of(trainer) == (0, 0)
    assert hooks_of(other) == (1, 1)
    assert sparse.stats().step == 36


def test_attached_by_hand_too(tmp_path):
    """An attach before training is replaced, not doubled."""
    model = bert()
    optimizer = adamw(model)
    sparse = nmt.sparsify_(model, "2:4", nmt.SRSTE(decay=5.0)).attach(optimizer)
    trainer = trainer_of(model, tmp_path / "a", sparse, InOrder, optimizer=optimizer)
    trainer.train()
    assert hooks_of(trainer) == (1, 1)
    assert sparse.stats().step == 12
    plain = bert()
    same = nmt.sparsify_(plain, "2:4", nmt.SRSTE(decay=5.0))
    trainer_of(plain, tmp_path / "b", same, InOrder, optimizer=adamw(plain)).train()
    assert differing(state_of(model), state_of(plain)) == []


@pytest.mark.parametrize("method", ["SRSTE", "LBC"])
def test_best_model_at_end(tmp_path, method):
    """Masks, counters and candidates are those of the best checkpoint."""
    model = bert()
    sparse = nmt.sparsify_(model, "2:4", METHODS[method])
    states, scores = {}, iter((0.1, 0.9, 0.2))
    trainer = trainer_of(
        model,
        tmp_path,
        sparse,
        callbacks=[At(step, lambda control, step=step: states.update({step: state_of(model)})) for step in (5, 10)],
        compute_metrics=lambda prediction: {"quality": next(scores)},
        max_steps=15,
        load_best_model_at_end=True,
        metric_for_best_model="quality",
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=5,
        save_steps=5,
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-10")
    assert sparse.stats().step == 10
    assert differing(state_of(model), states[10]) == []
    assert differing(states[10], states[5])
    assert sparse.finalize_().ok


def test_after_finalize(tmp_path):
    """The Trainer goes on as if there never had been masks."""
    model = bert()
    sparse = nmt.sparsify_(model, "2:4", nmt.SRSTE(decay=5.0))
    options = {"kind": InOrder, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    trainer = trainer_of(model, tmp_path / "sparse", sparse, **options)
    trainer.train()
    assert sparse.finalize_().ok
    assert hooks_of(trainer) == (0, 0)
    with pytest.raises(nmsolve.InputError, match="finalized"):
        trainer.train()
    trainer.remove_callback(nmt.TrainerCallback)

    plain = bert()
    plain.load_state_dict(state_of(model))
    trainer_of(plain, tmp_path / "plain", **options).train()
    trainer.optimizer = trainer.lr_scheduler = None  # a fresh one, as the plain model's
    trainer.train()
    assert hooks_of(trainer) == (0, 0)
    assert differing(state_of(model), state_of(plain)) == []
    assert not nmt.verify(model, sparse.plan).ok


def test_resumes_dense_after_finalize(tmp_path):
    """Parameters of a finalized model have the order of a plain one's, by which optimizers save what they know of them."""
    model = bert()
    nmt.sparsify_(model, "2:4").finalize_()
    trainer_of(model, tmp_path, callbacks=[At(5, stopped)]).train()
    plain = bert()
    assert list(model.state_dict()) == list(plain.state_dict())
    trainer_of(plain, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))


def test_finalized_while_training(tmp_path):
    """By a callback at some step: the steps after it are dense ones, and logs say nothing of masks."""
    model = bert()
    sparse = nmt.sparsify_(model, "2:4")
    reports = []
    trainer = trainer_of(model, tmp_path, sparse, callbacks=[At(6, lambda control: reports.append(sparse.finalize_()))])
    trainer.train()
    assert [report.ok for report in reports] == [True]
    assert hooks_of(trainer) == (0, 0)
    assert trainer.state.global_step == 12
    assert ["nm_density" in entry for entry in trainer.state.log_history] == [True, False, False, False]
    assert not nmt.verify(model, sparse.plan).ok


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
        states.append(state_of(model))
        passes.append(len(seen))
    assert passes == [6, 12]
    assert differing(*states) == []
