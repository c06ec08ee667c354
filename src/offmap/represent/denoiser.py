"""What every diffusion model is to the rest of the house: a denoiser at any noise level (Karras et al., NeurIPS 2022, arXiv:2206.00364)."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Denoiser(Protocol):
    """``D(x, sigma)``: the mean of clean images given ``x = clean + sigma noise``; the score is ``(D(x, sigma) - x) / sigma^2``."""

    def __call__(self, x: Float[Tensor, "n c *s"], sigma: Float[Tensor, " n"]) -> Float[Tensor, "n c *s"]:
        """Denoise.

        Args:
            x: noised images; clean ones lie in [-1, 1].
            sigma: deviation of the noise of each image, in the units of ``x``, greater than 0.
        """
        ...
