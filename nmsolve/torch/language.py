"""Perplexity of causal language models.

The papers' protocol cuts the text into windows that do not overlap; with a stride below the window
it is Hugging Face's sliding window. Figures of different windows, strides or texts are not
comparable, so a result says what it was measured with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nmsolve.errors import InputError
from nmsolve.torch.causal import check_causal, floating_types, logits_of, without_caches
from nmsolve.torch.options import is_integer
from nmsolve.torch.progress import progress_bar
from nmsolve.torch.running import device_of, undisturbed

#: Logits that are taken to float32 at once.
_PIECE = 2**24
#: Tokens that a model is tried on, to see whether it is causal.
_TRIED = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity:
    """A perplexity, and the protocol that it was measured by, without which it cannot be compared.

    Attributes
    ----------
    value : float
        The exponential of the mean negative log-probability of the tokens that were predicted.
    tokens : int
        Number of tokens that were predicted.
    protocol : str
        Window, stride, what a token is predicted from, how many tokens were scored, and dtypes.
    """

    value: float
    tokens: int
    protocol: str

    def __str__(self) -> str:
        return f"perplexity {self.value:.2f} ({self.protocol})"


def perplexity(
    model: nn.Module,
    tokens: Any,
    *,
    window: int = 2048,
    stride: int | None = None,
    progress: bool | None = None,
) -> Perplexity:
    r"""Measure the perplexity of a causal language model on text.

    .. math:: \exp \Bigl( -\frac{1}{|S|} \sum_{t \in S} \log p(x_t \mid x_{a(t)}, \dots, x_{t-1})
        \Bigr)

    where S are the positions that are scored, and a(t) is the first of the window of t. Windows
    begin every `stride` tokens, and of each the positions are scored that the window before does
    not have, except for the first of the window, which nothing is before.

    Parameters
    ----------
    model : nn.Module
        Called with ids (1, positions), gives logits (1, positions, vocabulary) of the *next* token:
        a tensor, or an output with `.logits`, as Hugging Face's causal language models have. Run in
        eval mode, without gradients and without a cache, where its parameters are; left as it was.
    tokens : integer tensor, or list of int
        Ids of one text: (positions,) or (1, positions). Of several texts, none of which is context
        for another: (texts, positions), or an iterable of tensors or lists. Texts of fewer than two
        tokens have nothing to predict.
    window : int
        Tokens that the model sees at once, 2 or more.
    stride : int, optional
        Tokens from the begin of a window to that of the next, 1 to `window`. None: `window`, the
        papers' protocol. A smaller one gives every token at least `window` − `stride` tokens of
        context, where the text has them, and costs `window` / `stride` times as much.
    progress : bool, optional
        A progress bar; None: on a terminal only.

    Returns
    -------
    Perplexity

    Raises
    ------
    InputError
        If tokens are no integers, no text has two, or an id is outside the model's vocabulary,
        with the id and its position; if the windows are longer than the positions that the model's
        config has (`max_position_embeddings`): beyond them a figure says nothing about the model;
        if the model fails, is an encoder–decoder, or gives no such logits; if a later token changes
        the logits of an earlier one, which is tried on a few; if logits are not finite.

    Notes
    -----
    A shorter last window is scored too, as the protocol says. The scripts of SparseGPT and Wanda
    leave it out: give them `tokens[: len(tokens) // window * window]`.

    Log-probabilities are in float32 (float64 for logits in float64), a few positions at a time, so
    that besides the model's own logits memory does not depend on window or vocabulary; their sum is
    in float64.

    References
    ----------
    Frantar, Alistarh: SparseGPT, ICML 2023, section 4 (windows of 2,048 tokens, full stride).
    Hugging Face, "Perplexity of fixed-length models" (the sliding window).

    Examples
    --------
    >>> model = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 50))
    >>> tokens = torch.arange(40)
    >>> found = perplexity(model, tokens, window=16)
    >>> found.tokens  # 3 windows, the first of each is not scored
    37
    >>> loss = nn.functional.cross_entropy(model(tokens[:-1]), tokens[1:])
    >>> abs(perplexity(model, tokens, window=40).value / loss.exp().item() - 1) < 1e-6
    True
    """
    stride = window if stride is None else stride
    _check_options(model, window, stride)
    texts = _texts(tokens)
    spans = [(text, *span) for text in texts for span in _windows(len(text), window, stride)]
    if not spans:
        raise InputError(
            f"no text has two tokens or more ({len(texts)} with at most "
            f"{max(map(len, texts), default=0)}): there is nothing to predict"
        )
    _check_config(model, window, max(last - first for _, first, last, _ in spans))
    _check_ids(texts, _embedded(model))
    device = device_of(model)
    total = torch.zeros((), dtype=torch.float64)
    count = 0
    with undisturbed(model, training=False), without_caches(model):
        logits = check_causal(model, spans[0][0][: min(window, _TRIED)].to(device))
        _check_ids(texts, logits.shape[1])
        for text, first, last, start in progress_bar(
            spans, about="perplexity", total=len(spans), progress=progress, unit="windows"
        ):
            ids = text[first:last].to(device)
            logits = logits_of(model, ids)[start - 1 - first : -1]
            losses = _log_losses(logits, ids[start - first :])
            if not bool(torch.isfinite(losses).all()):
                at = int((~torch.isfinite(losses)).nonzero()[0])
                raise InputError(_not_finite(logits[at], int(text[start + at]), start + at))
            total += losses.sum()
            count += len(losses)
    return Perplexity(
        value=float((total / count).exp()),
        tokens=count,
        protocol=_protocol(model, texts, window, stride, count, logits.dtype),
    )


def _check_options(model: object, window: object, stride: object) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be an nn.Module, got a {type(model).__name__}")
    if not is_integer(window, least=2):
        raise InputError(f"window must be an int of 2 or more tokens, got {window!r}")
    if not is_integer(stride) or stride > window:
        raise InputError(
            f"stride must be an int from 1 to window={window}, got {stride!r}: a larger one would "
            "leave out tokens"
        )


def _texts(tokens: Any) -> list[Tensor]:
    """Each text's ids, (positions,) in int64, on the device that they are on."""
    if isinstance(tokens, Iterable) and not isinstance(tokens, Tensor | Mapping | str):
        given = list(tokens)
        if all(isinstance(token, int) for token in given):
            return _rows(given)
        return [row for text in given for row in _rows(text)]
    return _rows(tokens)


