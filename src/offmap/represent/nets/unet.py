"""A U-Net that denoises at any noise level (Karras et al., Elucidating the Design Space of Diffusion Models, NeurIPS 2022, 2206.00364)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from offmap.core.errors import ConfigError, NotAvailableError, SignalError
from offmap.represent.nets.architecture import Architecture


@dataclass(frozen=True, slots=True)
class UNetShape(Architecture):
    """Architecture of the U-Net.

    Args:
        channels: of the images, 1 or 3; of latent codes, up to 64.
        axes: of space, 2 or 3.
        widths: channels of each level from fine to coarse, multiples of 8; each level but the last halves the grid.
        blocks: residual blocks a level.
        attention: whether each level attends over its whole grid; the coarsest one always does.
        fold: pixels on each side that become channels of one place before the first level; 2 makes an image four times smaller for the
            network, which is then two to three times as fast, and a volume eight times.
        classes: K that the network can be told of; 0 = it knows none.
    """

    what: ClassVar[str] = "U-Net"
    added: ClassVar[Mapping[str, Any]] = {"fold": 1, "classes": 0}

    channels: int = 1
    axes: int = 2
    widths: tuple[int, ...] = (32, 64, 64)
    blocks: int = 1
    attention: tuple[bool, ...] = ()
    fold: int = 1
    classes: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.channels <= 64 or self.axes not in (2, 3):
            raise ConfigError(f"channels = {self.channels} must lie between 1 and 64, axes = {self.axes} must be 2 or 3")
        if not 0 <= self.classes <= 10_000:
            raise ConfigError(f"classes = {self.classes} must lie between 0 and 10000")
        if not 1 <= len(self.widths) <= 6 or any(w < 8 or w % 8 for w in self.widths):
            raise ConfigError(f"widths = {self.widths} must be one to six multiples of 8")
        if not 1 <= self.blocks <= 8:
            raise ConfigError(f"blocks = {self.blocks} must lie between 1 and 8")
        if self.attention and len(self.attention) != len(self.widths):
            raise ConfigError(f"attention = {self.attention} must be empty or have one value for each of widths = {self.widths}")
        if self.fold not in (1, 2, 4):
            raise ConfigError(f"fold = {self.fold} must be 1, 2 or 4")

    @property
    def stride(self) -> int:
        """By how much the coarsest grid is smaller than the image: the least side of an image in pixels."""
        return int(self.fold * 2 ** (len(self.widths) - 1))


class EDMDenoiser(nn.Module):
    """``D(x, sigma) = c_skip x + c_out F(c_in x, c_noise)`` with a U-Net F; input and output have unit variance at every level.

    Any size from the stride on: sides that are no multiple of it are padded by their border inside, and cut again.

    Args:
        shape: architecture of F.
        sigma_data: root mean square of the pixels of clean images in [-1, 1]; their deviation, where their mean is 0.
        generator: of the weights; a fresh one with seed 0 if not given.

    Raises:
        ConfigError: ``sigma_data`` is not positive.
        NotAvailableError: MONAI or einops is missing.
    """

    def __init__(self, shape: UNetShape, sigma_data: float, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if not 0 < sigma_data < math.inf:
            raise ConfigError(f"sigma_data = {sigma_data} must be positive: the training images must not all be of one value")
        self.shape, self.sigma_data = shape, float(sigma_data)
        self.net = _unet(shape)
        draw(self.net, generator if generator is not None else torch.Generator().manual_seed(0))

    def forward(
        self, x: Float[Tensor, "n c *s"], sigma: Float[Tensor, " n"], label: Int64[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n c *s"]:
        """As ``Denoiser``.

        Args:
            label: class of each image, 0 to K - 1, or K where it is not told; None = not told of any.

        Raises:
            SignalError: a side is smaller than the stride, or channels or axes are not those of the network.
        """
        self._check(x)
        level = sigma.view(-1, *[1] * (x.ndim - 1))
        total = level.square() + self.sigma_data**2
        told = self._told(x, label)
        seen: Any = self._seen(padded(x / total.sqrt(), self.shape.stride), (sigma.log() / 4).to(x.dtype), told)
        inside = seen[(..., *(slice(0, n) for n in x.shape[2:]))].to(x.dtype)
        mean: Tensor = self.sigma_data**2 / total * x + level * self.sigma_data / total.sqrt() * inside
        return mean

    def _seen(self, x: Tensor, level: Tensor, told: dict[str, Tensor]) -> Tensor:
        """F, with pixels folded into channels and back."""
        if self.shape.fold == 1:
            seen: Tensor = self.net(x, level, **told)
            return seen
        return unfolded(self.net(folded(x, self.shape.fold), level, **told), self.shape.fold)

    def _told(self, x: Tensor, label: Tensor | None) -> dict[str, Tensor]:
        if not self.shape.classes:
            return {}
        return {"class_labels": torch.full((len(x),), self.shape.classes, device=x.device) if label is None else label}

    def _check(self, x: Tensor) -> None:
        expected = (self.shape.channels, self.shape.axes)
        if (x.shape[1], x.ndim - 2) != expected:
            raise SignalError(f"images of shape {tuple(x.shape)} must have {expected[0]} channels and {expected[1]} axes of space")
        if min(x.shape[2:]) < self.shape.stride:
            raise SignalError(
                f"images of shape {tuple(x.shape)} are smaller than the {self.shape.stride} pixels of the diffusion network's stride"
            )


def loss_weight(sigma: Float[Tensor, " n"], sigma_data: float) -> Float[Tensor, " n"]:
    """``(sigma^2 + sigma_data^2) / (sigma sigma_data)^2``, with which an untrained network has a loss of 1 at every level."""
    return (sigma.square() + sigma_data**2) / (sigma * sigma_data).square()


def padded(x: Float[Tensor, "n c *s"], stride: int) -> Float[Tensor, "n c *t"]:
    """Continued by its border at the end of each axis, up to a multiple of the stride."""
    more = [-n % stride for n in x.shape[2:]]
    if not any(more):
        return x
    return functional.pad(x, [side for n in reversed(more) for side in (0, n)], mode="replicate")


def folded(x: Float[Tensor, "n c *s"], side: int) -> Float[Tensor, "n d *t"]:
    """Blocks of ``side`` pixels along each axis as channels; ``pixel_unshuffle`` for any number of axes."""
    coarse = [n // side for n in x.shape[2:]]
    blocks = x.reshape(*x.shape[:2], *(n for k in coarse for n in (k, side)))
    order = [0, 1, *range(3, blocks.ndim, 2), *range(2, blocks.ndim, 2)]
    return blocks.permute(order).reshape(len(x), -1, *coarse)


def unfolded(x: Float[Tensor, "n d *t"], side: int) -> Float[Tensor, "n c *s"]:
    """The inverse of ``folded``."""
    axes = x.ndim - 2
    blocks = x.reshape(len(x), -1, *[side] * axes, *x.shape[2:])
    order = [0, 1, *(k for i in range(axes) for k in (2 + axes + i, 2 + i))]
    return blocks.permute(order).reshape(*blocks.shape[:2], *(side * n for n in x.shape[2:]))


def _unet(shape: UNetShape) -> nn.Module:
    try:
        from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
        from monai.utils.module import OptionalImportError
    except ImportError as error:
        raise NotAvailableError(f"diffusion models need MONAI: pip install 'offmap[generative]' ({error})") from error
    attention = shape.attention or (*(False for _ in shape.widths[1:]), True)
    try:
        net: nn.Module = DiffusionModelUNet(
            spatial_dims=shape.axes,
            in_channels=shape.channels * shape.fold**shape.axes,
            out_channels=shape.channels * shape.fold**shape.axes,
            channels=shape.widths,
            num_res_blocks=shape.blocks,
            attention_levels=attention,
            num_head_channels=8,
            norm_num_groups=8,
            num_class_embeds=shape.classes + 1 if shape.classes else None,
        )
    except OptionalImportError as error:
        raise NotAvailableError(f"diffusion models need MONAI with einops: pip install 'offmap[generative]' ({error})") from error
    return net


def draw(net: nn.Module, generator: torch.Generator) -> None:
    """Weights from the generator; those that MONAI sets to 0, the last of each residual block and of the network, stay so."""
    for part in net.modules():
        if isinstance(part, nn.Conv2d | nn.Conv3d | nn.Linear):
            if bool(part.weight.detach().any()):
                nn.init.kaiming_uniform_(part.weight, a=math.sqrt(5), generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=0.5, generator=generator)
