"""Signals of views of an image that keep its label: test-time augmentation."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from offmap.core.signals import Scalar, settings_of
from offmap.represent.headed import Family, Headed, Run

DEFAULTS: Mapping[str, Scalar] = {"upside_down": False}
SHIFT, ZOOM = 0.04, 0.05
"""Share of the side by which views are shifted, and by which they are made larger or smaller."""

View = tuple[float, float, int, int]
"""The window that is seen: width and height as shares of the image (negative: flipped), and whole pixels that it moves right and down."""

FLIPPED_UP: tuple[View, ...] = ((1.0, -1.0, 0, 0), (-1.0, -1.0, 0, 0))
"""Upside down, and turned by half."""


def views(height: int, width: int, *, upside_down: bool) -> tuple[View, ...]:
    """As it is; flipped left-right; shifted left, right, up, down; 5 % smaller, 5 % larger; the two of ``FLIPPED_UP`` if asked for."""
    down, right = max(1, round(SHIFT * height)), max(1, round(SHIFT * width))
    shifts = ((1.0, 1.0, right, 0), (1.0, 1.0, -right, 0), (1.0, 1.0, 0, down), (1.0, 1.0, 0, -down))
    zooms = ((1 + ZOOM, 1 + ZOOM, 0, 0), (1 - ZOOM, 1 - ZOOM, 0, 0))
    return ((1.0, 1.0, 0, 0), (-1.0, 1.0, 0, 0), *shifts, *zooms, *(FLIPPED_UP if upside_down else ()))


def seen(pixels: Float[Tensor, "n c h w"], view: View) -> Float[Tensor, "n c h w"]:
    """One view, bilinear; beyond the image its border goes on."""
    height, width = pixels.shape[2:]
    across, along, right, down = view
    if (abs(across), abs(along), right, down) == (1.0, 1.0, 0, 0):
        return pixels.flip([axis for axis, way in ((3, across), (2, along)) if way < 0])
    matrix = pixels.new_tensor([[across, 0, 2 * right / width], [0, along, 2 * down / height]]).expand(len(pixels), 2, 3)
    grid = functional.affine_grid(matrix, list(pixels.shape), align_corners=False)
    return functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)


def tta_signals(run: Run, names: Sequence[str]) -> dict[str, Tensor]:
    """``tta.logits (N, V, K)``: logits of each of the ``views``; the first is the ordinary pass, which is not made again.

    Raises:
        ConfigError: unknown settings.
    """
    turned = {name: bool(settings_of(name, DEFAULTS)["upside_down"]) for name in names}
    pixels = run.pixels.detach()
    height, width = pixels.shape[2:]
    rest = views(height, width, upside_down=any(turned.values()))[1:]
    logits = [run.logits.detach(), *(run.again(seen(pixels, view)).gave for view in rest)]
    return {name: torch.stack(logits[: len(views(height, width, upside_down=turned[name]))], dim=1).float() for name in names}


def _provided(net: Headed) -> frozenset[str]:
    return frozenset({"tta.logits"})


TTA = Family(_provided, tta_signals)
