"""The network of the built-in encoder: a stem and stages of basic residual blocks (He et al., CVPR 2016, arXiv:1512.03385)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from offmap.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Stage:
    """A run of basic blocks of one width; the first block strides.

    Args:
        width: channels, 1 to 4096.
        blocks: number of blocks, 1 to 64.
        stride: of the first block, 1 to 4.
    """

    width: int
    blocks: int
    stride: int

    def __post_init__(self) -> None:
        for key, top in (("width", 4096), ("blocks", 64), ("stride", 4)):
            value = getattr(self, key)
            if type(value) is not int or not 1 <= value <= top:
                raise ConfigError(f"encoder stage: {key} = {value!r} must be a whole number from 1 to {top}")


class Block(nn.Module):
    """``relu(conv2(relu(conv1(x))) + shortcut(x))``, 3 x 3 convolutions."""

    def __init__(self, before: int, width: int, stride: int, project: bool) -> None:
        super().__init__()
        self.conv1: nn.Module = nn.Conv2d(before, width, 3, stride, 1)
        self.conv2: nn.Module = nn.Conv2d(width, width, 3, 1, 1)
        if project:
            self.shortcut: nn.Module = nn.Conv2d(before, width, 1, stride)
        self.project = project

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        y: Tensor = self.conv2(self.conv1(x).relu_())
        return y.add_(self.shortcut(x) if self.project else x).relu_()


class SmallNet(nn.Module):
    """Feature maps after the stem (stride 2) and after every stage.

    Args:
        channels: of the input.
        stem: channels of the 3 x 3 stem.
        stages: from shallow to deep.
    """

    def __init__(self, channels: int, stem: int, stages: Sequence[Stage]) -> None:
        super().__init__()
        self.stem: nn.Module = nn.Conv2d(channels, stem, 3, 2, 1)
        widths = [stem, *(s.width for s in stages)]
        self.stages = nn.ModuleList(
            nn.ModuleList(Block(widths[i] if j == 0 else s.width, s.width, s.stride if j == 0 else 1, j == 0) for j in range(s.blocks))
            for i, s in enumerate(stages)
        )
        self.taps = ("stem", *(f"stages.{i}" for i in range(len(stages))))
        self.widths = dict(zip(self.taps, widths, strict=True))
        self.strides = dict(zip(self.taps, accumulate((2, *(s.stride for s in stages)), mul), strict=True))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "SmallNet":
        """Build from the ``config.json`` that lies beside the weights.

        Raises:
            ConfigError: a key is missing or out of range.
        """
        try:
            stages = [Stage(s["width"], s["blocks"], s["stride"]) for s in config["stages"]]
            stem = Stage(config["stem"]["width"], 1, config["stem"]["stride"])
            channels = config["input"]["channels"]
        except (KeyError, TypeError) as error:
            raise ConfigError(f"the encoder's config.json lacks a key or holds a wrong type: {error}") from error
        if stem.stride != 2 or channels not in (1, 3) or not 1 <= len(stages) <= 8:
            raise ConfigError(
                f"the encoder's config.json: stem stride {stem.stride} (2), channels {channels!r} (1 or 3), {len(stages)} stages (1 to 8)"
            )
        return cls(channels, stem.width, stages)

    def forward(self, x: Float[Tensor, "n c h w"], until: str = "") -> dict[str, Tensor]:
        """Maps by tap name, from shallow to deep, down to and with the tap ``until`` (all of them if empty)."""
        maps = {"stem": self.stem(x).relu_()}
        for tap, blocks in zip(self.taps[1:], self.stages, strict=True):
            if until in maps:
                break
            x = maps[next(reversed(maps))]
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x)
            maps[tap] = x
        return maps


class Deepest(nn.Module):
    """The deepest map of a ``SmallNet`` alone.

    Args:
        net: shared, not copied.
    """

    def __init__(self, net: SmallNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """The map after the last stage."""
        deepest: Tensor = self.net(x)[self.net.taps[-1]]
        return deepest