def _rows(tokens: Any) -> list[Tensor]:
    """The texts of a tensor, or of a list of ids, which is one."""
    if isinstance(tokens, Mapping) and "input_ids" in tokens:
        raise InputError(
            "tokens are ids alone, got a tokenizer's output: pass its ids, tokens['input_ids']"
        )
    if isinstance(tokens, str):
        raise InputError(
            "tokens are ids, got text: pass tokenizer(text, return_tensors='pt')['input_ids']"
        )
    if isinstance(tokens, list | tuple) and all(type(token) is int for token in tokens):
        tokens = torch.tensor(tokens, dtype=torch.int64)
    asked = "tokens are a (positions,) or (texts, positions) tensor of ids, or an iterable of texts"
    if not isinstance(tokens, Tensor):
        raise InputError(
            f"{asked}; got a {type(tokens).__name__} where ids are expected "
            "(torch.tensor makes a tensor of an array)"
        )
    if tokens.dtype == torch.bool or tokens.is_floating_point() or tokens.is_complex():
        raise InputError(f"{asked}; got {tokens.dtype}, which is no integer type")
    if tokens.dim() not in (1, 2):
        raise InputError(f"{asked}; got a tensor of shape {tuple(tokens.shape)}")
    return list(torch.atleast_2d(tokens.detach().long()))


