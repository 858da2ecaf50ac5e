"""A residual network for 8 × 8 images, whose layers differ in size."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

WIDTHS = (16, 32, 64)
CLASSES = 10


class Residual(nn.Module):
    """Two 3 × 3 convolutions with batch norm, beside a 1 × 1 convolution where the shape
    changes.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        changes = stride != 1 or inputs != outputs
        self.aside = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        y = self.norm2(self.second(self.norm1(self.first(x)).relu()))
        return (y + self.aside(x)).relu()


def resnet() -> nn.Module:
    """Images (N, 1, 8, 8) → logits (N, 10): a stem, blocks of 16, 32 and 64 channels, the mean over
    positions.
    """
    first, second, third = WIDTHS
    stem = nn.Sequential(
        nn.Conv2d(1, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), nn.ReLU()
    )
    blocks = nn.Sequential(
        Residual(first, first, 1), Residual(first, second, 2), Residual(second, third, 2)
    )
    return nn.Sequential(
        OrderedDict(
            stem=stem,
            blocks=blocks,
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            head=nn.Linear(third, CLASSES),
        )
    )
