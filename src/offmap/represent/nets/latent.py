"""A network that turns images into small maps of codes and back (Rombach et al., CVPR 2022, arXiv:2112.10752, section 3.1)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offmap.core.errors import ConfigError, NotAvailableError, SignalError
from offmap.represent.nets.architecture import Architecture
from offmap.represent.nets.unet import draw, padded

CHUNK = 32
"""Images at a time."""

SPREAD = 0.5
"""Root mean square of codes, as of pixels in [-1, 1]."""


@dataclass(frozen=True, slots=True)
class CodecShape(Architecture):
    """Architecture of the codec.

    Args:
        channels: of the images, 1 or 3.
        axes: of space, 2 or 3.
        widths: channels of each level from fine to coarse, multiples of 8; each level but the last halves the grid.
        latent: channels of the codes, 1 to 64.
    """

    what: ClassVar[str] = "codec"

    channels: int = 1
    axes: int = 2
    widths: tuple[int, ...] = (16, 32, 32)
    latent: int = 4

    def __post_init__(self) -> None:
        if self.channels not in (1, 3) or self.axes not in (2, 3):
            raise ConfigError(f"channels = {self.channels} must be 1 or 3, axes = {self.axes} must be 2 or 3")
        if not 2 <= len(self.widths) <= 6 or any(w < 8 or w % 8 for w in self.widths) or not 1 <= self.latent <= 64:
            raise ConfigError(f"widths = {self.widths} must be two to six multiples of 8, latent = {self.latent} lie in 1..64")

    @property
    def stride(self) -> int:
        """By how much the grid of codes is smaller than the image."""
        return int(2 ** (len(self.widths) - 1))


class Codec(nn.Module):
    """MONAI's ``AutoencoderKL``; codes are the means of the posteriors, centred and scaled by what ``settle`` measured.

    Images in [-1, 1] of any size from the stride on; the border goes on to a multiple of it.

    Args:
        shape: architecture.
        generator: of the weights; a fresh one with seed 0 if not given.

    Raises:
        NotAvailableError: MONAI is missing.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, shape: CodecShape, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.shape = shape
        self.net: Any = _network(shape)
        draw(self.net, generator if generator is not None else torch.Generator().manual_seed(0))
        self.register_buffer("centre", torch.zeros(shape.latent))
        self.register_buffer("spread", torch.tensor(1.0))

    def posterior(self, x: Float[Tensor, "n c *s"]) -> tuple[Float[Tensor, "n d *t"], Float[Tensor, "n d *t"]]:
        """Mean and deviation of the codes as the network gives them.

        Raises:
            SignalError: a side is smaller than the stride, or channels or axes are not those of the network.
        """
        shape = self.shape
        if (x.shape[1], x.ndim - 2) != (shape.channels, shape.axes) or min(x.shape[2:]) < shape.stride:
            raise SignalError(
                f"images of shape {tuple(x.shape)} must have {shape.channels} channels and {shape.axes} axes of space of at least "
                f"{shape.stride} pixels"
            )
        mean, deviation = self.net.encode(padded(x, shape.stride))
        return mean, deviation

    def restored(self, raw: Float[Tensor, "n d *t"], sides: tuple[int, ...]) -> Float[Tensor, "n c *s"]:
        """Images of codes as the network gives them."""
        found: Tensor = self.net.decode(raw)
        for axis, n in enumerate(sides, 2):
            found = found.narrow(axis, 0, n)
        return found

    def settle(self, images: Float[Tensor, "n c *s"]) -> None:
        """Measure centre and size of the codes of images in [-1, 1]."""
        with torch.no_grad():
            raw = torch.cat([self.posterior(part)[0] for part in images.split(CHUNK)]).transpose(0, 1).flatten(1).double()
            self.centre.copy_(raw.mean(dim=1))
            self.spread.copy_((raw - raw.mean(dim=1, keepdim=True)).square().mean().sqrt().clamp_min(1e-6) / SPREAD)

    def encode(self, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n d *t"]:
        """Codes of images in [-1, 1], of about the size of pixels."""
        mean = self.posterior(x)[0]
        return (mean - self._along(self.centre, mean)) / self.spread

    def decode(self, codes: Float[Tensor, "n d *t"], sides: tuple[int, ...]) -> Float[Tensor, "n c *s"]:
        """The inverse of ``encode``, as far as there is one."""
        return self.restored(codes * self.spread + self._along(self.centre, codes), sides)

    @staticmethod
    def _along(values: Tensor, like: Tensor) -> Tensor:
        return values.view(1, -1, *[1] * (like.ndim - 2)).to(like)


def coded(codec: Codec, images: Float[Tensor, "n c *s"], device: torch.device) -> Float[Tensor, "n d *t"]:
    """Codes of many images in [-1, 1], on the CPU, without gradients."""
    codec.eval()
    with torch.no_grad():
        return torch.cat([codec.encode(part.to(device)).cpu() for part in images.split(CHUNK)])


def _network(shape: CodecShape) -> nn.Module:
    try:
        from monai.networks.nets.autoencoderkl import AutoencoderKL
    except ImportError as error:
        raise NotAvailableError(f"latent diffusion needs MONAI: pip install 'offmap[generative]' ({error})") from error
    net: nn.Module = AutoencoderKL(
        spatial_dims=shape.axes,
        in_channels=shape.channels,
        out_channels=shape.channels,
        num_res_blocks=1,
        channels=shape.widths,
        attention_levels=[False] * len(shape.widths),
        latent_channels=shape.latent,
        norm_num_groups=8,
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    )
    return net
