"""Checkpoints that several test files prune, and how two of them are compared."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

import nmsolve

BF16 = np.dtype(ml_dtypes.bfloat16)
#: Files whose bytes differ from run to run: seconds.
TIMES = "times.json"


def weights(*shape: int, seed: int = 0, dtype: np.dtype | type = np.float32) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(dtype)


def write_folder(
    folder: Path, layers: int = 3, width: int = 32, dtype: np.dtype = BF16, files: int = 2
) -> dict[str, np.ndarray]:
    """A folder as Hugging Face lays it out: shards with an index, config, tokenizer; its tensors by
    name.
    """
    folder.mkdir(parents=True)
    shards: list[dict[str, np.ndarray]] = [
        {"model.embed_tokens.weight": weights(40, width, dtype=dtype)},
        *({} for _ in range(files - 1)),
    ]
    for layer in range(layers):
        into, name = shards[layer * files // layers], f"model.layers.{layer}"
        for seed, part in enumerate(("q_proj", "k_proj", "v_proj", "o_proj")):
            into[f"{name}.self_attn.{part}.weight"] = weights(
                width, width, seed=100 * layer + seed, dtype=dtype
            )
        into[f"{name}.mlp.up_proj.weight"] = weights(2 * width, width, seed=layer, dtype=dtype)
        into[f"{name}.mlp.down_proj.weight"] = weights(width, 2 * width, seed=layer, dtype=dtype)
        into[f"{name}.input_layernorm.weight"] = np.ones(width, dtype)
    shards[-1]["lm_head.weight"] = weights(40, width, seed=7, dtype=dtype)
    index = {}
    for number, tensors in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{files:05}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": index}, indent=2)
    )
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    return {name: tensor for tensors in shards for name, tensor in tensors.items()}


def contents(path: Path) -> dict[str, str]:
    """Every file below a folder but the times, as hashes by name; or those of a file and what is
    beside it.
    """
    files = sorted(path.rglob("*")) if path.is_dir() else sorted(path.parent.glob(f"{path.stem}.*"))
    return {
        str(file.relative_to(path if path.is_dir() else path.parent)): hashlib.sha256(
            file.read_bytes()
        ).hexdigest()
        for file in files
        if file.is_file() and not file.name.endswith(TIMES)
    }


def best_mask(tensor: np.ndarray, pattern: str, **options: object) -> np.ndarray:
    return nmsolve.solve(tensor, pattern, **options).mask  # type: ignore[arg-type]
