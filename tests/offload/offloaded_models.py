"""Models of every kind, as they are in memory and as they are when they are to be offloaded."""

import contextlib
import copy
from itertools import pairwise

import safetensors.torch
import torch
import transformers
from torch import nn
from torch.nn import functional as F

import nmsolve.torch as nmt
from tests.pruning import deep_models
from tests.pruning.deep_models import rows, tokens


def tied_llama():
    config = transformers.LlamaConfig(
        **deep_models.LANGUAGE,
        num_key_value_heads=1,
        num_hidden_layers=2,
        tie_word_embeddings=True,
        attention_bias=True,
    )
    return transformers.LlamaForCausalLM(config)


class PastItsModule(nn.Module):
    """Multiplies by its head's weight without a call of it, and by others in other ways."""

    def __init__(self):
        super().__init__()
        self.embed = nn.EmbeddingBag(32, 16)
        self.lstm = nn.LSTM(16, 16, batch_first=True)
        self.gru = nn.GRU(16, 16, batch_first=True)
        self.body = nn.Linear(16, 16)
        self.head = nn.Linear(16, 8)
        self.scale = nn.Parameter(torch.ones(16))

    def forward(self, ids):
        x = self.embed(ids).unsqueeze(1).expand(-1, 3, -1)
        x = self.gru(self.lstm(x)[0])[0]
        return F.linear(self.body(x) * self.scale, self.head.weight, self.head.bias)


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stages = nn.Sequential(
            nn.Conv2d(4, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3),
        )
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.norm(self.stages(x)).mean((2, 3)))


def mlp(widths=(16, 32, 8)):
    parts = [p for a, b in pairwise(widths) for p in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*parts[:-1])


#: How to make it, and calibration items of it.
MODELS = {
    "mlp": (mlp, lambda: rows(3, (60, 16))),
    "conv": (ConvNet, lambda: rows(3, (6, 4, 6, 6))),
    "encoder": (lambda: deep_models.encoder(2)[0], lambda: rows(3, (4, 9, 16))),
    "tied llama": (tied_llama, lambda: tokens(3)),
    "llama": (lambda: deep_models.llama(2)[0], lambda: tokens(3)),
    "t5": (lambda: deep_models.t5(2)[0], lambda: deep_models.t5(1)[2](3)),
    "gpt2": (lambda: deep_models.gpt2(2)[0], lambda: tokens(3)),
}


def items_of(name):
    return MODELS[name][1]()


def made(name, dtype=torch.float32):
    """The same one whenever it is called."""
    torch.manual_seed(0)
    model = (PastItsModule if name == "past" else MODELS[name][0])().eval().to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in model.buffers():
            if tensor.is_floating_point() and tensor.dim() == 1 and len(tensor) == 8:
                tensor.copy_(torch.rand(8, generator=generator) + 0.5)  # statistics
    return model


def empty_like(model):
    """The same model with its parameters on the meta device."""
    new, seen = copy.deepcopy(model), {}
    for module in new.modules():
        for name, p in list(module._parameters.items()):
            if p is not None:
                meta = seen.setdefault(id(p), nn.Parameter(p.detach().to("meta")))
                setattr(module, name, meta)
    return new


def save(model, folder, size="6KB"):
    """In shards where the model can do that; else in one file."""
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder, max_shard_size=size)
    else:
        folder.mkdir()
        safetensors.torch.save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def run(model, item):
    with torch.no_grad():
        found = model(**item) if isinstance(item, dict) else model(item)
    return found.logits if hasattr(found, "logits") else found


def loaded(model, place):
    """A model with values from files: the state dict of another one."""
    files = sorted(place.glob("*.safetensors")) if place.is_dir() else [place]
    values = {k: v for file in files for k, v in safetensors.torch.load_file(file).items()}
    state = model.state_dict()
    by_memory = {state[k].untyped_storage()._cdata: k for k in state if k in values}
    return {
        k: values[k] if k in values else values[by_memory[v.untyped_storage()._cdata]]
        for k, v in state.items()
    }


def same(model, place):
    """A model in memory has bit for bit the values of files."""
    found, state = loaded(model, place), model.state_dict()
    return [k for k in state if not torch.equal(found[k].to(state[k].dtype), state[k])]


@contextlib.contextmanager
def reads(model):
    """Number of reads by weight, while it lasts, of a model that is offloaded."""
    home = next(model.parameters()).lender.home
    counts, read = {}, home.read

    def counting(names):
        counts[names[0]] = counts.get(names[0], 0) + 1
        return read(names)

    home.read = counting
    try:
        yield counts
    finally:
        del home.read


def prune(model, how, items, pattern="2:4"):
    torch.manual_seed(3)
    if how == "mask":
        return nmt.mask_(model, pattern)
    if how == "adam":
        return nmt.adaprune_(model, pattern, items, update=nmt.Adam(steps=5))
    return {"least squares": nmt.adaprune_, "second order": nmt.sparsegpt_}[how](
        model, pattern, items
    )
