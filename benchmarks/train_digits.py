"""Trains the checkpoint that `nmsolve demo` masks: a classifier of scikit-learn's handwritten
digits.

    python benchmarks/train_digits.py        # writes nmsolve/data/digits.safetensors

Three dense layers, 64 → 256 → 128 → 10 with ReLU between them, trained by Adam on 1197 of the 1797
8 × 8 images; the other 600 are held out and shipped with the weights. Split and initialisation are
seeded and BLAS runs on one thread, so that the same versions on the same processor write the same
bytes. Apart from the layers' sizes the settings are scikit-learn's defaults, and the seeds are
zeros: nothing was selected by what masks do to the network.

The file holds `layer{1,2,3}.weight` (out, in) and `layer{1,2,3}.bias` (out,), float32 as PyTorch
stores them; `images` (600, 64) uint8, of values 0 … 16 to be divided by 16; `labels` (600,) uint8;
and the metadata entry "training", a JSON object.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path

import numpy as np
import sklearn
from safetensors.numpy import save
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

OUT = Path(__file__).parent.parent / "nmsolve" / "data" / "digits.safetensors"
HIDDEN = (256, 128)
HELD_OUT = 600
SPLIT_SEED, TRAINING_SEED = 0, 0


def train() -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """The checkpoint's tensors, and how they came about."""
    images, labels = load_digits(return_X_y=True)
    training, held_out = train_test_split(
        np.arange(len(labels)),
        test_size=HELD_OUT,
        random_state=SPLIT_SEED,
        shuffle=True,
        stratify=labels,
    )
    model = MLPClassifier(
        HIDDEN, activation="relu", solver="adam", max_iter=300, random_state=TRAINING_SEED
    )
    with threadpool_limits(limits=1):
        model.fit(images[training] / 16, labels[training])

    tensors = {}
    for number, (coefficients, intercepts) in enumerate(
        zip(model.coefs_, model.intercepts_, strict=True), start=1
    ):
        tensors[f"layer{number}.weight"] = np.ascontiguousarray(coefficients.T, np.float32)
        tensors[f"layer{number}.bias"] = intercepts.astype(np.float32)
    tensors["images"] = images[held_out].astype(np.uint8)
    tensors["labels"] = labels[held_out].astype(np.uint8)

    def accuracy(part: np.ndarray) -> float:
        return float(model.score(images[part] / 16, labels[part]))

    about = {
        "data": "sklearn.datasets.load_digits",
        "training_images": len(training),
        "held_out_images": len(held_out),
        "split": f"train_test_split(test_size={HELD_OUT}, stratify=labels)",
        "split_seed": SPLIT_SEED,
        "training_seed": TRAINING_SEED,
        "epochs": model.n_iter_,
        "training_accuracy": round(accuracy(training), 6),
        "held_out_accuracy": round(accuracy(held_out), 6),
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scikit-learn": sklearn.__version__,
        },
    }
    return tensors, about


if __name__ == "__main__":
    tensors, about = train()
    # One entry: safetensors writes several in an order that differs from run to run.
    OUT.write_bytes(save(tensors, metadata={"training": json.dumps(about, sort_keys=True)}))
    print(
        f"{OUT}: {OUT.stat().st_size:,} bytes, held-out accuracy {about['held_out_accuracy']:.2%} "
        f"after {about['epochs']} epochs"
    )
