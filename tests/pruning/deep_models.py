"""Small models of any depth, with their blocks and calibration items, and the count of calls."""

import contextlib

import torch
import transformers
from torch import nn
from torch.nn import functional as F

LANGUAGE = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
GEMMA = LANGUAGE | {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 4}


def tokens(count, length=9, batch=2):
    generator = torch.Generator().manual_seed(5)
    return [
        {"input_ids": torch.randint(3, 32, (batch, length), generator=generator)}
        for _ in range(count)
    ]


def rows(count, shape, seed=5):
    """Correlated along the last axis."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(shape[-1], shape[-1], generator=generator)
    return [torch.randn(shape, generator=generator) @ mix for _ in range(count)]


def llama(depth):
    config = transformers.LlamaConfig(
        **LANGUAGE, num_key_value_heads=1, num_hidden_layers=depth, tie_word_embeddings=False
    )
    model = transformers.LlamaForCausalLM(config)
    return model, model.model.layers, tokens


def gemma(depth):
    """With masks and rotary tables of two kinds, by turns."""
    model = transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(**GEMMA, num_hidden_layers=depth)
    )
    return model, model.model.layers, tokens


def mixtral(depth):
    config = transformers.MixtralConfig(
        **LANGUAGE, num_key_value_heads=1, num_hidden_layers=depth, num_local_experts=4
    )
    config._experts_implementation = "eager"  # the other has no float64
    model = transformers.MixtralForCausalLM(config)
    return model, model.model.layers, tokens


def bert(depth):
    config = transformers.BertConfig(**LANGUAGE, num_hidden_layers=depth)
    model = transformers.BertForMaskedLM(config)
    return model, model.bert.encoder.layer, tokens


def gpt2(depth):
    config = transformers.GPT2Config(
        vocab_size=32,
        n_embd=16,
        n_head=2,
        n_layer=depth,
        n_positions=32,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = transformers.GPT2LMHeadModel(config)
    return model, model.transformer.h, tokens


def t5(depth):
    """Two stacks, the first block's position bias, and attention across."""
    config = transformers.T5Config(
        vocab_size=32, d_model=16, d_kv=8, d_ff=24, num_heads=2, num_layers=depth
    )
    model = transformers.T5ForConditionalGeneration(config)
    blocks = [*model.encoder.block, *model.decoder.block]
    return (
        model,
        blocks,
        lambda count: [
            item | {"decoder_input_ids": other["input_ids"]}
            for item, other in zip(tokens(count), tokens(count, length=5), strict=True)
        ],
    )


def pictures(count):
    return [{"pixel_values": x} for x in rows(count, (2, 3, 16, 16))]


def vit(depth):
    config = transformers.ViTConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=depth,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    model = transformers.ViTForImageClassification(config)
    return model, [m for m in model.modules() if type(m).__name__ == "ViTLayer"], pictures


def swin(depth):
    """Attention within windows that are shifted by turns; the number of tokens changes."""
    config = transformers.SwinConfig(
        image_size=16,
        patch_size=2,
        embed_dim=8,
        depths=[depth // 2, depth // 2],
        num_heads=[2, 2],
        window_size=2,
        mlp_ratio=2.0,
    )
    model = transformers.SwinForImageClassification(config)
    return model, [m for m in model.modules() if type(m).__name__ == "SwinLayer"], pictures


def encoder(depth):
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
    model = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
    return model, model.layers, lambda count: rows(count, (2, 9, 16))


def transformer(depth):
    """Keys and values of the decoder from the encoder."""
    model = nn.Transformer(16, 2, depth, depth, 24, batch_first=True)
    blocks = [*model.encoder.layers, *model.decoder.layers]
    return (
        model,
        blocks,
        lambda count: list(
            zip(rows(count, (2, 9, 16)), rows(count, (2, 5, 16), seed=6), strict=True)
        ),
    )


def chain(depth):
    blocks = [nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(depth)]
    return nn.Sequential(*blocks), blocks, lambda count: rows(count, (40, 16))


class Residual(nn.Module):
    """A basic block of a ResNet: its shortcut has a convolution where channels double, and its sum
    is made in place.
    """

    def __init__(self, before, after):
        super().__init__()
        stride = 1 if before == after else 2
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.downsample = (
            nn.Identity()
            if stride == 1
            else nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )
        )

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += self.downsample(x)
        return F.relu(out, inplace=True)


def resnet(depth):
    half = depth // 2
    blocks = [Residual(4 if i <= half else 8, 4 if i < half else 8) for i in range(depth)]
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    return model, blocks, lambda count: rows(count, (4, 3, 8, 8))


class Experts(nn.Module):
    """Each token goes through one of some experts, of which an item may reach a few."""

    def __init__(self, experts=8, width=16):
        super().__init__()
        self.norm, self.gate = nn.LayerNorm(width), nn.Linear(width, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
            for _ in range(experts)
        )

    def forward(self, x):
        h = self.norm(x)
        to, out = self.gate(h).argmax(-1), x.clone()
        for i, expert in enumerate(self.experts):
            at = (to == i).nonzero().squeeze(1)
            if len(at):
                out[at] += expert(h[at])
        return out


def experts(depth):
    blocks = [Experts() for _ in range(depth)]
    return nn.Sequential(*blocks), blocks, lambda count: rows(count, (12, 16))


MODELS = {
    make.__name__: make
    for make in (
        llama,
        gemma,
        mixtral,
        bert,
        gpt2,
        t5,
        vit,
        swin,
        encoder,
        transformer,
        chain,
        resnet,
        experts,
    )
}


def made(name, depth):
    """A model, its blocks, and a function from a number to so many items."""
    torch.manual_seed(0)
    model, blocks, items = MODELS[name](depth)
    return model.eval(), list(blocks), items


@contextlib.contextmanager
def counted(modules):
    """Calls of each of some modules while it lasts."""
    calls = [0] * len(modules)

    def count(place):
        def note(module, args):
            calls[place] += 1

        return note

    hooks = [module.register_forward_pre_hook(count(i)) for i, module in enumerate(modules)]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


class Keeping(nn.Module):
    """A model that keeps something of each forward, which nobody reads: it cannot be suspended."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.config = getattr(model, "config", None)

    def forward(self, *args, **kwargs):
        self.kept = object()
        return self.model(*args, **kwargs)
