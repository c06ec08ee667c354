"""A student that draws a teacher's feature maps again from a narrow code of them (Deng & Li, CVPR 2022, 2201.10703)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from offmap.represent.nets.feature_net import MAX_SIDE, FeatureNet, Maps, Shapes, resized
from offmap.represent.nets.unet import draw
from offmap.represent.train.parallel import ALONE, Crew


def groups(width: int) -> int:
    """Of a group normalisation: at most 8, and a divisor."""
    return next(n for n in (8, 4, 2, 1) if width % n == 0)


class Block(nn.Module):
    """``SiLU(norm(conv(x)))``, 3 x 3."""

    def __init__(self, into: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.GroupNorm(groups(out), out)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d a b"]:
        """Of one map."""
        return functional.silu(self.norm(self.conv(x)))


class Student(FeatureNet):
    """Maps of all layers become one code on half the deepest grid, from which each map is drawn again, the deepest first.

    Args:
        shapes: of the teacher's maps.
        width: channels of code and decoder.
        rng: of the weights.
    """

    def __init__(self, shapes: Shapes, *, width: int, rng: torch.Generator) -> None:
        super().__init__()
        self.enter = nn.ModuleList(Block(channels, width) for channels, _, _ in shapes)
        self.narrow = nn.Sequential(Block(width * len(shapes), width, 2 if min(shapes[-1][1:]) > 2 else 1), Block(width, width))
        self.levels = nn.ModuleList(nn.Sequential(Block(width, width), Block(width, width)) for _ in shapes)
        self.leave = nn.ModuleList(nn.Conv2d(width, channels, 1) for channels, _, _ in shapes)
        draw(self, rng)

    def drawn(self, maps: Maps) -> list[Float[Tensor, "n _ _ _"]]:
        """The student's maps, in the order of the teacher's."""
        grid = maps[-1].shape[2:]
        code = self.narrow(torch.cat([resized(enter(m), grid) for enter, m in zip(self.enter, maps, strict=True)], dim=1))
        out = []
        for teacher, level, leave in list(zip(maps, self.levels, self.leave, strict=True))[::-1]:
            code = level(resized(code, teacher.shape[2:]))
            out.append(leave(code))
        return out[::-1]

    def distances(self, maps: Maps) -> list[Float[Tensor, "n _ _"]]:
        """``1 - cos`` of teacher and student at each position of each layer, in [0, 2]."""
        pairs = zip(maps, self.drawn(maps), strict=True)
        return [1 - functional.cosine_similarity(own.float(), seen.float(), dim=1, eps=1e-6) for own, seen in pairs]

    def loss(self, maps: Maps, rng: torch.Generator, crew: Crew = ALONE) -> Float[Tensor, ""]:
        """Sum over layers of the mean distance."""
        return torch.stack([part.mean() for part in self.distances(maps)]).sum()

    def oddness(self, maps: Maps) -> Float[Tensor, "n h w"]:
        """Sum over layers, on the finest grid."""
        parts = self.distances(maps)
        size: Sequence[int] = [min(MAX_SIDE, max(part.shape[axis] for part in parts)) for axis in (1, 2)]
        return torch.stack([resized(part[:, None], size)[:, 0] for part in parts]).sum(dim=0)
