"""A network of two stages with dropout and batch normalisation in double precision, and its pieces to be put together by hand."""

import torch
from torch import Tensor, nn

from offmap.core.encoder import Input
from offmap.represent.classifier import ClassifierEncoder

SIDE = 16
SPEC = Input(SIDE, 3, (0.5, 0.4, 0.3), (0.2, 0.25, 0.4))


class Tiny(nn.Module):
    """Stages ``one`` and ``two``, dropout of channels and of units, a head of K classes."""

    def __init__(self, classes: int = 4, *, inplace: bool = False) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.Softplus())
        self.drop2d = nn.Dropout2d(0.3)
        self.two = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(inplace=inplace))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, classes)

    def neck(self, two: Tensor) -> Tensor:
        return two.mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.drop(self.neck(self.two(self.drop2d(self.one(x))))))
        return out


def tiny(classes: int = 4, *, seed: int = 3, inplace: bool = False) -> Tiny:
    """Weights drawn without the global generator; in training mode, as a user may leave it."""
    net, rng = Tiny(classes, inplace=inplace).double(), torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5, generator=rng)
    net.one[1].running_mean = torch.rand(6, generator=rng, dtype=torch.float64)  # type: ignore[assignment]
    net.one[1].running_var = 0.5 + torch.rand(6, generator=rng, dtype=torch.float64)  # type: ignore[assignment]
    return net.train()


def encoder(net: nn.Module) -> ClassifierEncoder:
    """Of the two stages."""
    return ClassifierEncoder(net, spec=SPEC, layers=["one", "two"])


def images(count: int = 5, *, channels: int = 3, seed: int = 2) -> Tensor:
    """Prepared images."""
    return torch.rand(count, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def pixels(prepared: Tensor) -> Tensor:
    """What the network sees, in double precision."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (SPEC.mean, SPEC.std))
    return ((prepared - mean) / std).double()


class Passes:
    """Counts the images that went through the network."""

    def __init__(self, net: nn.Module) -> None:
        self.images = 0
        self._handle = net.register_forward_pre_hook(self._count)

    def _count(self, module: nn.Module, given: tuple[Tensor, ...]) -> None:
        self.images += len(given[0])

    def taken(self) -> int:
        """Images since the last call."""
        count, self.images = self.images, 0
        return count