def _windows(length: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yield (first, last, start) of each window of a text, of which positions from `start` on are
    scored; none where there are no such.
    """
    first = scored = 0
    while True:
        last = min(first + window, length)
        start = max(scored, first + 1)
        if start < last:
            yield first, last, start
        if last == length:
            return
        first, scored = first + stride, last


def _config_of(model: nn.Module) -> Any:
    """The config of a model's text part; None where it has none."""
    config = getattr(model, "config", None)
    of_text = getattr(config, "get_text_config", None)
    return config if of_text is None else of_text()


def _check_config(model: nn.Module, window: int, longest: int) -> None:
    """InputError if the model's config tells that windows of up to `longest` tokens are no input of
    it.
    """
    config = _config_of(model)
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"{type(model).__name__} is an encoder–decoder model: perplexity is of causal language "
            "models, which predict each token from those before"
        )
    positions = getattr(config, "max_position_embeddings", None)
    if is_integer(positions) and longest > positions:
        raise InputError(
            f"window={window} is more than the {positions} positions of the model's config "
            f"(max_position_embeddings): pass window={positions} or less"
        )


def _embedded(model: nn.Module) -> int | None:
    """The number of ids that the model has embeddings of; None where it does not tell."""
    try:
        found = getattr(model.get_input_embeddings(), "num_embeddings", None)  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    return found if is_integer(found) else None


def _check_ids(texts: Sequence[Tensor], vocabulary: int | None) -> None:
    """InputError, with the first of them, if ids are outside the vocabulary; its size may not be
    known yet.
    """
    for index, text in enumerate(texts):
        wrong = text < 0
        if vocabulary is not None:
            wrong |= text >= vocabulary
        if bool(wrong.any()):
            at = int(wrong.nonzero()[0])
            of = f" of text {index}" if len(texts) > 1 else ""
            known = "" if vocabulary is None else f" of {vocabulary} (0 to {vocabulary - 1})"
            raise InputError(
                f"token {int(text[at])} at position {at}{of} is outside the model's vocabulary"
                f"{known}: the tokens are another tokenizer's, or padding (leave it out)"
            )


def _log_losses(logits: Tensor, ids: Tensor) -> Tensor:
    """−log p of each id, by logits (positions, vocabulary): float64, on the host."""
    kind = torch.promote_types(logits.dtype, torch.float32)
    rows = max(1, _PIECE // logits.shape[1])
    losses = []
    for some, wanted in zip(logits.split(rows), ids.split(rows), strict=True):
        wide = some.to(kind)
        losses.append(wide.logsumexp(-1) - wide.gather(-1, wanted.unsqueeze(-1)).squeeze(-1))
    return torch.cat(losses).cpu().double()


def _not_finite(logits: Tensor, token: int, position: int) -> str:
    at = f"for the token at position {position}"
    wrong = logits[logits.isnan() | logits.isposinf()]
    if not len(wrong):
        return f"the model's logits {at} give it (id {token}) a probability of 0"
    return (
        f"the model's logits {at} hold {wrong[0].item()}: look for it in the weights, or load the "
        "model in bfloat16 or float32 if this is float16"
    )


def _protocol(
    model: nn.Module,
    texts: Sequence[Tensor],
    window: int,
    stride: int,
    count: int,
    kind: torch.dtype,
) -> str:
    rule = (
        "windows do not overlap, each token is predicted from those before it in its window, the "
        "first of a window is not scored"
        if stride == window
        else "each window scores the tokens that the window before does not have, each predicted "
        "from those before it in the window, the first of a text is not scored"
    )
    sizes = f"{count:,} of {sum(map(len, texts)):,} tokens scored, in {len(texts)} text" + (
        "s" if len(texts) > 1 else ""
    )
    weights = " and ".join(map(str, floating_types(model))) or "no type"
    device = device_of(model).type
    autocast = (
        f" under autocast to {torch.get_autocast_dtype(device)}"
        if torch.is_autocast_enabled(device)
        else ""
    )
    logs = torch.promote_types(kind, torch.float32)
    return (
        f"window {window}, stride {stride}: {rule}, a shorter last window is scored too; {sizes}; "
        f"weights in {weights}{autocast}, log-softmax in {logs}, sum in float64"
    ).replace("torch.", "")
