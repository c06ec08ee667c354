"""Randomness of one step of a training, which depends on nothing that came before: a resumed run draws what one sitting draws."""

import torch

GOLDEN = 0x9E3779B1
"""2^32 over the golden ratio: multiples of it lie far apart in 32 bits, of which alone a CPU generator makes use."""


def generator_of(seed: int, step: int) -> torch.Generator:
    """A fresh generator; other seeds and other steps give other numbers."""
    return torch.Generator().manual_seed((seed * GOLDEN + step) % 2**32)
