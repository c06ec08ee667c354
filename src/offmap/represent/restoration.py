"""How an image differs from what a network made of it: differences of pixels, of local structure, and of another network's features."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from offmap.core.errors import ConfigError, NotAvailableError, SignalError
from offmap.represent.encoder import BuiltinEncoder
from offmap.represent.nets.autoencoder import Restored

WINDOW, DEVIATION = 11, 1.5
"""Side and deviation of the Gaussian window of SSIM, in pixels (Wang et al., IEEE TIP 2004)."""

SMALLEST = 64
"""Shorter side in pixels that images are enlarged to before the built-in encoder sees them."""

Difference = Callable[[Float[Tensor, "n c *s"], Restored], Float[Tensor, "n 1 *s"]]


def absolute(x: Float[Tensor, "n c *s"], restored: Restored) -> Float[Tensor, "n 1 *s"]:
    """``|x - y|``, mean over channels."""
    return (x - restored.images).abs().mean(dim=1, keepdim=True)


def squared(x: Float[Tensor, "n c *s"], restored: Restored) -> Float[Tensor, "n 1 *s"]:
    """``(x - y)^2``, mean over channels."""
    return (x - restored.images).square().mean(dim=1, keepdim=True)


def normalised(x: Float[Tensor, "n c *s"], restored: Restored) -> Float[Tensor, "n 1 *s"]:
    """``(x - y)^2 / v`` with the variance v that the network expects, mean over channels.

    Raises:
        ConfigError: it expects none.
    """
    if restored.log_variance is None:
        raise ConfigError("this network gives no variance of its errors: train an autoencoder with uncertainty = true")
    return ((x - restored.images).square() * torch.exp(-restored.log_variance)).mean(dim=1, keepdim=True)


def structural(x: Float[Tensor, "n c *s"], restored: Restored) -> Float[Tensor, "n 1 *s"]:
    """``1 - SSIM`` in [0, 2], mean over channels."""
    return 1 - _ssim(x, restored.images)[0]


def contrast(x: Float[Tensor, "n c *s"], restored: Restored) -> Float[Tensor, "n 1 *s"]:
    """1 minus the part of SSIM that compares contrast and structure, and not brightness, in [0, 2], mean over channels."""
    return 1 - _ssim(x, restored.images)[1]


DIFFERENCES: Mapping[str, Difference] = {
    "l1": absolute,
    "l2": squared,
    "normalised": normalised,
    "ssim": structural,
    "ssim_contrast": contrast,
}
"""By the name of their measure: ``reconstruction.<measure>``."""


def _ssim(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both at every position: images are continued by their border, so that the map has their size."""
    try:
        from monai.metrics.regression import compute_ssim_and_cs
    except ImportError as error:
        raise NotAvailableError(f"SSIM needs MONAI: pip install 'offmap[generative]' ({error})") from error
    axes, edge = x.ndim - 2, WINDOW // 2
    wide = (functional.pad(images, [edge] * (2 * axes), mode="replicate") for images in (x, y))
    one, other = compute_ssim_and_cs(*wide, spatial_dims=axes, kernel_size=(WINDOW,) * axes, kernel_sigma=(DEVIATION,) * axes)
    return one.mean(dim=1, keepdim=True), other.mean(dim=1, keepdim=True)


def perceptual_errors(encoder: BuiltinEncoder, x: Float[Tensor, "n c *s"], y: Float[Tensor, "n c *s"]) -> Float[Tensor, "n layers"]:
    """``|f(x) - f(y)|`` of the channels at each position of a layer's map, mean over positions, one number a layer."""
    return torch.stack([found.flatten(1).mean(dim=1) for found in _distances(encoder, x, y)], dim=1)


def perceptual_maps(encoder: BuiltinEncoder, x: Float[Tensor, "n c *s"], y: Float[Tensor, "n c *s"]) -> Float[Tensor, "n layers *s"]:
    """The same at each position, brought to the images' size."""
    size = tuple(x.shape[2:])
    maps = [functional.interpolate(found[:, None], size, mode="bilinear", align_corners=False) for found in _distances(encoder, x, y)]
    return torch.cat(maps, dim=1)


def _distances(encoder: BuiltinEncoder, x: Tensor, y: Tensor) -> Sequence[Float[Tensor, "n h w"]]:
    if x.ndim != 4:
        raise SignalError(f"images of shape {tuple(x.shape)}: perceptual differences are those of a network for two axes of space")
    names = frozenset(f"feature_map.{layer}" for layer in encoder.layers)
    one, other = (encoder.encode(_enlarged(images.clamp(0, 1)), names) for images in (x, y))
    return [torch.linalg.vector_norm(one[f"feature_map.{k}"] - other[f"feature_map.{k}"], dim=1) for k in encoder.layers]


def _enlarged(images: Float[Tensor, "n c *s"]) -> Float[Tensor, "n c i j"]:
    factor = SMALLEST / min(images.shape[2:])
    if factor <= 1:
        return images
    size = [max(SMALLEST, round(factor * n)) for n in images.shape[2:]]
    return functional.interpolate(images, size, mode="bilinear", align_corners=False)
