"""Pictures that a diffusion model draws from noise: what it takes for normal, to be looked at."""

import base64
import io

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image as Pillow
from torch import Tensor
from torch.nn import functional

from offmap.represent.denoiser import Denoiser
from offmap.represent.noised import denoised, levels_of

COLUMNS, ROWS, SIDE, STEPS = 6, 2, 64, 32
"""Of the sheet; pixels of a picture at most; steps of the path from noise."""

LOWEST, HIGHEST = 0.02, 40.0


def draw(denoise: Denoiser, shape: tuple[int, ...], *, count: int, seed: int, device: torch.device) -> Float[Tensor, "n c *s"]:
    """Samples of the model in its own scale, by Euler steps from pure noise down equal ratios of noise.

    Args:
        shape: ``(C, *S)`` of one sample.
    """
    sigmas = levels_of("samples", STEPS, LOWEST, HIGHEST).flip(0).tolist()
    x = sigmas[0] * torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)).to(device)
    with torch.no_grad():
        for sigma, lower in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
            mean = denoised(denoise, x, sigma)
            x = mean + (lower / sigma) * (x - mean)
    found: Tensor = x.cpu()
    return found


def sheet(images: Float[Tensor, "n c *s"]) -> str:
    """Images in [-1, 1] (of volumes, the middle slice) side by side as a PNG in a ``data:`` address."""
    flat = images[:, :, images.shape[2] // 2] if images.ndim == 5 else images
    scale = min(1.0, SIDE / max(flat.shape[2:]))
    if scale < 1:
        flat = functional.interpolate(flat, scale_factor=scale, mode="bilinear", antialias=True, align_corners=False)
    tiles = ((flat.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    columns = min(COLUMNS, len(tiles))
    rows = [torch.cat(list(tiles[i : i + columns]), dim=2) for i in range(0, len(tiles) - columns + 1, columns)]
    grid = torch.cat(rows, dim=1).permute(1, 2, 0).numpy()
    out = io.BytesIO()
    Pillow.fromarray(np.ascontiguousarray(grid[..., 0] if grid.shape[2] == 1 else grid)).save(out, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
