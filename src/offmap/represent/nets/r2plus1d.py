"""R(2+1)D: a residual network over volumes whose convolutions are split into one in the plane and one across.

Tran et al., A Closer Look at Spatiotemporal Convolutions for Action Recognition, CVPR 2018, arXiv:1711.11248, section 3.5 and table 1.
Tensors have the names under which weights of this network are published (``stem.0``, ``layer1.0.conv1.0.0``, ``fc``).
"""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

WIDTHS = (64, 64, 128, 256, 512)
BLOCKS = 2
STEM = 45
"""Channels between the two convolutions of the stem."""


def between(before: int, width: int) -> int:
    """Channels between the two halves, so that there are as many weights as in one 3 x 3 x 3 convolution: section 3.5."""
    return 27 * before * width // (9 * before + 3 * width)


def split(before: int, middle: int, width: int, stride: int) -> nn.Sequential:
    """A 1 x 3 x 3 convolution, then a 3 x 1 x 1 one."""
    plane = nn.Conv3d(before, middle, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)
    across = nn.Conv3d(middle, width, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False)
    return nn.Sequential(plane, nn.BatchNorm3d(middle), nn.ReLU(), across)


class Block(nn.Module):
    """``relu(conv2(conv1(x)) + shortcut(x))``."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        middle = between(before, width)
        self.conv1 = nn.Sequential(split(before, middle, width, stride), nn.BatchNorm3d(width), nn.ReLU())
        self.conv2 = nn.Sequential(split(width, middle, width, 1), nn.BatchNorm3d(width))
        same = stride == 1 and before == width
        self.downsample = None if same else nn.Sequential(nn.Conv3d(before, width, 1, stride, bias=False), nn.BatchNorm3d(width))

    def forward(self, x: Float[Tensor, "n c d h w"]) -> Float[Tensor, "n e k i j"]:
        y: Tensor = self.conv2(self.conv1(x))
        shortcut: Tensor = x if self.downsample is None else self.downsample(x)
        return (y + shortcut).relu()


class R2Plus1D(nn.Module):
    """Eighteen layers; logits of volumes.

    Args:
        channels: of the input.
        classes: number of outputs.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        plane = nn.Conv3d(channels, STEM, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False)
        across = nn.Conv3d(STEM, WIDTHS[0], (3, 1, 1), 1, (1, 0, 0), bias=False)
        self.stem = nn.Sequential(plane, nn.BatchNorm3d(STEM), nn.ReLU(), across, nn.BatchNorm3d(WIDTHS[0]), nn.ReLU())
        for number, (before, width) in enumerate(pairwise(WIDTHS), 1):
            first = Block(before, width, 1 if number == 1 else 2)
            self.add_module(f"layer{number}", nn.Sequential(first, *(Block(width, width, 1) for _ in range(BLOCKS - 1))))
        self.fc = nn.Linear(WIDTHS[-1], classes)

    def forward(self, x: Float[Tensor, "n c d h w"]) -> Float[Tensor, "n k"]:
        x = self.stem(x)
        for number in range(1, len(WIDTHS)):
            x = self.get_submodule(f"layer{number}")(x)
        logits: Tensor = self.fc(x.mean(dim=(2, 3, 4)))
        return logits
