"""Signals of models beside a variational autoencoder, made by code."""

import torch
from torch import Tensor

BACKGROUND, MEMBERS = "elbo.background:samples=1", "elbo.members:samples=1"


def beside(count: int, *, seed: int, members: int = 5) -> dict[str, Tensor]:
    """A background model's parts, bounds of several members, and codes."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, 2 + members + 4, generator=generator, dtype=torch.float64)
    background = torch.stack([-250 + 10 * drawn[:, 0], 3 + drawn[:, 1].abs(), torch.full((count,), 64.0, dtype=torch.float64)], dim=1)
    return {BACKGROUND: background, MEMBERS: -200 + 5 * drawn[:, 2 : 2 + members], "latent.code": drawn[:, 2 + members :]}
