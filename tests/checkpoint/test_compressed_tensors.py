"""What is pruned here goes through the 2:4 format of compressed-tensors (its last version with one
is 0.14), and comes back.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nmsolve import checkpoint

sys.path.append(
    str(Path(sys.prefix) / "compressed-tensors")
)  # make installs it there: it asks for an older transformers

with warnings.catch_warnings():  # it compiles at its import, and what torch imports for that warns
    warnings.simplefilter("ignore")
    from compressed_tensors.compressors.sparse_compressors.sparse_24_bitmask import (
        Sparse24BitMaskCompressor,
    )
    from compressed_tensors.config import Sparse24BitMaskConfig

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


@pytest.mark.parametrize("text", ["2:4", "2:4T"])
def test_it_comes_back_bit_for_bit(text: str, tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    dense = {
        f"{name}_proj.weight": (3 * torch.randn(64, 128, generator=rng)).to(dtype)
        for name, dtype in zip(
            "qkvo", (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn), strict=True
        )
    }
    save_file(dense, tmp_path / "dense.safetensors")
    checkpoint.prune(tmp_path / "dense.safetensors", tmp_path / "sparse.safetensors", text)
    masks = checkpoint.open_masks(tmp_path / "sparse.safetensors")
    compressor = Sparse24BitMaskCompressor(config=Sparse24BitMaskConfig())
    for name, weight in load_file(tmp_path / "sparse.safetensors").items():
        bits = BITS[weight.element_size()]
        compressed = compressor.compress_weight(name, weight)
        parts = {key.rpartition(".")[2]: part for key, part in compressed.items()}
        assert 2 * parts["compressed"].nbytes == weight.nbytes
        kept = np.unpackbits(parts["bitmask"].numpy(), axis=1, bitorder="little").astype(bool)
        assert np.array_equal(kept, masks[name])
        assert torch.equal(compressor.decompress_weight(parts).view(bits), weight.view(bits))
