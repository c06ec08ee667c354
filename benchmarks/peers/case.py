"""What both sides of a comparison are given: the same features, logits, maps and head, made by code."""

from dataclasses import dataclass

import torch
from torch import Tensor

from offmap.core.types import Signals


@dataclass(frozen=True)
class Part:
    """Images as a classifier sees them, float32.

    Args:
        features: (N, D) after a rectifier.
        logits: (N, K), the head's.
        labels: (N,), 0 ... K-1.
        maps: (N, C, s, s); no row where they are not wanted.
    """

    features: Tensor
    logits: Tensor
    labels: Tensor
    maps: Tensor

    def signals(self, *, labelled: bool = False) -> dict[str, Tensor]:
        """Under the names that offmap reads."""
        out = {"features.last": self.features, "features.penultimate": self.features, "logits": self.logits}
        if len(self.maps):
            out["feature_map.deep"] = self.maps
        return out | ({"label": self.labels} if labelled else {})


@dataclass(frozen=True)
class Case:
    """Images to fit on, images to score (half of them odd), and the head."""

    fit: Part
    asked: Part
    head: torch.nn.Linear

    @property
    def batches(self) -> list[Signals]:
        """One batch with labels and head."""
        static = {"head.weight": self.head.weight.detach(), "head.bias": self.head.bias.detach()}
        return [{**self.fit.signals(labelled=True), **static}]


def case(*, count: int, asked: int, width: int, classes: int, side: int = 0, seed: int = 0) -> Case:
    """Classes with few directions of large variance and many of small; odd images lie between the classes, and vary more. Three
    in a hundred labels are wrong.

    Args:
        count: images to fit on.
        asked: images to score.
        side: of the maps; 0 for none.
    """
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=generator)
    scale = torch.logspace(0, -1, width)
    labels = torch.arange(count) % classes
    others = torch.arange(asked) % classes
    odd = (torch.arange(asked) % 2 == 1)[:, None]
    middle = 0.5 * (centres[others] + centres[others.roll(1)])
    features = (centres[labels] + scale * torch.randn(count, width, generator=generator)).relu()
    noise = torch.randn(asked, width, generator=generator)
    unseen = torch.where(odd, middle + 1.3 * scale * noise, centres[others] + scale * noise).relu()
    head = _head(features, labels, classes)
    labels = torch.where(torch.arange(count) % 33 == 32, (labels + 1) % classes, labels)
    with torch.no_grad():
        parts = [Part(rows, head(rows), which, _maps(rows, side, generator)) for rows, which in ((features, labels), (unseen, others))]
    return Case(*parts, head)


def _head(features: Tensor, labels: Tensor, classes: int) -> torch.nn.Linear:
    """The nearest-mean classifier, its top logit about 12 on average."""
    means = torch.stack([features[labels == c].mean(dim=0) for c in range(classes)])
    head = torch.nn.Linear(features.shape[1], classes).requires_grad_(False)
    weight, bias = means - means.mean(dim=0), -0.5 * (means.square().sum(dim=1) - means.mean(dim=0).square().sum())
    top = (features @ weight.T + bias).amax(dim=1).mean()
    head.weight.copy_(12 * weight / top)
    head.bias.copy_(12 * bias / top)
    return head


def _maps(rows: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Maps whose mean over positions is about the features."""
    if not side:
        return rows[:0]
    return (rows[:, :, None, None] + 0.3 * torch.randn(*rows.shape, side, side, generator=generator)).relu()
