"""Lift, map, detect: how far an image is from what a diffusion model paints into its hidden parts, and where."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.detector import Localiser, State
from offmap.core.errors import ConfigError
from offmap.core.signals import Scalar, named
from offmap.core.types import Signals
from offmap.score._noise_levels import NoiseDetector


@dataclass(frozen=True, kw_only=True)
class LMD(NoiseDetector, Localiser):
    """Mean squared difference of the image and its inpainted parts, hidden under a checkerboard and under its negative.

    Hidden parts are painted from pure noise along the levels downward, while the rest is held to the image with its noise. The number
    is in squared units of pixels in [-1, 1], at least 0; the map is the difference at each position.

    Needs a diffusion model of the in-distribution images. Nothing is fitted; scoring takes ``2 * levels * repeats`` passes forward (20F
    with the defaults), the map the same again; the state is empty. The paper takes LPIPS, a distance by a network for natural images,
    and ten attempts of some hundred passes.

    Fails for odd images that are smooth: what lies between their visible parts is easily guessed, while rich usual images are not.

    Args:
        levels: steps of the path.
        low: lowest level, deviation of the noise in units of pixels in [-1, 1].
        high: highest level; those between lie in equal ratios.
        cells: fields of the checkerboard along each axis.
        repeats: noises whose differences are averaged.
    """

    cells: int = 8
    repeats: int = 1

    restores: ClassVar[bool] = True
    passes: ClassVar[str] = "20F"
    reference: ClassVar[str] = (
        "Liu et al., Unsupervised Out-of-Distribution Detection with Diffusion Inpainting, ICML 2023, arXiv 2302.10326"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cells < 2 or not 1 <= self.repeats <= 100:
            raise ConfigError(f"lmd: cells = {self.cells} must be at least 2, repeats = {self.repeats} between 1 and 100")

    def _settings(self) -> dict[str, Scalar]:
        return {"levels": self.levels, "low": self.low, "high": self.high, "cells": self.cells, "repeats": self.repeats}

    @property
    def signal(self) -> str:
        return named("lmd.errors", self._settings())

    @property
    def fit_uses(self) -> frozenset[str]:
        return self.map_needs

    @property
    def map_needs(self) -> frozenset[str]:
        return frozenset({named("lmd.map", self._settings())})

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        for batch in batches:
            self.rows(batch, 1)
        return {}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        return self.rows(signals, 1)[:, 0]

    def raw_map(self, state: State, signals: Signals) -> Float[Tensor, "n *s"]:
        return signals[named("lmd.map", self._settings())][:, 0]
