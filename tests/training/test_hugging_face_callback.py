"""nmt.TrainerCallback over the life of a Trainer: logs, wrong models, frozen layers, training
again, finalizing.
"""

import pytest

import nmsolve
import nmsolve.torch as nmt
from tests.checkpoint.snapshots import differing, hooks_of, snapshot
from tests.training.hugging_face_models import At, InOrder, Logged, adamw, bert, gpt2, trainer_of


def test_logs(tmp_path):
    """In every entry of the history, those of evaluation too, and in what later callbacks are
    given.
    """
    seen = Logged()
    model = bert()
    sparse = nmt.sparsify_(model, "2:4T")
    flips = {}
    record = [
        At(step, lambda control, step=step: flips.update({step: sparse.stats().flips}))
        for step in (4, 8, 12)
    ]
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


def test_reporters_see_the_numbers_of_a_callback_that_goes_first(tmp_path):
    """The Trainer puts its own reporters before the callbacks that it is given."""
    model = bert()
    sparse = nmt.sparsify_(model, "2:4")
    reporter = Logged()
    trainer = trainer_of(model, tmp_path, callbacks=[reporter])
    trainer.callback_handler.callbacks.insert(0, nmt.TrainerCallback(sparse))
    trainer.train()
    assert sparse.stats().step == 12
    assert reporter.entries
    assert all(entry["nm_density"] == 0.5 for entry in reporter.entries)


def test_evaluation_before_training(tmp_path):
    model = bert()
    sparse = nmt.sparsify_(model, "2:4")
    trainer = trainer_of(
        model, tmp_path, sparse, eval_on_start=True, eval_strategy="steps", eval_steps=12
    )
    before = snapshot(model)
    trainer.evaluate()
    assert differing(snapshot(model), before) == []
    assert trainer.state.log_history[-1]["nm_flips"] == 0
    trainer.train()
    assert sparse.stats().step == 12


def test_errors(tmp_path):
    for wrong in (bert(), None, nmt.SRSTE()):
        with pytest.raises(
            nmsolve.InputError, match=f"what sparsify_ returned, got {type(wrong).__name__}"
        ):
            nmt.TrainerCallback(wrong)
    sparse = nmt.sparsify_(bert(), "2:4")
    trainer = trainer_of(bert(), tmp_path, sparse)
    with pytest.raises(
        nmsolve.InputError,
        match="the BertForSequenceClassification is not, and does not contain, the model that was",
    ):
        trainer.train()
    assert hooks_of(trainer.optimizer) == (0, 0)
    assert sparse.stats().step == 0

    model = bert()
    optimizer = adamw(model.classifier)
    trainer = trainer_of(model, tmp_path, nmt.sparsify_(model, "2:4"), optimizer=optimizer)
    with pytest.raises(
        nmsolve.InputError, match=r"AdamW does not hold the weight of bert\.encoder"
    ):
        trainer.train()
    assert hooks_of(trainer.optimizer) == (0, 0)


def test_frozen_layers(tmp_path):
    """Their masks stay, and the Trainer's optimizer need not hold them."""
    model = bert()
    model.bert.requires_grad_(False)
    sparse = nmt.sparsify_(model, "2:4")
    before = snapshot(model.bert)
    trainer_of(model, tmp_path, sparse).train()
    assert differing(snapshot(model.bert), before) == []
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
    assert hooks_of(trainer.optimizer) == (1, 1)
    assert sparse.stats().step == 12
    trainer.train()
    assert hooks_of(trainer.optimizer) == (1, 1)
    assert sparse.stats().step == 24
    assert sparse.stats().layers["transformer.h.0.mlp.c_fc"].refreshes == 24
    other = trainer_of(model, tmp_path, sparse)
    other.train()
    assert hooks_of(trainer.optimizer) == (0, 0)
    assert hooks_of(other.optimizer) == (1, 1)
    assert sparse.stats().step == 36


def test_attached_by_hand_too(tmp_path):
    """An attach before training is replaced, not doubled."""
    model = bert()
    optimizer = adamw(model)
    sparse = nmt.sparsify_(model, "2:4", nmt.SRSTE(decay=5.0)).attach(optimizer)
    trainer = trainer_of(model, tmp_path / "a", sparse, InOrder, optimizer=optimizer)
    trainer.train()
    assert hooks_of(trainer.optimizer) == (1, 1)
    assert sparse.stats().step == 12
    plain = bert()
    same = nmt.sparsify_(plain, "2:4", nmt.SRSTE(decay=5.0))
    trainer_of(plain, tmp_path / "b", same, InOrder, optimizer=adamw(plain)).train()
    assert differing(snapshot(model), snapshot(plain)) == []


def test_after_finalize(tmp_path):
    """The Trainer goes on as if there never had been masks."""
    model = bert()
    sparse = nmt.sparsify_(model, "2:4", nmt.SRSTE(decay=5.0))
    options = {"kind": InOrder, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    trainer = trainer_of(model, tmp_path / "sparse", sparse, **options)
    trainer.train()
    assert sparse.finalize_().ok
    assert hooks_of(trainer.optimizer) == (0, 0)
    with pytest.raises(nmsolve.InputError, match="finalized"):
        trainer.train()
    trainer.remove_callback(nmt.TrainerCallback)

    plain = bert()
    plain.load_state_dict(snapshot(model))
    trainer_of(plain, tmp_path / "plain", **options).train()
    trainer.optimizer = trainer.lr_scheduler = None  # a fresh one, as the plain model's
    trainer.train()
    assert hooks_of(trainer.optimizer) == (0, 0)
    assert differing(snapshot(model), snapshot(plain)) == []
    assert not nmt.verify(model, sparse.plan).ok


def test_finalized_while_training(tmp_path):
    """By a callback at some step: the steps after it are dense ones, and logs say nothing of
    masks.
    """
    model = bert()
    sparse = nmt.sparsify_(model, "2:4")
    reports = []
    trainer = trainer_of(
        model,
        tmp_path,
        sparse,
        callbacks=[At(6, lambda control: reports.append(sparse.finalize_()))],
    )
    trainer.train()
    assert [report.ok for report in reports] == [True]
    assert hooks_of(trainer.optimizer) == (0, 0)
    assert trainer.state.global_step == 12
    assert ["nm_density" in entry for entry in trainer.state.log_history] == [
        True,
        False,
        False,
        False,
    ]
    assert not nmt.verify(model, sparse.plan).ok
