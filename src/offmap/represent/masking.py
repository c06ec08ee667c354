"""Evidence of several exits for a class, and images in which it is hidden (MECAM)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from offmap.core.errors import ConfigError
from offmap.core.signals import Scalar, base_of, settings_of

FEATURES, MASKED, MAP = "mecam.features", "mecam.masked_features", "mecam.map"
FILLS = ("zero", "mean", "blur")
"""What hidden places show; a signal's ``fill`` is the place in this list."""

BLUR = 1 / 16
"""Deviation of the blur as a share of the image's shorter side."""

_LOOKING: Mapping[str, Scalar] = {"exits": 0, "own_class": False, "above_chance": False}
_DEFAULTS: Mapping[str, Mapping[str, Scalar]] = {FEATURES: {}, MAP: _LOOKING, MASKED: {**_LOOKING, "fill": 0}}


@dataclass(frozen=True, slots=True)
class Look:
    """How evidence is taken and hidden.

    Args:
        exits: which count, 0 the shallowest.
        own_class: each exit shows its own likeliest class instead of the last exit's.
        above_chance: probabilities p are stretched to ``max(0, (p - 1/K) / (1 - 1/K))``.
        fill: one of ``FILLS``.
    """

    exits: tuple[int, ...]
    own_class: bool = False
    above_chance: bool = False
    fill: str = "zero"

    def unfilled(self) -> "Look":
        """What the evidence depends on."""
        return replace(self, fill="zero")


def look_of(name: str, count: int) -> Look:
    """The settings in a signal's name.

    Args:
        count: number of exits that there are.

    Raises:
        ConfigError: unknown settings, an exit that is not there or named twice, or no such fill.
    """
    settings = settings_of(name, _DEFAULTS[base_of(name)])
    digits = str(settings.get("exits", 0))
    which = tuple(range(count)) if digits == "0" else tuple(sorted(int(d) - 1 for d in digits if d.isdigit()))
    if not digits.isdigit() or len(set(which)) != len(which) or not set(which) <= set(range(count)):
        raise ConfigError(f"signal {name!r}: exits = {digits} must be digits from 1 to {count}, each once, or 0 for all")
    fill = int(settings.get("fill", 0))
    if not 0 <= fill < len(FILLS):
        raise ConfigError(f"signal {name!r}: fill = {fill} must be 0 to {len(FILLS) - 1} ({', '.join(FILLS)})")
    return Look(which, bool(settings.get("own_class", False)), bool(settings.get("above_chance", False)), FILLS[fill])


def evidence(
    maps: Sequence[Float[Tensor, "n _c _h _w"]],
    weights: Sequence[Float[Tensor, "k _c"]],
    biases: Sequence[Float[Tensor, " k"]],
    look: Look,
    size: Sequence[int],
) -> Float[Tensor, "n 1 h w"]:
    """Where the exits see the class, in [0, 1]: ``M = sum_e w_e A_e``.

    ``A_e`` is the softmax over classes, at each pixel, of the exit's class maps brought to the image's size (bilinear), for the class
    that the deepest exit finds likeliest; ``w_e`` is the exit's own top probability for the image, divided by the sum over the exits
    that count. All of it from the image as it is. With K classes, an undecided exit gives 1/K everywhere.
    """
    class_maps = {
        e: functional.conv2d(maps[e].to(weights[e]), weights[e][:, :, None, None], biases[e]) for e in {*look.exits, len(maps) - 1}
    }
    logits = {e: values.mean(dim=(2, 3)) for e, values in class_maps.items()}
    sure = torch.stack([logits[e].softmax(dim=1).amax(dim=1) for e in look.exits])
    shares = sure / sure.sum(dim=0)
    total = torch.zeros(())
    for share, e in zip(shares, look.exits, strict=True):
        chosen = logits[e if look.own_class else len(maps) - 1].argmax(dim=1)
        full = functional.interpolate(class_maps[e], size=tuple(size), mode="bilinear", align_corners=False)
        shown = probability(full, chosen)
        if look.above_chance:
            chance = 1 / full.shape[1]
            shown = ((shown - chance) / (1 - chance)).clamp_min(0)
        total = total.to(shown) + share[:, None, None] * shown
    return total.clamp(0, 1).unsqueeze(1)


def probability(maps: Float[Tensor, "n k h w"], chosen: Int64[Tensor, " n"]) -> Float[Tensor, "n h w"]:
    """Softmax over classes at each pixel, of one class an image: ``1 / sum_k exp(m_k - m_c)``, where an overflow is a probability of 0."""
    own = maps[torch.arange(len(maps), device=maps.device), chosen]
    return (maps - own[:, None]).exp_().sum(dim=1).reciprocal_()


def filled(images: Float[Tensor, "n c h w"], mask: Float[Tensor, "n 1 h w"], fill: str) -> Float[Tensor, "n c h w"]:
    """``x (1 - M)``, with the mean of each channel or the blurred image put in as far as x is taken away.

    Args:
        fill: one of ``FILLS``.
    """
    hidden = images * (1 - mask)
    if fill == "zero":
        return hidden
    return hidden + mask * (images.mean(dim=(2, 3), keepdim=True) if fill == "mean" else blurred(images))


def blurred(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Gaussian of a deviation of 1/16 of the shorter side, cut at three deviations; the image is mirrored at its border."""
    sigma = BLUR * min(images.shape[2:])
    radius = min(math.ceil(3 * sigma), min(images.shape[2:]) - 1)
    at = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (at / max(sigma, 1e-6)).square())
    kernel = kernel / kernel.sum()
    planes = functional.pad(images.flatten(0, 1).unsqueeze(1), (radius,) * 4, mode="reflect")
    smooth = functional.conv2d(functional.conv2d(planes, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    return smooth.view_as(images)
