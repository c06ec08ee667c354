"""Mahalanobis distance of what an autoencoder of the features leaves over."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.detector import State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.linalg import Shrinkage, Whitener
from offmap.core.types import Signals
from offmap.score._autoencoder import Plan, reconstructed, trained
from offmap.score._bank import sampled
from offmap.score._gaussian import check_shrinkage, one_gaussian
from offmap.score._held_out import Share
from offmap.score._layer import LayerDetector
from offmap.score._subspace import holding, principal_axes

COMPONENTS = 128
"""Principal components that the network sees; what lies outside them is all residual."""

WIDEST = 32
"""Largest code where none is asked for."""


@dataclass(frozen=True, kw_only=True)
class MaRS(LayerDetector):
    """MaRS: squared Mahalanobis distance ``(r - m)^T S^-1 (r - m)`` of the residual ``r = h - A(h)`` of an autoencoder A.

    m and S are mean and shrunk covariance of in-distribution residuals. A is small and non-linear, so usual images on a curved surface
    leave little over; the residual's directions count by their own variance. In squared standard deviations, about D for a
    typical image of many dimensions. ``residual_mahalanobis`` is the linear form.

    The idea is the paper's; its network and training were not public when this was written, so these are the project's: A works
    on the first 128 principal components, one tanh layer on each side of the code beside a straight path, starts as the linear
    autoencoder, is trained by Adam in float64, and keeps the weights of the least error on ``held_out`` (or on every fourth
    image, which then takes no part in m and S). Where no network beats it there, the linear one stays.

    Fitting trains a small network, ``N D^2 + D^3`` and at most ``steps`` gradient steps, a few seconds; scoring ``D^2`` an image;
    the state is about ``D^2 + 128 D`` numbers. No labels.

    Fails when the shift moves images along the surface of usual ones, and on few images, where the linear form is as good.

    Args:
        layer: name of the layer; ``last`` is the encoder's deepest.
        code: width of the code; not given: components that hold 90 % of the variance, at most 32. Always below the number of
            components and of images.
        hidden: width of the two hidden layers.
        steps: gradient steps at most; 0 keeps the linear autoencoder.
        shrinkage: ``ledoit_wolf`` or ``oas``, of the residual's covariance.
        max_bank: images to fit on; a uniform sample of more.
    """

    code: int | None = None
    hidden: int = 64
    steps: int = 2000
    shrinkage: Shrinkage = "ledoit_wolf"
    max_bank: int = 20_000

    reference: ClassVar[str] = "Di Salvo et al., MICCAI 2026, arXiv 2606.22649 (MaRS); network and training are the project's"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shrinkage(self.shrinkage, "mars")
        for name, low in (("hidden", 1), ("steps", 0), ("max_bank", 4)):
            if getattr(self, name) < low:
                raise ConfigError(f"mars: {name} = {getattr(self, name)} must be at least {low}")
        if self.code is not None and self.code < 1:
            raise ConfigError(f"mars: code = {self.code} must be at least 1")

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        own = torch.Generator().manual_seed(int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device)))
        fit = Share(batches, held=False) if held_out is None else batches
        rows = sampled(fit, self.rows, self.max_bank, generator)
        unseen = sampled(Share(batches, held=True) if held_out is None else held_out, self.rows, self.max_bank, generator)
        if len(rows) < 3 or len(unseen) < 1:
            raise SignalError(
                f"mars has {len(rows)} images to fit on and {len(unseen)} unseen ones, and needs 3 and 1: give at least 4 different images"
            )
        state = self._trained(rows, unseen, own)
        residuals = [{"r": rows - self._kept(state, rows)}]
        mean, _, covariance = one_gaussian(residuals, lambda batch: batch["r"], kind=self.shrinkage, who="mars")
        return {**state, "residual.mean": mean, "residual.factor": Whitener.of(mean, covariance).factor}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        rows = self.rows(signals, len(state["mean"]))
        return Whitener(state["residual.mean"], state["residual.factor"]).squared(rows - self._kept(state, rows))

    def _trained(self, rows: Float64[Tensor, "n d"], unseen: Float64[Tensor, "m d"], generator: torch.Generator) -> dict[str, Tensor]:
        """Mean, principal components, their scale, and the network's weights."""
        mean, values, basis = principal_axes(rows, COMPONENTS)
        scale = values.mean().sqrt()
        if not float(scale) > 1e-12 * float(mean.abs().max()):
            raise SignalError(f"mars: features.{self.layer} does not vary over {len(rows)} images: at least two different ones are needed")
        code = min(self.code or min(holding(values, 0.9), WIDEST), max(1, len(values) - 1))
        plan = Plan(code, self.hidden, self.steps)
        known, new = ((((part - mean) @ basis) / scale).cpu() for part in (rows, unseen))
        weights = trained(known, new, plan, generator)
        placed = {name: value.to(rows.device) for name, value in weights.items()}
        return {"mean": mean, "basis": basis, "scale": scale, **placed}

    def _kept(self, state: State, rows: Float64[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
        """``A(h)``."""
        basis, scale = state["basis"], state["scale"]
        return state["mean"] + scale * reconstructed(state, (rows - state["mean"]) @ basis / scale) @ basis.T
