"""Residual networks with an exit after each of four stages (He et al., CVPR 2016, arXiv:1512.03385; exits as in arXiv:2505.08604)."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offmap.core.errors import ConfigError

STAGES = ("layer1", "layer2", "layer3", "layer4")
DEPTHS: Mapping[int, tuple[int, int, int, int]] = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
"""Blocks of each stage; 18 has basic blocks, 50 bottlenecks, which are four times as wide at their end."""


class Basic(nn.Module):
    """``relu(x + bn(conv3(relu(bn(conv3(x))))))``."""

    expansion = 1

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.shortcut = shortcut(before, width, stride)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        y: Tensor = self.body(x)
        return y.add_(self.shortcut(x)).relu_()


class Bottleneck(nn.Module):
    """Convolutions of 1, 3 and 1; the middle one strides."""

    expansion = 4

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = self.expansion * width
        self.body = nn.Sequential(
            nn.Conv2d(before, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, after, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut = shortcut(before, after, stride)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        y: Tensor = self.body(x)
        return y.add_(self.shortcut(x)).relu_()


def shortcut(before: int, after: int, stride: int) -> nn.Module:
    """Nothing where shapes agree, else a 1 x 1 convolution with its norm."""
    if before == after and stride == 1:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))


class MultiExitResNet(nn.Module):
    """A ResNet with a linear exit on the channels of each stage's map; its output is that of the last one.

    A linear head on the spatial mean is the spatial mean of its 1 x 1 convolution, so ``exits`` hold linear layers. As a classifier
    of offmap it gives the maps ``layer1`` to ``layer4``, and ``exits.3`` is its head, which all other methods read.

    Args:
        classes: K, 2 or more.
        depth: 18 or 50.
        channels: 1 or 3.
        width: channels of the first stage, doubled at each.
        generator: of the weights (Kaiming normal); a fresh one with seed 0 if not given.

    Raises:
        ConfigError: a value out of range.
    """

    def __init__(
        self, classes: int, *, depth: int = 18, channels: int = 3, width: int = 64, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if depth not in DEPTHS or classes < 2 or channels not in (1, 3) or width < 1:
            raise ConfigError(
                f"multi-exit network: depth = {depth} must be 18 or 50, classes = {classes} 2 or more, channels = {channels} 1 or 3, "
                f"width = {width} 1 or more"
            )
        block = Basic if depth == 18 else Bottleneck
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        )
        before, ends = width, []
        for i, (name, count) in enumerate(zip(STAGES, DEPTHS[depth], strict=True)):
            inner = width << i
            after = block.expansion * inner
            parts = [block(before if j == 0 else after, inner, 2 if i and j == 0 else 1) for j in range(count)]
            self.add_module(name, nn.Sequential(*parts))
            before = after
            ends.append(after)
        self.exits = nn.ModuleList(nn.Linear(end, classes) for end in ends)
        _draw(self, generator if generator is not None else torch.Generator().manual_seed(0))

    def maps(self, x: Float[Tensor, "n c h w"]) -> list[Float[Tensor, "n _d _i _j"]]:
        """Output of each stage."""
        x, out = self.stem(x), []
        for name in STAGES:
            x = self.get_submodule(name)(x)
            out.append(x)
        return out

    def logits(self, x: Float[Tensor, "n c h w"]) -> list[Float[Tensor, "n k"]]:
        """Of each exit."""
        return [exit(maps.mean(dim=(2, 3))) for exit, maps in zip(self.exits, self.maps(x), strict=True)]

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of the last exit."""
        last: Tensor = self.exits[-1](self.maps(x)[-1].mean(dim=(2, 3)))
        return last

    def heads(self) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Weight ``(K, C)`` and bias ``(K,)`` of each exit."""
        weights = [exit.get_parameter("weight").detach().clone() for exit in self.exits]
        return weights, [exit.get_parameter("bias").detach().clone() for exit in self.exits]


def _draw(net: nn.Module, generator: torch.Generator) -> None:
    for part in net.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(part, nn.Linear):
            nn.init.kaiming_normal_(part.weight, nonlinearity="linear", generator=generator)
            nn.init.zeros_(part.bias)
