"""Checkpoints of transformers' Trainer: resuming bit for bit, the best model, other plans, dense
models.
"""

import pytest
import torch

import nmsolve
import nmsolve.torch as nmt
from tests.checkpoint.snapshots import differing, hooks_of, snapshot
from tests.training.hugging_face_models import METHODS, MODELS, At, bert, stopped, trainer_of


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
        sparse = nmt.sparsify_(
            model if part is None else getattr(model, part), pattern, METHODS[method]
        )
        return model, sparse, trainer_of(model, folder, sparse, callbacks=callbacks, seed=3)

    model, sparse, trainer = started(tmp_path / "whole")
    trainer.train()

    _, halfway, first = started(tmp_path / "parts", At(7, stopped))
    first.train()
    assert halfway.stats().step == 7

    resumed, continued, second = started(tmp_path / "parts")
    second.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-7"))
    assert differing(snapshot(resumed), snapshot(model)) == []
    assert continued.stats() == sparse.stats()
    assert continued.stats().step == 12
    moments = [
        [
            tensor
            for entry in t.optimizer.state_dict()["state"].values()
            for tensor in entry.values()
        ]
        for t in (trainer, second)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*moments, strict=True))
    assert hooks_of(second.optimizer) == (1, 1)
    assert continued.finalize_().ok
    sparse.finalize_()
    assert differing(snapshot(resumed), snapshot(model)) == []


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
    before = snapshot(other)
    trainer = trainer_of(other, tmp_path, sparse)
    with pytest.raises(
        nmsolve.InputError,
        match=r"nothing was loaded into the sparsified model: bert\..*pattern 2:4, the plan 1:4",
    ):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert differing(snapshot(other), before) == []
    assert sparse.stats().step == 0


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
        callbacks=[
            At(step, lambda control, step=step: states.update({step: snapshot(model)}))
            for step in (5, 10)
        ],
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
    assert differing(snapshot(model), states[10]) == []
    assert differing(states[10], states[5])
    assert sparse.finalize_().ok


def test_resumes_dense_after_finalize(tmp_path):
    """Parameters of a finalized model have the order of a plain one's, by which optimizers save
    what they know of them.
    """
    model = bert()
    nmt.sparsify_(model, "2:4").finalize_()
    trainer_of(model, tmp_path, callbacks=[At(5, stopped)]).train()
    plain = bert()
    assert list(model.state_dict()) == list(plain.state_dict())
    trainer_of(plain, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
