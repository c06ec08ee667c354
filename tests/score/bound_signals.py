"""Parts of a bound made by code, and images whose likelihood is known."""

import torch
from torch import Tensor


def parts(count: int, *, seed: int, mean: float = -200.0, values: int = 64) -> dict[str, Tensor]:
    """``elbo.parts`` with one sample, and sizes of compressed images."""
    generator = torch.Generator().manual_seed(seed)
    likely = mean + 10 * torch.randn(count, generator=generator, dtype=torch.float64)
    kl = 5 + torch.rand(count, generator=generator, dtype=torch.float64)
    rows = torch.stack([likely, kl, torch.full_like(kl, values)], dim=1)
    bits = 300 + 20 * torch.randn(count, generator=generator, dtype=torch.float64)
    return {"elbo.parts:samples=1": rows, "complexity.bits": bits}
