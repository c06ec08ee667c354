"""Pictures by which a person judges a model: what it makes up, and what it makes of images."""

import base64
import io
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image as Pillow
from torch import Tensor
from torch.nn import functional

from offmap.core.trainer import Sheet
from offmap.represent.denoiser import Denoiser
from offmap.represent.noised import denoised, levels_of

COLUMNS, ROWS, SIDE, STEPS = 6, 2, 64, 32
"""Of the sheet; pixels of a picture at most; steps of the path from noise."""

LOWEST, HIGHEST = 0.02, 40.0

GAP, LINE = 2, 128
"""Pixels between pictures, and their grey."""


def draw(denoise: Denoiser, shape: tuple[int, ...], *, count: int, seed: int, device: torch.device) -> Float[Tensor, "n c *s"]:
    """Samples of the model in its own scale, by Euler steps from pure noise down equal ratios of noise.

    Args:
        shape: ``(C, *S)`` of one sample.
        count: how many; of volumes, which cost more, half as many.
    """
    sigmas = levels_of("samples", STEPS, LOWEST, HIGHEST).flip(0).tolist()
    count = count if len(shape) == 3 else -(-count // 2)
    x = sigmas[0] * torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)).to(device)
    with torch.no_grad():
        for sigma, lower in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
            mean = denoised(denoise, x, sigma)
            x = mean + (lower / sigma) * (x - mean)
    found: Tensor = x.cpu()
    return found


def made_up(images: Float[Tensor, "n c *s"], words: str) -> Sheet:
    """What a model drew, in [-1, 1].

    Args:
        words: how, and what else is to be known: ``Drawn by the model from noise.``
    """
    return Sheet(sheet(images), f"{words} They should look like the training images, and not all alike.", made_up=True)


def compared(rows: Sequence[Float[Tensor, "n _ *s"]], words: str) -> Sheet:
    """The same images in several forms, in [-1, 1], one form a row.

    Args:
        words: what the rows are, from above, and what good ones look like.
    """
    channels = max(row.shape[1] for row in rows)
    wide = [row.cpu().float().expand(-1, channels, *row.shape[2:]) for row in rows]
    return Sheet(sheet(torch.cat(wide), columns=len(rows[0])), words, made_up=False)


def sheet(images: Float[Tensor, "n c *s"], *, columns: int = COLUMNS) -> str:
    """Images in [-1, 1] (of volumes, the middle slice) side by side as a PNG in a ``data:`` address."""
    flat = images[:, :, images.shape[2] // 2] if images.ndim == 5 else images
    scale = min(1.0, SIDE / max(flat.shape[2:]))
    if scale < 1:
        flat = functional.interpolate(flat, scale_factor=scale, mode="bilinear", antialias=True, align_corners=False)
    tiles = ((flat.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    tiles = functional.pad(tiles, (0, GAP, 0, GAP), value=LINE)
    columns = min(columns, len(tiles))
    rows = [torch.cat(list(tiles[i : i + columns]), dim=2) for i in range(0, len(tiles) - columns + 1, columns)]
    grid = torch.cat(rows, dim=1)[:, :-GAP, :-GAP].permute(1, 2, 0).numpy()
    out = io.BytesIO()
    Pillow.fromarray(np.ascontiguousarray(grid[..., 0] if grid.shape[2] == 1 else grid)).save(out, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
