"""How badly a network of the autoencoder family restores the image, and where."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.detector import Localiser, State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.moments import Moments
from offmap.core.types import Signals

Measure = Literal["l1", "l2", "ssim", "ssim_contrast", "perceptual", "normalised"]


@dataclass(frozen=True, kw_only=True)
class Reconstruction(Localiser):
    """Difference of the image x and what a network trained on in-distribution images makes of it, y; mean over pixels, at least 0.

    By measure: ``l1`` ``|x - y|`` and ``l2`` ``(x - y)^2`` of pixels in [0, 1]; ``ssim`` 1 - SSIM in [0, 2] (Gaussian window of 11
    pixels), ``ssim_contrast`` the same without the part that compares brightness; ``normalised`` ``(x - y)^2 / v`` with the variance v
    that the network expects, about 1 where it is right; ``perceptual`` the norm of the difference of a feature network's channels, each
    layer in units of its mean over in-distribution images, mean over layers, about 1 for a usual image. The map is the measure at each
    position.

    Needs a network that restores images (AE, AE-U for ``normalised``, DAE, VAE, VQ-VAE). Fitting reads the signal once; scoring takes
    one pass forward, ``perceptual`` two more of the built-in encoder; the state is empty, or one number a layer.

    Fails for odd images that are simple: smooth ones are restored well by a network that never saw their like. A code that is too long
    restores anything; one that is too short says most of edges. Small and faint lesions drown in the mean over the image.

    Args:
        measure: ``l1``, ``l2``, ``ssim``, ``ssim_contrast``, ``perceptual`` (images with two axes) or ``normalised`` (AE-U).
    """

    measure: Measure = "l2"

    reference: ClassVar[str] = (
        "Cai et al., MedIAnomaly: A Comparative Study of Anomaly Detection in Medical Images, 2024, arXiv 2404.04518 (AE, AE-PL, AE-U, "
        "DAE); Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, IEEE TIP 2004 (SSIM)"
    )

    def __post_init__(self) -> None:
        if self.measure not in get_args(Measure):
            raise ConfigError(f"reconstruction: measure = {self.measure!r} must be one of {', '.join(get_args(Measure))}")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({f"reconstruction.{self.measure}"})

    @property
    def fit_uses(self) -> frozenset[str]:
        return self.map_needs

    @property
    def map_needs(self) -> frozenset[str]:
        return frozenset({f"reconstruction.{self.measure}.map"})

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        total = reduce(Moments.merge, (Moments.of(self._rows(batch)) for batch in batches))
        if self.measure != "perceptual":
            return {}
        return {"scale": torch.where(total.mean > 0, total.mean, 1.0)}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        rows = self._rows(signals)
        return (rows / self._scale(state, rows)).mean(dim=1)

    def raw_map(self, state: State, signals: Signals) -> Float[Tensor, "n *s"]:
        maps = signals[f"reconstruction.{self.measure}.map"]
        scale = self._scale(state, maps.flatten(2).double())
        return (maps / scale.view(1, -1, *[1] * (maps.ndim - 2))).mean(dim=1)

    def _rows(self, signals: Signals) -> Float64[Tensor, "n l"]:
        found = signals[f"reconstruction.{self.measure}"].double()
        found = found[:, None] if found.ndim == 1 else found
        if found.ndim != 2 or found.shape[1] == 0 or (self.measure != "perceptual" and found.shape[1] != 1):
            shape = "(N, layers)" if self.measure == "perceptual" else "(N,)"
            raise SignalError(f"reconstruction: reconstruction.{self.measure} of shape {tuple(found.shape)} must be {shape}")
        return found

    def _scale(self, state: State, like: Float64[Tensor, "n l *p"]) -> Float64[Tensor, " l"]:
        scale = state.get("scale", like.new_ones(1))
        if len(scale) != like.shape[1]:
            raise SignalError(f"reconstruction: {like.shape[1]} layers, fitted on {len(scale)}")
        return scale
