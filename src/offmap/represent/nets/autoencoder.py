"""Networks that restore an image from a short code, or from a damaged copy: what they restore badly is odd."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offmap.core.errors import ConfigError, NotAvailableError, SignalError
from offmap.represent.nets.architecture import Architecture
from offmap.represent.nets.unet import padded

Kind = Literal["ae", "dae", "vae", "vq_vae"]

STEEPEST = 6.0
"""Bound of the logarithms that networks give (variances of codes and pixels), on either side of where they start."""


@dataclass(frozen=True, slots=True)
class AutoencoderShape(Architecture):
    """Architecture of one network of the family.

    Args:
        kind: ``ae`` (dense code), ``dae`` (U-Net with skips, no code), ``vae`` (dense code with a posterior), ``vq_vae`` (map of codebook
            entries).
        channels: of the images, 1 or 3.
        sides: of the images in pixels, ``(H, W)`` or ``(D, H, W)``; a dense code has room for no other size.
        widths: channels of each level from fine to coarse, multiples of 8; each level halves the grid (of a ``dae``, each but the first).
        latent: numbers in a code; of a ``vq_vae``, in an entry of the codebook; without meaning for a ``dae``.
        entries: of the codebook of a ``vq_vae``.
        uncertainty: whether an ``ae`` also gives the variance that it expects at each pixel (AE-U).
    """

    what: ClassVar[str] = "autoencoder"

    kind: Kind = "vae"
    channels: int = 1
    sides: tuple[int, ...] = (64, 64)
    widths: tuple[int, ...] = (16, 32, 64, 64)
    latent: int = 16
    entries: int = 256
    uncertainty: bool = False

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ConfigError(f"kind = {self.kind!r} must be one of {', '.join(get_args(Kind))}")
        if self.channels not in (1, 3) or len(self.sides) not in (2, 3):
            raise ConfigError(f"channels = {self.channels} must be 1 or 3, sides = {self.sides} two or three")
        if not 1 <= len(self.widths) <= 6 or any(w < 8 or w % 8 for w in self.widths):
            raise ConfigError(f"widths = {self.widths} must be one to six multiples of 8")
        if self.kind == "dae" and len(self.widths) < 2:
            raise ConfigError(f"widths = {self.widths} must be two or more for a U-Net")
        if min(self.sides) < self.stride:
            raise ConfigError(f"sides = {self.sides} are smaller than the stride of {len(self.widths)} levels, {self.stride} pixels")
        if not 1 <= self.latent <= 4096 or not 2 <= self.entries <= 65_536:
            raise ConfigError(f"latent = {self.latent} must lie in 1..4096, entries = {self.entries} in 2..65536")
        if self.uncertainty and self.kind != "ae":
            raise ConfigError(f"uncertainty goes with the kind ae, not with {self.kind}")

    @property
    def axes(self) -> int:
        """Of space."""
        return len(self.sides)

    @property
    def stride(self) -> int:
        """By how much the coarsest grid is smaller than the image: the least side of an image in pixels."""
        return int(2 ** (len(self.widths) - (self.kind == "dae")))


@dataclass(frozen=True, slots=True, eq=False)
class Restored:
    """What a network makes of images.

    Args:
        images: in the scale of its input.
        log_variance: of each pixel's error, as the network expects it; None where it expects nothing.
        penalty: what the code costs beside the error, one number an image; None where nothing.
    """

    images: Float[Tensor, "n c *s"]
    log_variance: Float[Tensor, "n c *s"] | None = None
    penalty: Float[Tensor, " n"] | None = None


class Autoencoder(nn.Module, ABC):
    """Restores images; pixels in [0, 1] in and out (not clipped).

    Args:
        shape: architecture.
    """

    def __init__(self, shape: AutoencoderShape) -> None:
        super().__init__()
        self.shape = shape

    @abstractmethod
    def forward(self, x: Float[Tensor, "n c *s"]) -> Restored:
        """Restore, without randomness.

        Raises:
            SignalError: images of a size or with channels or axes that the network cannot take.
        """

    def code(self, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n l"] | None:
        """The code of each image as one row; None where there is none."""
        return None

    def seen(self, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n c *t"]:
        """In [-1, 1], padded to the network's stride.

        Raises:
            SignalError: as ``forward``.
        """
        expected = (self.shape.channels, self.shape.axes)
        if (x.shape[1], x.ndim - 2) != expected:
            raise SignalError(f"images of shape {tuple(x.shape)} must have {expected[0]} channels and {expected[1]} axes of space")
        if min(x.shape[2:]) < self.shape.stride:
            raise SignalError(f"images of shape {tuple(x.shape)} are smaller than the {self.shape.stride} pixels of the network's stride")
        if self.shape.kind in ("ae", "vae") and tuple(x.shape[2:]) != self.shape.sides:
            raise SignalError(
                f"images of shape {tuple(x.shape)} do not have the sides {self.shape.sides} that the code of this network was made for: "
                "resize them"
            )
        return padded(2 * x - 1, self.shape.stride)


class _Dense(Autoencoder):
    """A convolutional encoder, a dense code, and a convolutional decoder.

    Args:
        heads: dense maps from the encoder's last grid to numbers of a code.
        outputs: channels that the decoder gives.
    """

    def __init__(self, shape: AutoencoderShape, *, heads: int, outputs: int) -> None:
        super().__init__(shape)
        self.net: Any = _convolutional(shape, outputs)
        self.grid = tuple(-(-n // shape.stride) for n in shape.sides)
        size = shape.widths[-1] * math.prod(self.grid)
        self.heads = nn.ModuleList(nn.Linear(size, shape.latent) for _ in range(heads))
        self.spread = nn.Linear(shape.latent, size)

    def _flat(self, x: Tensor) -> Tensor:
        flat: Tensor = self.net.encode(self.seen(x)).flatten(1)
        return flat

    def _decoded(self, code: Tensor) -> Tensor:
        inner = self.net.decode(self.spread(code).unflatten(1, (self.shape.widths[-1], *self.grid)))
        cut: Tensor = inner[(..., *(slice(0, n) for n in self.shape.sides))].float()
        return cut


class DenseAutoencoder(_Dense):
    """A code of ``latent`` numbers; with ``uncertainty`` also the variance of each pixel's error (Mao et al., MICCAI 2020)."""

    def __init__(self, shape: AutoencoderShape) -> None:
        super().__init__(shape, heads=1, outputs=shape.channels * (1 + shape.uncertainty))

    def code(self, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n l"]:
        """As ``Autoencoder.code``."""
        code: Tensor = self.heads[0](self._flat(x)).float()
        return code

    def forward(self, x: Float[Tensor, "n c *s"]) -> Restored:
        """As ``Autoencoder.forward``."""
        found = self._decoded(self.code(x))
        images = 0.5 + 0.5 * found[:, : self.shape.channels]
        if not self.shape.uncertainty:
            return Restored(images)
        return Restored(images, bounded(found[:, self.shape.channels :]) - STEEPEST)


class VAE(_Dense):
    """A Gaussian posterior ``q(z|x) = N(mean, diag(exp(log_variance)))`` of a code with the prior N(0, 1), and a Gaussian decoder
    ``p(x|z) = N(decode(z), deviation^2)`` with one deviation for all pixels (Kingma and Welling, ICLR 2014, 1312.6114).
    """

    def __init__(self, shape: AutoencoderShape) -> None:
        super().__init__(shape, heads=2, outputs=shape.channels)
        self.log_deviation: Tensor
        self.register_buffer("log_deviation", torch.tensor(math.log(0.1)))

    @property
    def deviation(self) -> Float[Tensor, ""]:
        """Of a pixel in [0, 1] about what is decoded; at least a quarter of a grey level of 8 bits, at most 1."""
        return self.log_deviation.exp()

    def follow(self, error: Float[Tensor, ""], *, share: float = 0.05) -> None:
        """Move the deviation towards the one under which images with that mean squared error are most probable."""
        with torch.no_grad():
            self.log_deviation.lerp_(0.5 * error.log().clamp(2 * math.log(0.25 / 255), 0.0).to(self.log_deviation), share)

    def encode(self, x: Float[Tensor, "n c *s"]) -> tuple[Float[Tensor, "n l"], Float[Tensor, "n l"]]:
        """Mean and logarithm of the variance of the posterior.

        Raises:
            SignalError: as ``forward``.
        """
        flat = self._flat(x)
        return self.heads[0](flat).float(), 2 * bounded(self.heads[1](flat).float())

    def decode(self, code: Float[Tensor, "n l"]) -> Float[Tensor, "n c *s"]:
        """Mean of the pixels, in [0, 1] but for over- and undershoots."""
        return 0.5 + 0.5 * self._decoded(code)

    def code(self, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n l"]:
        """Mean of the posterior."""
        return self.encode(x)[0]

    def forward(self, x: Float[Tensor, "n c *s"]) -> Restored:
        """From the mean of the posterior."""
        return Restored(self.decode(self.code(x)))


class DAE(Autoencoder):
    """A U-Net with skips that takes coarse noise away (Kascenas et al., MIDL 2022, 2301.08330); any size from the stride on."""

    def __init__(self, shape: AutoencoderShape) -> None:
        super().__init__(shape)
        self.net: Any = _unet(shape)

    def forward(self, x: Float[Tensor, "n c *s"]) -> Restored:
        """As ``Autoencoder.forward``."""
        clean = self.net(self.seen(x)).float()[(..., *(slice(0, n) for n in x.shape[2:]))]
        return Restored(0.5 + 0.5 * clean)


class VQVAE(Autoencoder):
    """Each position of the coarsest grid is replaced by the nearest entry of a codebook (van den Oord et al., NeurIPS 2017, 1711.00937);
    any size from the stride on.
    """

    def __init__(self, shape: AutoencoderShape) -> None:
        super().__init__(shape)
        self.net: Any = _quantised(shape)

    def code(self, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n l"]:
        """Mean over the grid, before it is replaced."""
        mean: Tensor = self.net.encode(self.seen(x)).float().flatten(2).mean(dim=2)
        return mean

    def forward(self, x: Float[Tensor, "n c *s"]) -> Restored:
        """As ``Autoencoder.forward``; in training mode the codebook follows the codes."""
        codes = self.net.encode(self.seen(x)).float()
        with torch.autocast(x.device.type, enabled=False):
            entries, _ = self.net.quantize(codes)
        away = (entries.detach() - codes).square().flatten(1).mean(dim=1)
        inner = self.net.decode(entries).float()[(..., *(slice(0, n) for n in x.shape[2:]))]
        return Restored(0.5 + 0.5 * inner, penalty=0.25 * away)


NETWORKS: Mapping[str, type[Autoencoder]] = {"ae": DenseAutoencoder, "dae": DAE, "vae": VAE, "vq_vae": VQVAE}


def autoencoder(shape: AutoencoderShape, *, generator: torch.Generator | None = None) -> Autoencoder:
    """A network with fresh weights.

    Args:
        shape: architecture.
        generator: of the weights; a fresh one with seed 0 if not given.

    Raises:
        NotAvailableError: MONAI is missing.
    """
    net = NETWORKS[shape.kind](shape)
    _draw(net, generator if generator is not None else torch.Generator().manual_seed(0))
    return net


def bounded(values: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Between -6 and 6, smoothly, and the same near 0."""
    return STEEPEST * torch.tanh(values / STEEPEST)


def _convolutional(shape: AutoencoderShape, outputs: int) -> Any:
    try:
        from monai.networks.nets.autoencoder import AutoEncoder
    except ImportError as error:
        raise _without_monai(error) from error
    levels = len(shape.widths)
    return AutoEncoder(shape.axes, shape.channels, outputs, shape.widths, (2,) * levels, act="LEAKYRELU", norm="BATCH")


def _unet(shape: AutoencoderShape) -> Any:
    try:
        from monai.networks.nets.unet import UNet
    except ImportError as error:
        raise _without_monai(error) from error
    strides = (2,) * (len(shape.widths) - 1)
    channels = shape.channels
    return UNet(shape.axes, channels, channels, shape.widths, strides, num_res_units=1, act="LEAKYRELU", norm="BATCH")


def _quantised(shape: AutoencoderShape) -> Any:
    try:
        from monai.networks.nets import vqvae
    except ImportError as error:
        raise _without_monai(error) from error
    return vqvae.VQVAE(
        shape.axes,
        shape.channels,
        shape.channels,
        channels=shape.widths,
        num_res_layers=1,
        num_res_channels=shape.widths,
        downsample_parameters=((2, 4, 1, 1),) * len(shape.widths),
        upsample_parameters=((2, 4, 1, 1, 0),) * len(shape.widths),
        num_embeddings=shape.entries,
        embedding_dim=shape.latent,
        decay=0.99,
    )


def _without_monai(error: ImportError) -> NotAvailableError:
    return NotAvailableError(f"autoencoders need MONAI: pip install 'offmap[generative]' ({error})")


def _draw(net: nn.Module, generator: torch.Generator) -> None:
    """Weights from the generator alone."""
    for part in net.modules():
        if isinstance(part, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d | nn.Linear):
            nn.init.kaiming_uniform_(part.weight, a=math.sqrt(5), generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    if isinstance(net, VQVAE):
        quantiser = net.net.quantizer.quantizer
        with torch.no_grad():
            quantiser.embedding.weight.copy_(0.1 * torch.randn(quantiser.embedding.weight.shape, generator=generator))
            quantiser.ema_w.copy_(quantiser.embedding.weight)
            quantiser.ema_cluster_size.fill_(1.0)
