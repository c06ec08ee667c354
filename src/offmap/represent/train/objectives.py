"""What each network of the autoencoder family is trained for, and by what its checkpoints are judged."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.errors import ConfigError
from offmap.represent.elbo_slopes import decoder_weights
from offmap.represent.likelihood import divergence, elbo_parts
from offmap.represent.nets.autoencoder import VAE, Autoencoder, AutoencoderShape, Kind, Restored
from offmap.represent.restoration import absolute, normalised, squared
from offmap.represent.train.coarse_noise import coarse_noise, foreground
from offmap.represent.train.gradients import SummedGradients
from offmap.represent.train.judged import Schedule
from offmap.represent.train.parallel import ALONE, Crew


@dataclass(frozen=True)
class ReconstructionPlan(Schedule):
    """How a network that restores images is trained.

    Args:
        widths: channels of each level from fine to coarse, multiples of 8.

    The others are those of ``Schedule``.
    """

    widths: tuple[int, ...] = (16, 32, 64, 64)

    kind: ClassVar[Kind] = "ae"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch < 2:
            raise ConfigError(f"batch = {self.batch} must be at least 2: the networks normalise over it")

    def shape(self, channels: int, sides: tuple[int, ...]) -> AutoencoderShape:
        """Architecture for images of that size.

        Raises:
            ConfigError: the size does not fit the widths.
        """
        return AutoencoderShape(self.kind, channels, sides, self.widths)

    @abstractmethod
    def losses(self, net: Autoencoder, clean: Float[Tensor, "n c *s"], rng: torch.Generator, crew: Crew = ALONE) -> Float[Tensor, " m"]:
        """Loss of each image of this process's part of the batch; all randomness is drawn from the generator, for the whole batch."""

    def oddness(self, net: Autoencoder, images: Float[Tensor, "n c *s"]) -> Float[Tensor, " n"]:
        """Score by which checkpoints are judged, higher = odder: the mean squared error."""
        return squared(images, net(images)).flatten(1).mean(dim=1)

    def prepare(self, net: Autoencoder) -> None:
        """Add to a fresh network what the training keeps beside its weights."""
        return

    def settle(self, net: Autoencoder, unseen: Float[Tensor, "n c *s"]) -> None:
        """Set what of the network is measured and not learnt, on held-out images."""
        return


def surprise(errors: Float[Tensor, " n"], crew: Crew = ALONE) -> Float[Tensor, " n"]:
    """``e / 2m + (log m) / 2`` of mean squared errors e, m their mean over the batch, without gradient: in nats a pixel value and up to a
    constant, the surprise at the images under the deviation that fits the batch best. Gradients do not fade as errors do.
    """
    mean = crew.shared(errors.detach().mean()).clamp_min(1e-12)
    return 0.5 * errors / mean + 0.5 * mean.log()


@dataclass(frozen=True)
class AutoencoderPlan(ReconstructionPlan):
    """Squared errors (``surprise``); with uncertainty ``((x - y)^2 / v + log v) / 2`` with a variance v of each pixel.

    Args:
        latent: numbers in a code.
        uncertainty: whether the network also learns how large its error will be (AE-U).

    The others are those of ``ReconstructionPlan``.
    """

    latent: int = 16
    uncertainty: bool = False

    def shape(self, channels: int, sides: tuple[int, ...]) -> AutoencoderShape:
        return AutoencoderShape("ae", channels, sides, self.widths, self.latent, uncertainty=self.uncertainty)

    def losses(self, net: Autoencoder, clean: Float[Tensor, "n c *s"], rng: torch.Generator, crew: Crew = ALONE) -> Float[Tensor, " m"]:
        clean = crew.part(clean)
        found: Restored = net(clean)
        error: Tensor = (clean - found.images).square()
        if found.log_variance is None:
            return surprise(error.flatten(1).mean(dim=1), crew)
        return 0.5 * (error * torch.exp(-found.log_variance) + found.log_variance).flatten(1).mean(dim=1)

    def oddness(self, net: Autoencoder, images: Float[Tensor, "n c *s"]) -> Float[Tensor, " n"]:
        return (normalised if self.uncertainty else squared)(images, net(images)).flatten(1).mean(dim=1)


@dataclass(frozen=True)
class DAEPlan(ReconstructionPlan):
    """Squared differences (``surprise``) of the clean image and what the network makes of it with coarse noise on its foreground.

    Args:
        noise: deviation of the noise, in units of pixels in [0, 1].
        grid: points an axis between which noise is interpolated.
        background: grey value in [0, 1] up to which a pixel is background, which gets no noise.

    The others are those of ``ReconstructionPlan``.
    """

    widths: tuple[int, ...] = (16, 32, 64, 64)
    noise: float = 0.2
    grid: int = 16
    background: float = 0.02

    kind: ClassVar[Kind] = "dae"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.noise <= 10 or not 1 <= self.grid <= 1024 or not 0 <= self.background < 1:
            raise ConfigError(
                f"noise = {self.noise} must lie in (0, 10], grid = {self.grid} in 1..1024, background = {self.background} in [0, 1)"
            )

    def losses(self, net: Autoencoder, clean: Float[Tensor, "n c *s"], rng: torch.Generator, crew: Crew = ALONE) -> Float[Tensor, " m"]:
        found: Restored = net(self.noised(clean, rng, crew))
        return surprise((found.images - crew.part(clean)).square().flatten(1).mean(dim=1), crew)

    def noised(self, clean: Float[Tensor, "n c *s"], rng: torch.Generator, crew: Crew = ALONE) -> Float[Tensor, "m c *s"]:
        """With coarse noise on the foreground."""
        noise = crew.part(coarse_noise(tuple(clean.shape), deviation=self.noise, grid=self.grid, generator=rng)).to(clean)
        clean = crew.part(clean)
        return clean + noise * foreground(clean, self.background)

    def oddness(self, net: Autoencoder, images: Float[Tensor, "n c *s"]) -> Float[Tensor, " n"]:
        return absolute(images, net(images)).flatten(1).mean(dim=1)


