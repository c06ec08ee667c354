"""How far a diffusion model's score is from moving along with a shifted image, and where."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from offmap.core.detector import Localiser, State
from offmap.core.errors import ConfigError
from offmap.core.signals import Scalar, named
from offmap.core.types import Signals
from offmap.score._noise_levels import LevelsDetector


@dataclass(frozen=True, kw_only=True)
class GEPC(LevelsDetector, Localiser):
    """Mean over levels of ``(e - mean) / deviation``, ``e = sigma^2 |g^-1 s(g x) - s(x)|^2`` of the score s, mean over shifts g and pixels.

    Learnt on images in which a shift by ``shift`` pixels changes nothing, the score follows it where it knows the image. The number is in
    deviations of in-distribution images. The map is e at each position, mean over levels, in units of the noise's variance.

    Needs a diffusion model of the in-distribution images. Scoring takes ``levels * (1 + 2 axes)`` passes forward (15F in two axes); the
    map the same again; fitting the same for each held-out image (for all, where fewer than 30 are held out); the state is two numbers
    a level.

    Fails with networks that are equivariant by build, whose score follows a shift of anything. Flips and turns, which the paper uses on
    natural images, are no symmetries of anatomy and are left out; standardising levels is the project's own.

    Args:
        levels: number of levels.
        low: lowest level, deviation of the noise in units of pixels in [-1, 1].
        high: highest level; those between lie in equal ratios.
        shift: in pixels.
    """

    levels: int = 3
    low: float = 0.1
    high: float = 1.0
    shift: int = 1

    restores: ClassVar[bool] = True
    passes: ClassVar[str] = "15F"
    reference: ClassVar[str] = (
        "Rouzoumka et al., GEPC: Group-Equivariant Posterior Consistency for Out-of-Distribution Detection in Diffusion Models, 2026, "
        "arXiv 2602.00191"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shift < 1:
            raise ConfigError(f"gepc: shift = {self.shift} must be at least 1")

    def _settings(self) -> dict[str, Scalar]:
        return {"levels": self.levels, "low": self.low, "high": self.high, "shift": self.shift}

    @property
    def signal(self) -> str:
        return named("gepc.errors", self._settings())

    @property
    def fit_uses(self) -> frozenset[str]:
        return self.map_needs

    @property
    def map_needs(self) -> frozenset[str]:
        return frozenset({named("gepc.map", self._settings())})

    def raw_map(self, state: State, signals: Signals) -> Float[Tensor, "n *s"]:
        return signals[named("gepc.map", self._settings())][:, 0]
