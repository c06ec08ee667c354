"""Grey values and spectrum of the image itself: the baseline without any network."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional

from offmap.core.detector import Detector, State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.linalg import Shrinkage, Whitener
from offmap.core.types import Signals
from offmap.score._gaussian import check_shrinkage
from offmap.score._layers import layer_whiteners

CACHED = 16
"""Images at a time, so that what is made of their pixels stays in the cache."""

DARKEST = 1e-8
"""Least power whose logarithm is taken, in squared units of the pixels (which lie in [0, 1])."""


COLOUR = 3
"""Channels of every image; a grey one counts as red, green and blue alike, whether it comes with one channel or three."""


@dataclass(frozen=True, kw_only=True)
class Intensity(Detector):
    """Squared Mahalanobis distance of an image's histogram and power spectrum to those of in-distribution images.

    For red, green and blue (alike in a grey image): square roots of the shares of ``bins`` equal bins over [0, 1], and the log mean
    power in ``bands`` rings of spatial frequency up to 0.5 cycles a pixel. Each number is standardised, the covariance shrunk.
    The distance is in squared standard deviations, >= 0. The project's own; what a method over features is worth, it must show
    against this.

    Fitting costs ``N (S log S + D^2)`` for S pixels and ``D = 3 (bins + bands)``, scoring ``S log S + D^2 / 2`` an image; the state is
    ``D^2 + D`` numbers.

    Fails when the grey values and textures are usual and only what they show is odd, such as an organ in another place.

    Args:
        bins: of the histogram, at least 2.
        bands: rings of the spectrum; 0 for none.
        shrinkage: ``ledoit_wolf`` or ``oas``.
    """

    bins: int = 32
    bands: int = 12
    shrinkage: Shrinkage = "ledoit_wolf"

    reference: ClassVar[str] = (
        "none: a baseline of this project, Mahalanobis distance of the grey-value histogram and the radial power spectrum"
    )

    def __post_init__(self) -> None:
        check_shrinkage(self.shrinkage, self.method())
        for name, low in (("bins", 2), ("bands", 0)):
            if getattr(self, name) < low:
                raise ConfigError(f"intensity: {name} = {getattr(self, name)} must be at least {low}")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image"})

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        whitener = layer_whiteners(batches, ("image",), lambda batch, _: self._vectors(batch), kind=self.shrinkage, who=self.method())[
            "image"
        ]
        return {"mean": whitener.mean, "factor": whitener.factor}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        vectors = self._vectors(signals)
        if vectors.shape[1] != len(state["mean"]):
            raise SignalError(f"intensity: image of shape {tuple(signals['image'].shape)} must have {COLOUR} channels or one")
        return Whitener(state["mean"], state["factor"]).squared(vectors)

    def _vectors(self, signals: Signals) -> Float64[Tensor, "n d"]:
        images = signals["image"]
        if not 3 <= images.ndim <= 5 or 0 in images.shape[1:]:
            raise SignalError(f"intensity: image of shape {tuple(images.shape)} must be (N, C, ...) with one to three spatial axes")
        parts = [histogram(images, self.bins).sqrt()]
        if self.bands:
            power = ring_power(images if images.dtype == torch.float64 else images.float(), self.bands)
            parts.append(power.clamp_min(DARKEST).log())
        parts = [part.expand(-1, COLOUR, -1) if part.shape[1] == 1 else part for part in parts]
        return torch.cat([part.flatten(1) for part in parts], dim=1)


def histogram(images: Float[Tensor, "n c *s"], bins: int) -> Float64[Tensor, "n c b"]:
    """Share of the pixels in each of the bins over [0, 1]; pixels outside go to the nearest."""
    flat = images.flatten(0, 1).flatten(1)
    counts = []
    for part in flat.split(CACHED):
        index = (part * bins).clamp_(0, bins - 1).to(torch.int32)
        index += bins * torch.arange(len(part), dtype=torch.int32, device=images.device)[:, None]
        counts.append(torch.bincount(index.flatten(), minlength=len(part) * bins))
    return torch.cat(counts).reshape(*images.shape[:2], bins).double() / flat.shape[1]


def ring_power(images: Float[Tensor, "n c *s"], bands: int) -> Float64[Tensor, "n c r"]:
    """Mean power in rings of equal width in spatial frequency up to 0.5 cycles a pixel; the mean of the image is left out.

    The spectrum of a real image is symmetric: half of it is computed, and counts twice. Corners beyond 0.5 belong to the last
    ring; a ring without any frequency, as in small images, has none.
    """
    axes, sides = tuple(range(2, images.ndim)), tuple(images.shape[2:])
    last = torch.arange(sides[-1] // 2 + 1)
    twice = torch.where((last > 0) & (2 * last < sides[-1]), 2.0, 1.0).double()
    frequencies = [
        *(torch.fft.fftfreq(side, dtype=torch.float64) for side in sides[:-1]),
        torch.fft.rfftfreq(sides[-1], dtype=torch.float64),
    ]
    radius = torch.stack(torch.meshgrid(*frequencies, indexing="ij")).square().sum(dim=0).sqrt()
    ring = (radius * (2 * bands)).floor().clamp_max(bands - 1).long().flatten()
    weights = functional.one_hot(ring, bands).double() * twice.expand_as(radius).flatten()[:, None]
    means = weights / weights.sum(dim=0).clamp_min(1)
    return torch.cat([_power(part, axes) @ means.to(part) for part in images.split(CACHED)]).double()


def _power(images: Float[Tensor, "n c *s"], axes: tuple[int, ...]) -> Float[Tensor, "n c f"]:
    """Squared magnitudes of the half spectrum without its mean, those of one image add up to that of its pixels."""
    parts = torch.view_as_real(torch.fft.rfftn(images, dim=axes, norm="ortho"))
    power = parts.square().sum(dim=-1).flatten(2)
    power[..., 0] = 0
    return power