@dataclass(frozen=True)
class VAEPlan(ReconstructionPlan):
    """Negative evidence lower bound of a density with one sample of the code, in nats a pixel value.

    The decoder's deviation is the one under which the training images are most probable (Rybkin et al., 2006.13202); at a checkpoint,
    the one under which the held-out images are.

    Args:
        latent: numbers in a code.
        beta: weight of the divergence of posterior and prior; 1 for a bound on the likelihood.
        mutation: share of the pixel values that are replaced by noise, anew each step: the background model of a likelihood ratio.
        gradients: keep the sum of the decoder's gradients over all steps, for ``gradcon``.

    The others are those of ``ReconstructionPlan``.
    """

    latent: int = 16
    beta: float = 1.0
    mutation: float = 0.0
    gradients: bool = False

    kind: ClassVar[Kind] = "vae"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta <= 1000 or not 0 <= self.mutation <= 1:
            raise ConfigError(f"beta = {self.beta} must lie in 0..1000, mutation = {self.mutation} in 0..1")

    def shape(self, channels: int, sides: tuple[int, ...]) -> AutoencoderShape:
        return AutoencoderShape("vae", channels, sides, self.widths, self.latent)

    def losses(self, net: Autoencoder, clean: Float[Tensor, "n c *s"], rng: torch.Generator, crew: Crew = ALONE) -> Float[Tensor, " m"]:
        model, clean = _vae(net), crew.part(self._mutated(clean, rng))
        mean, log_variance = model.encode(clean)
        drawn = crew.normal(mean.shape, rng).to(mean)
        errors = (clean - model.decode(mean + (0.5 * log_variance).exp() * drawn)).square().flatten(1).mean(dim=1)
        if model.training:
            model.follow(crew.shared(errors.detach().mean()))
        own = 0.5 * errors / model.deviation.square() + model.deviation.log() + 0.5 * math.log(2 * math.pi)
        return own + self.beta * divergence(mean, log_variance).float() / clean[0].numel()

    def oddness(self, net: Autoencoder, images: Float[Tensor, "n c *s"]) -> Float[Tensor, " n"]:
        parts = elbo_parts(_vae(net), images, {"samples": 0}, "elbo.parts").double()
        return parts[:, 1] - parts[:, 0]

    def prepare(self, net: Autoencoder) -> None:
        if self.gradients:
            net.add_module("gradient", SummedGradients(decoder_weights(_vae(net))))

    def settle(self, net: Autoencoder, unseen: Float[Tensor, "n c *s"]) -> None:
        _vae(net).follow(squared(unseen, net(unseen)).mean(), share=1.0)

    def _mutated(self, clean: Tensor, rng: torch.Generator) -> Tensor:
        if self.mutation == 0:
            return clean
        other = torch.rand(clean.shape, generator=rng)
        replaced = torch.rand(clean.shape, generator=rng) < self.mutation
        return torch.where(replaced.to(clean.device), other.to(clean), clean)


@dataclass(frozen=True)
class VQVAEPlan(ReconstructionPlan):
    """Squared errors (``surprise``), and a quarter of the mean squared distance of codes to their entries of the codebook.

    Args:
        latent: numbers in an entry of the codebook.
        entries: of the codebook.

    The others are those of ``ReconstructionPlan``.
    """

    widths: tuple[int, ...] = (32, 64, 64)
    latent: int = 16
    entries: int = 256

    kind: ClassVar[Kind] = "vq_vae"

    def shape(self, channels: int, sides: tuple[int, ...]) -> AutoencoderShape:
        return AutoencoderShape("vq_vae", channels, sides, self.widths, self.latent, self.entries)

    def losses(self, net: Autoencoder, clean: Float[Tensor, "n c *s"], rng: torch.Generator, crew: Crew = ALONE) -> Float[Tensor, " m"]:
        clean = crew.part(clean)
        found: Restored = net(clean)
        own = surprise((clean - found.images).square().flatten(1).mean(dim=1), crew)
        return own if found.penalty is None else own + found.penalty


def _vae(net: Autoencoder) -> VAE:
    if not isinstance(net, VAE):
        raise ConfigError(f"a network of kind {net.shape.kind} cannot be trained as a VAE")
    return net
