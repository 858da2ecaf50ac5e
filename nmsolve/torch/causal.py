"""Logits of the next token, and a trial that they do not depend on it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from nmsolve.errors import InputError


@contextlib.contextmanager
def without_caches(model: nn.Module) -> Iterator[None]:
    """Have the model's configs ask for no cache of keys and values, which nothing would read."""
    configs = [getattr(module, "config", None) for module in model.modules()]
    caching: list[Any] = [c for c in configs if getattr(c, "use_cache", None) is True]
    try:
        for config in caching:
            config.use_cache = False
        yield
    finally:
        for config in caching:
            config.use_cache = True


def logits_of(model: nn.Module, ids: Tensor) -> Tensor:
    """Return the logits (positions, vocabulary) of ids (positions,).

    Raises
    ------
    InputError
        If the model fails, or gives no such logits.
    """
    called = f"{type(model).__name__}, called with ids of shape {(1, len(ids))} on {ids.device},"
    try:
        torch.clear_autocast_cache()  # under the caller's autocast it holds weights as they were
        output = model(ids.unsqueeze(0))
    except Exception as error:
        empty = any(parameter.is_meta for parameter in model.parameters())
        remedy = "; weights of it have no values (they are on the meta device)" if empty else ""
        raise InputError(f"{called} failed: {type(error).__name__}: {error}{remedy}") from error
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise InputError(
            f"{called} gave a {type(output).__name__}: it has to give logits, as a tensor or as "
            "output.logits (AutoModelForCausalLM has them, AutoModel does not)"
        )
    if logits.dim() != 3 or logits.shape[:2] != (1, len(ids)) or not logits.is_floating_point():
        raise InputError(
            f"{called} gave logits of shape {tuple(logits.shape)} and {logits.dtype}: they have to "
            f"be (1, {len(ids)}, vocabulary), one row for each token"
        )
    if logits.is_meta:
        raise InputError(f"{called} gave no values: its weights are on the meta device")
    return logits[0]


def check_causal(model: nn.Module, ids: Tensor) -> Tensor:
    """Return the logits of a few ids; InputError if those of the first half change with the second
    half.
    """
    half = len(ids) // 2
    logits = logits_of(model, ids)
    others = ids.unique()
    if len(others) == 1:
        others = torch.cat([others, (others + 1) % logits.shape[1]]).sort().values
    changed = ids.clone()
    changed[half:] = others[(torch.searchsorted(others, ids[half:]) + 1) % len(others)]
    before, after = (each[:half].double() for each in (logits, logits_of(model, changed)))
    kinds = floating_types(model, logits.dtype)
    if torch.is_autocast_enabled(ids.device.type):
        kinds.append(torch.get_autocast_dtype(ids.device.type))
    # Experts that get other tokens round the earlier ones' products differently.
    rounding = 0.1 * math.sqrt(max(torch.finfo(kind).eps for kind in kinds))
    apart = torch.where(after == before, 0, after - before)  # -inf is a token that is never next
    difference = float(apart.abs().max())
    if difference > rounding * float(before.masked_fill(before.isinf(), 0).abs().max()):
        raise InputError(
            f"the logits of {half} tokens change by {difference:.3g} with the tokens that follow "
            f"them: this {type(model).__name__} sees what it has to predict, and perplexity is of "
            "causal language models (with a causal mask; BERT's have it with "
            "config.is_decoder=True)"
        )
    return logits


def floating_types(model: nn.Module, *others: torch.dtype) -> list[torch.dtype]:
    """Return the floating types of a model's parameters and others, each once."""
    kinds = [tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()]
    return list(dict.fromkeys([*kinds, *others]))
