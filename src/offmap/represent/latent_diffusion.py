"""A diffusion model of codes as an encoder: the signals of a diffusion model, in the small space of a codec."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.encoder import Input
from offmap.core.errors import ConfigError
from offmap.represent.diffusion import DiffusionEncoder
from offmap.represent.filled import filled
from offmap.represent.nets.latent import Codec, CodecShape
from offmap.represent.nets.unet import EDMDenoiser, UNetShape
from offmap.represent.noised import seeded_by

CODEC, NET = "codec.", "net."
"""Prefixes of weights."""


class LatentDiffusionEncoder(DiffusionEncoder):
    """As ``DiffusionEncoder``, with the signals of the image's code in place of its pixels.

    Deviations of noise are in units of codes, whose root mean square over training images is 0.5, about that of pixels in [-1, 1]. Maps
    have the grid of the codes. Noise is drawn from the image's pixels. What the codec does not keep is never seen: small and faint
    changes, and textures that it smooths.

    Args:
        codec: trained.
        net: denoiser of its codes.
        size: side of the images that both were trained on.
    """

    def __init__(
        self, codec: Codec, net: EDMDenoiser, size: int, *, name: str = "latent_diffusion", device: torch.device | str = "cpu"
    ) -> None:
        self._codec = codec.to(device).eval().requires_grad_(False)
        super().__init__(net, size, name=name, device=device)
        channels = codec.shape.channels
        self.input = Input(size, channels, (0.5,) * channels, (0.5,) * channels, codec.shape.axes)

    @property
    def codec(self) -> Codec:
        """Between images in [-1, 1] and codes."""
        return self._codec

    def _part(self, clean: Float[Tensor, "n c *s"], names: list[str]) -> dict[str, Tensor]:
        with seeded_by(clean):
            return super()._part(self._codec.encode(clean), names)

    def _laid_out(self, clean: Float[Tensor, "n c *s"]) -> Float[Tensor, "n c *s"]:
        """Codes of several channels in the usual order: forward-mode derivatives take no other."""
        return clean.contiguous()

    def to(self, device: torch.device | str) -> "LatentDiffusionEncoder":
        """The same encoder on another device."""
        return self.rebuilt(self._description(), self.state(), name=self.name, device=device)

    def state(self) -> dict[str, Tensor]:
        """Weights of both networks."""
        return {CODEC + k: v.detach() for k, v in self._codec.state_dict().items()} | {NET + k: v for k, v in super().state().items()}

    def _description(self) -> dict[str, Any]:
        return {**super()._description(), "codec": self._codec.shape.to_json()}

    @classmethod
    def rebuilt(
        cls, config: Mapping[str, Any], state: Mapping[str, Tensor], *, name: str = "latent_diffusion", device: torch.device | str = "cpu"
    ) -> "LatentDiffusionEncoder":
        """As ``DiffusionEncoder.rebuilt``."""
        try:
            net = EDMDenoiser(UNetShape.from_json(config["net"]), float(config["sigma_data"]))
            codec, size = Codec(CodecShape.from_json(config["codec"])), int(config["size"])
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"the description of the latent diffusion model makes no sense: {type(error).__name__} {error}") from error
        for part, prefix in ((codec, CODEC), (net, NET)):
            given = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            filled(part, given, f"latent diffusion model ({prefix[:-1]})")
        return cls(codec, net, size, name=name, device=device)
