"""Signals of a diffusion model made by code."""

import torch
from torch import Tensor

from offmap.core.detector import Detector


def batch(detector: Detector, count: int, width: int, *, seed: int, shift: float = 0.0, scale: float = 1.0) -> dict[str, Tensor]:
    """Correlated rows under the name that the detector asks for; a signal of one number an image where the width is 0."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(count, 1, generator=generator, dtype=torch.float64)
    own = torch.randn(count, max(1, width), generator=generator, dtype=torch.float64)
    rows = 1.0 + shift + scale * (0.2 * common + 0.1 * own * torch.linspace(0.5, 2, max(1, width), dtype=torch.float64))
    (name,) = detector.needs
    return {name: rows if width else rows[:, 0]}


def of(detector: Detector, signals: dict[str, Tensor]) -> Tensor:
    """The one signal that the detector reads."""
    (name,) = detector.needs
    return signals[name]
