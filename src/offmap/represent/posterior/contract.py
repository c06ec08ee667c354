"""The contract of a posterior sampler: one step from a noise level to the next, and what the data changed on the way."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from offmap.core.component import Component
from offmap.core.errors import ConfigError
from offmap.represent.denoiser import Denoiser
from offmap.represent.operators.contract import Operator


@dataclass(frozen=True)
class Level:
    """A step between two noise levels.

    Args:
        index: from 0, the highest noise.
        sigma: deviation of the noise before the step, in the units of images in [-1, 1].
        below: after it; 0 in the last step.
    """

    index: int
    sigma: float
    below: float

    @property
    def length(self) -> float:
        """``sigma^2 - below^2``, which is ``g^2 dt`` of the variance-exploding process."""
        return self.sigma**2 - self.below**2


@dataclass(frozen=True, eq=False)
class Step:
    """What a step gave.

    Args:
        x: the samples at the level below.
        updates: raw changes of x by the data, in the sampler's own coordinates: one, or one for each inner repetition.
        evaluations: passes through the network, forward; a backward pass counts as two.
    """

    x: Float[Tensor, "m c h w"]
    updates: tuple[Float[Tensor, "m c h w"], ...]
    evaluations: int = 1


@runtime_checkable
class Draws(Protocol):
    """Fresh noise at each call, of each image's own."""

    def normal(self) -> Float[Tensor, "m c h w"]:
        """Standard normal noise of the samples."""
        ...

    def shared(self) -> Float[Tensor, "m c h w"]:
        """The same for all samples of an image."""
        ...


@dataclass(frozen=True, kw_only=True)
class Sampler(Component, ABC):
    """Settings that all samplers have.

    Args:
        steps: T, from the highest noise to none.
        samples: S of each image.
        sigma_max: highest noise, in the units of images in [-1, 1].
        sigma_min: lowest noise above none.
        start: ``noise``, or ``inverse``: the regularised pseudo-inverse plus noise of ``sigma_max``, which may then be small.
        guidance: ``matched``: along the likelihood score of moment matching, exact for Gaussian priors, so that sums are nats; ``dps``:
            along the gradient of the residual's norm, with a step of ``strength``, so that they are not.
        backward: go back through the network for the gradient; without, its Jacobian is taken as ``s^2 / (s^2 + sigma^2)`` (matched)
            or as one (dps), which saves two thirds of the time.
        strength: step of ``dps``, above 0.
        deviation: s, standard deviation of the prior's images, which ``matched`` needs; EDM's value for images in [-1, 1] is 0.5.
    """

    steps: int = 100
    samples: int = 8
    sigma_max: float = 80.0
    sigma_min: float = 0.01
    start: Literal["noise", "inverse"] = "noise"
    guidance: Literal["matched", "dps"] = "matched"
    backward: bool = False
    strength: float = 0.3
    deviation: float = 0.5

    def __post_init__(self) -> None:
        who = self.method()
        if self.steps < 2 or self.samples < 1:
            raise ConfigError(f"{who}: steps = {self.steps} must be at least 2, samples = {self.samples} at least 1")
        if not 0 < self.sigma_min < self.sigma_max:
            raise ConfigError(f"{who}: 0 < sigma_min < sigma_max is needed, found {self.sigma_min} and {self.sigma_max}")
        if not (self.strength > 0 and self.deviation > 0):
            raise ConfigError(f"{who}: strength = {self.strength} and deviation = {self.deviation} must be above 0")
        for key, known in (("start", ("noise", "inverse")), ("guidance", ("matched", "dps"))):
            if getattr(self, key) not in known:
                raise ConfigError(f"{who}: {key} = {getattr(self, key)!r} must be one of {', '.join(known)}")

    @property
    def nats(self) -> bool:
        """Whether sums of its squared updates are in nats, as far as the guidance is the likelihood score."""
        return self.guidance == "matched"

    @abstractmethod
    def sigmas(self) -> list[float]:
        """Noise levels in falling order, T of them above 0, then 0."""

    def levels(self) -> list[Level]:
        """The steps."""
        sigmas = self.sigmas()
        return [Level(i, sigmas[i], sigmas[i + 1]) for i in range(self.steps)]

    @abstractmethod
    def clock(self, level: Level) -> tuple[float, float]:
        """Diffusion coefficient g and length of time dt of a step, in the coordinates of its updates."""

    @abstractmethod
    def step(
        self, denoiser: Denoiser, x: Float[Tensor, "m c h w"], level: Level, y: Float[Tensor, "m c *k"], operator: Operator, draws: Draws
    ) -> Step:
        """From ``level.sigma`` to ``level.below``.

        Args:
            x: samples in variance-exploding form, ``clean + sigma noise``.
            y: the measurement of each.
            draws: the only source of randomness; asked anew in every step.
        """


def karras(steps: int, sigma_max: float, sigma_min: float, rho: float) -> list[float]:
    """Levels evenly spaced in ``sigma^(1/rho)``, then 0 (Karras et al., NeurIPS 2022, eq. 5)."""
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return [(high + i / (steps - 1) * (low - high)) ** rho for i in range(steps)] + [0.0]


def geometric(steps: int, sigma_max: float, sigma_min: float) -> list[float]:
    """Levels in constant ratio, then 0."""
    return [sigma_max * (sigma_min / sigma_max) ** (i / (steps - 1)) for i in range(steps)] + [0.0]
