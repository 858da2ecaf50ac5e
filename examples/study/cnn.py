"""A convolutional network for 8 × 8 images."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

WIDTH = 32
CLASSES = 10


def cnn() -> nn.Module:
    """Images (N, 1, 8, 8) → logits (N, 10): 3 × 3 and 1 × 1 convolutions in turn, with batch norm,
    then the mean over positions.

    32 channels throughout, so that every pattern up to 16:32T fits every layer but the stem, which
    sees one channel; and no more, so that 1:16 hurts.
    """
    return nn.Sequential(
        OrderedDict(
            stem=_convolution(1, WIDTH, stride=2),
            body=nn.Sequential(
                _convolution(WIDTH, WIDTH, size=1),
                _convolution(WIDTH, WIDTH, stride=2),
                _convolution(WIDTH, WIDTH, size=1),
            ),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            head=nn.Linear(WIDTH, CLASSES),
        )
    )


def _convolution(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())
