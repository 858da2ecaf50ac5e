"""Inputs of convolutions as matrices, one row for each output position."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
#: Elements of an input that are laid out at once.
_PIECE = 2**24


def output_positions(module: Convolution, x: Tensor) -> tuple[int, int]:
    """Return how many samples the inputs are, and output positions of each."""
    x = _batched(module, x)
    return x.shape[0], math.prod(_outputs(module, x))


def matrices(module: Convolution, x: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield (filter group, (batch · output positions, kernel positions · input channels of a
    group)), a few samples of the inputs at a time.
    """
    x = _batched(module, x)
    size = math.prod(_outputs(module, x)) * math.prod(module.kernel_size) * x.shape[1]
    for piece in torch.split(x, max(1, _PIECE // max(1, size))):
        yield from enumerate(_patches(module, piece))


def _batched(module: Convolution, x: Tensor) -> Tensor:
    return x.unsqueeze(0) if x.dim() == len(module.kernel_size) + 1 else x


def _padding(module: Convolution) -> list[int]:
    """As F.pad takes it: before and after, the last axis first. Attributes may have been changed
    since the module was made.
    """
    if module.padding_mode != "zeros":
        return list(module._reversed_padding_repeated_twice)  # what its own forward pads by
    if isinstance(module.padding, str):
        wide = [
            d * (k - 1) if module.padding == "same" else 0
            for d, k in zip(module.dilation, module.kernel_size, strict=True)
        ]
        return [side for total in reversed(wide) for side in (total // 2, total - total // 2)]
    return [size for size in reversed(module.padding) for _ in range(2)]


def _outputs(module: Convolution, x: Tensor) -> list[int]:
    """Output positions along each axis of a batch of inputs."""
    padding = _padding(module)
    found = []
    for axis, (kernel, stride, dilation) in enumerate(
        zip(module.kernel_size, module.stride, module.dilation, strict=True)
    ):
        before, after = padding[-2 * axis - 2], padding[-2 * axis - 1]
        found.append(
            (x.shape[2 + axis] + before + after - dilation * (kernel - 1) - 1) // stride + 1
        )
    return found


def _patches(module: Convolution, x: Tensor) -> Tensor:
    """(filter groups, batch · output positions, kernel positions · input channels of a group)."""
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x, _padding(module), mode=mode)
    axes = len(module.kernel_size)
    for axis, (size, stride, dilation) in enumerate(
        zip(module.kernel_size, module.stride, module.dilation, strict=True)
    ):
        x = x.unfold(2 + axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
    # Batch, group, channel, positions …, kernel …
    x = x.reshape(x.shape[0], module.groups, -1, *x.shape[2:])
    positions, kernel = range(3, 3 + axes), range(3 + axes, 3 + 2 * axes)
    return x.permute(1, 0, *positions, *kernel, 2).flatten(1, 1 + axes).flatten(2)
