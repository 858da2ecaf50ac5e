"""Small models, data and the Trainer of transformers, for the tests of nmt.TrainerCallback."""

import torch
import transformers
from torch.utils.data import DataLoader

import nmsolve.torch as nmt

METHODS = {
    "SRSTE": nmt.SRSTE(),
    "every 3": nmt.SRSTE(update_every=3),
    "STE": nmt.STE(),
    "Fixed": nmt.Fixed(),
    "LBC": nmt.LBC(t_i=0, t_f=9),
}


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
    """Sentences of eight tokens: whether the first is odd for BERT, a next token that is one more
    than the last for GPT-2.
    """
    first = torch.randint(0, 32, (count, 1), generator=torch.Generator().manual_seed(0))
    ids = (first + torch.arange(8)) % 32
    labels = ids if isinstance(model, transformers.GPT2LMHeadModel) else ids[:, 0] % 2
    return [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]


class InOrder(transformers.Trainer):
    """The Trainer, without the shuffling."""

    def get_train_dataloader(self):
        return self.accelerator.prepare(
            DataLoader(
                self.train_dataset, self.args.train_batch_size, collate_fn=self.data_collator
            )
        )


def trainer_of(
    model,
    folder,
    sparse=None,
    kind=transformers.Trainer,
    callbacks=(),
    optimizer=None,
    compute_metrics=None,
    **options,
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


class At(transformers.TrainerCallback):
    """Calls a function after a step."""

    def __init__(self, step, call):
        self.step, self.call = step, call

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.call(control)


class Logged(transformers.TrainerCallback):
    """Keeps what callbacks are given to log."""

    entries = ()

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.entries = (*self.entries, dict(logs))


def stopped(control):
    control.should_save = control.should_training_stop = True
