"""Train a 2:4T BERT with Hugging Face's Trainer: `python examples/hugging_face.py [--tiny]`. Needs
no network.
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import nmsolve.torch as nmt


class MostlyLarge(Dataset):
    """Sentences of 16 random words out of 64: are most of them of the upper half?"""

    def __init__(self, size: int) -> None:
        self.words = torch.randint(64, (size, 16), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        words = self.words[index]
        return {"input_ids": words, "labels": ((words >= 32).sum() > 8).long()}


def main(steps: int, folder: str) -> None:
    """Train, take the masks off, and check that the zeros are where they should be."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    model = BertForSequenceClassification(
        BertConfig(vocab_size=64, max_position_embeddings=16, **sizes)
    )
    plan = nmt.plan(
        model, {"bert.encoder.*": "2:4T"}
    )  # queries, keys, values and feed-forward layers; all else stays dense
    sparse = nmt.sparsify_(model, plan, nmt.SRSTE(decay=0.2))
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        learning_rate=1e-3,
        per_device_train_batch_size=32,
        logging_steps=max(1, steps // 5),
        save_strategy="no",
        report_to="none",
    )
    trainer = Trainer(
        model, arguments, train_dataset=MostlyLarge(4096), callbacks=[nmt.TrainerCallback(sparse)]
    )
    trainer.train()
    first, last = trainer.state.log_history[0], trainer.state.log_history[-2]
    assert steps < 100 or last["loss"] < first["loss"] / 2
    assert sparse.stats().step == steps
    assert sparse.finalize_().ok  # plain modules again, with the zeros in their weights
    assert nmt.verify(model, plan).ok
    print(
        plan,
        f"{len(plan.planned)} layers are 2:4T; loss {first['loss']:.3f} at first, "
        f"{last['loss']:.3f} at last",
        sep="\n",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a few steps")
    with tempfile.TemporaryDirectory() as folder:
        main(5 if parser.parse_args().tiny else 200, folder)
