"""Fisher's combination of the layers' p-values, without labels."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.detector import Detector, State
from offmap.core.errors import SignalError
from offmap.core.linalg import Shrinkage, Whitener, unit_norm
from offmap.core.types import Signals
from offmap.score._gaussian import check_shrinkage
from offmap.score._held_out import Share
from offmap.score._layer import rows_of
from offmap.score._layers import layer_whiteners, layers_in, patterns

SMALLEST = 1e-12
"""Least squared distance whose logarithm is taken."""

NARROWEST = 1e-3
"""Least mean excess of a tail; reached only where held-out images are copies of each other."""

TAIL = 0.1
"""Share of the held-out images that the tail beyond the largest is drawn from."""

LEAST = 4
"""Least number of held-out images."""


@dataclass(frozen=True, kw_only=True)
class MultilayerFisher(Detector):
    """Label-free multi-layer Mahalanobis, joined by Fisher's method with Brown's correction for layers that depend on each other.

    In each layer ``m_l`` is the log squared Mahalanobis distance to the mean, ``p_l = (1 + #{held-out >= m_l}) / (n + 1)``. The
    statistic ``-2 sum ln p_l`` is divided by ``c = Var / (2 Mean)`` and compared with chi squared of ``k = 2 Mean^2 / Var``
    degrees of freedom, mean and variance over the held-out images, each of which is compared with the others. k is at most
    2 L, its value where layers are independent. The number is ``-ln p`` in nats, >= 0, and never rounds off: about 0.7 for a
    typical image, 7 where one usual image in a thousand is as odd.

    Beyond the largest held-out value ``-ln p_l`` goes on as ``ln(n + 1) + (m_l - largest) / e``, ``e`` the mean excess of the
    upper tenth, a Pareto tail of the distance; by counting alone all far images would tie at the floor ``1 / (n + 1)``. The
    tail, and that ``m_l`` is a logarithm, are the project's own.

    Fitting costs ``N D^2`` for each layer, twice for Ledoit-Wolf; scoring ``D^2 / 2 + log n`` for each layer; the state is
    ``D^2 + D + n`` numbers for each layer and n held-out images. Without ``held_out``, every fourth image is kept apart.

    Fails when one layer out of many sees the shift: the others, each with a p-value near 1/2, dilute it. Usual images
    take few values, as p-values are counted.

    Args:
        layers: layers to use; none named: all.
        normalise: bring features to length one first (Mahalanobis++).
        shrinkage: ``ledoit_wolf`` or ``oas``.
    """

    layers: tuple[str, ...] = ()
    normalise: bool = True
    shrinkage: Shrinkage = "ledoit_wolf"

    reference: ClassVar[str] = (
        "Lee et al., NeurIPS 2018, arXiv 1807.03888 (layers) joined as in Haroush et al., A Statistical Framework for Efficient "
        "Out of Distribution Detection in Deep Neural Networks, ICLR 2022, arXiv 2102.12967; Brown, Biometrics 31 (1975)"
    )

    def __post_init__(self) -> None:
        check_shrinkage(self.shrinkage, self.method())

    @property
    def needs(self) -> frozenset[str]:
        return patterns("features", self.layers)

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        fit = Share(batches, held=False) if held_out is None else batches
        unseen = Share(batches, held=True) if held_out is None else held_out
        layers = layers_in(next(iter(fit)), "features", self.layers)
        state: dict[str, Tensor] = {}
        for i, (layer, whitener) in enumerate(layer_whiteners(fit, layers, self._vectors, kind=self.shrinkage, who=self.method()).items()):
            state |= {f"layer.{i:02d}.{layer}.mean": whitener.mean, f"layer.{i:02d}.{layer}.factor": whitener.factor}
        parts = [self._logs(state, batch) for batch in unseen]
        if sum(map(len, parts)) < LEAST:
            raise SignalError(
                f"multilayer_fisher has {sum(map(len, parts))} held-out images and needs at least {LEAST}: "
                f"give more in held_out, or none and at least {4 * LEAST} images to fit on"
            )
        held = torch.cat(parts).sort(dim=0).values
        excess = mean_excess(held)
        own = 2 * own_surprise(held, torch.cat(parts)).sum(dim=1)
        if not float(own.mean()) > 0:
            raise SignalError("multilayer_fisher: the held-out images are all as odd as each other; are they copies of one image?")
        freedom = (2 * own.mean().square() / own.var().clamp_min(SMALLEST)).clamp_max(2 * held.shape[1])
        return {**state, "held": held, "excess": excess, "freedom": freedom, "scale": own.mean() / freedom}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        statistic = 2 * surprise(state["held"], state["excess"], self._logs(state, signals)).sum(dim=1)
        return -log_survival(statistic / state["scale"], state["freedom"])

    def _vectors(self, signals: Signals, layer: str) -> Float64[Tensor, "n d"]:
        rows = rows_of(signals, f"features.{layer}", self.method())
        return unit_norm(rows) if self.normalise else rows

    def _logs(self, state: State, signals: Signals) -> Float64[Tensor, "n l"]:
        columns = []
        for prefix in sorted(name.removesuffix(".mean") for name in state if name.endswith(".mean")):
            whitener, layer = Whitener(state[f"{prefix}.mean"], state[f"{prefix}.factor"]), prefix.split(".", 2)[2]
            rows_of(signals, f"features.{layer}", self.method(), len(whitener.mean))
            columns.append(whitener.squared(self._vectors(signals, layer)).clamp_min(SMALLEST).log())
        return torch.stack(columns, dim=1)


def mean_excess(held: Float64[Tensor, "m l"]) -> Float64[Tensor, " l"]:
    """Mean of the upper tenth of sorted columns (two rows at least) above its least value: Hill's estimate, as these are logarithms."""
    upper = max(2, round(TAIL * len(held)))
    return (held[-upper:] - held[-upper]).sum(dim=0).div(upper - 1).clamp_min(NARROWEST)


def surprise(held: Float64[Tensor, "m l"], excess: Float64[Tensor, " l"], logs: Float64[Tensor, "n l"]) -> Float64[Tensor, "n l"]:
    """``-ln p`` of each layer, >= 0; counted among the sorted held-out values, extrapolated beyond the largest."""
    below = torch.searchsorted(held.T.contiguous(), logs.T.contiguous()).T.double()
    counted = -torch.log((1 + len(held) - below) / (len(held) + 1))
    return counted + (logs - held[-1]).clamp_min(0) / excess


def own_surprise(held: Float64[Tensor, "m l"], logs: Float64[Tensor, "m l"]) -> Float64[Tensor, "m l"]:
    """``-ln p`` of the held-out images, each counted among the others."""
    below = torch.searchsorted(held.T.contiguous(), logs.T.contiguous()).T.double()
    return -torch.log((len(held) - below) / len(held))


def log_survival(value: Float64[Tensor, " n"], freedom: Float64[Tensor, ""]) -> Float64[Tensor, " n"]:
    """``ln P(chi squared > value)``; a continued fraction where the probability itself is too small for a number.

    The fraction is ``Q(a, x) = x^a e^-x / Gamma(a) / (x + 1 - a - 1(1-a)/(x + 3 - a - 2(2-a)/(x + 5 - a - ...)))``.
    """
    half, shape = value / 2, freedom / 2
    direct = torch.special.gammaincc(shape.expand_as(half), half)
    far = torch.where(direct > 1e-200, 2 * shape + 500, half)
    fraction = far + 81 - shape
    for i in range(40, 0, -1):
        fraction = far + 2 * i - 1 - shape - i * (i - shape) / fraction
    beyond = shape * far.log() - far - torch.lgamma(shape) - fraction.log()
    return torch.where(direct > 1e-200, direct.clamp_min(1e-300).log(), beyond)
