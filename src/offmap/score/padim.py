"""PaDiM: a Gaussian at each position of the feature maps, and how far a patch is from that of its own place."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.detector import Localiser, State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.types import Signals
from offmap.score._layers import deviations, patterns
from offmap.score._patches import PatchReader, middle_layers


@dataclass(frozen=True, kw_only=True)
class PaDiM(Localiser):
    """PaDiM: the largest Mahalanobis distance of a patch to the Gaussian of its own position, >= 0.

    ``M_ij = sqrt((x_ij - mu_ij)^T S_ij^-1 (x_ij - mu_ij))`` with a mean and a covariance for each position ij of the chosen maps, brought
    to the finest of their grids (at most 40 a side), channels stacked, of which a random ``channels`` are kept. Channels are divided by
    their deviation over all positions; each covariance is drawn towards a multiple of the identity by OAS, and has ``ridge`` added
    (the paper adds 0.01 to features as they are). The map holds the distance at each position. A distance near the root of ``channels``
    is usual.

    Fitting is one pass over sums in float64, ``P channels^2`` numbers for P positions whatever the number of images; scoring costs
    ``P channels^2 / 2``; the state is ``P (channels^2 + channels)`` numbers in float32, 7 MB for 64 channels of 20 x 20 positions.

    Fails where images are not taken in one view: a part that is usual but out of its place is odd. With fewer images than channels the
    covariances are mostly their multiple of the identity.

    Args:
        layers: layers to use; none named: the second and third deepest (all, where there are fewer than three).
        channels: kept at random, all where there are no more.
        ridge: added to each variance, in squared deviations of the channels.
        seed: of the choice of channels.
    """

    layers: tuple[str, ...] = ()
    channels: int = 64
    ridge: float = 0.01
    seed: int = 0

    reference: ClassVar[str] = (
        "Defard et al., PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization, ICPR-W 2020, "
        "arXiv 2011.08785"
    )

    def __post_init__(self) -> None:
        if not 1 <= self.channels <= 1000 or not 0 < self.ridge <= 1 or self.seed < 0:
            raise ConfigError(
                f"padim: channels = {self.channels} must lie in 1..1000, ridge = {self.ridge} be above 0 and up to 1, "
                f"seed = {self.seed} at least 0"
            )

    @property
    def needs(self) -> frozenset[str]:
        return patterns("feature_map", self.layers)

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        first = next(iter(batches))
        reader = PatchReader.of(first, middle_layers(first, self.layers), smooth=False, who="padim")
        kept = self._kept(sum(reader.widths))
        sums: _Sums | None = None
        for batch in batches:
            part = _Sums.of(reader.rows(batch)[..., kept].double().flatten(1, -2))
            sums = part if sums is None else sums.merge(part)
        if sums is None or sums.count < 2:
            raise SignalError("padim: one image to fit on; at least two different images are needed")
        scale = sums.scale()
        factors = torch.linalg.cholesky(_drawn(sums.scatter / torch.outer(scale, scale), sums.count, self.ridge)) * scale[:, None]
        return {"means": sums.means.float(), "factors": factors.float(), "channels": kept, **reader.tensors()}

    def _kept(self, width: int) -> Tensor:
        """Which of the stacked channels are read."""
        drawn = torch.randperm(width, generator=torch.Generator().manual_seed(self.seed))
        return drawn[: self.channels].sort().values

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        return self.raw_map(state, signals).flatten(1).amax(dim=1)

    def raw_map(self, state: State, signals: Signals) -> Float[Tensor, "n *s"]:
        rows = PatchReader.kept(state, smooth=False, who="padim").rows(signals)[..., state["channels"]]
        centred = (rows.flatten(1, -2) - state["means"]).permute(1, 2, 0)
        whitened = torch.linalg.solve_triangular(state["factors"], centred, upper=False)
        distances: Tensor = torch.linalg.vector_norm(whitened, dim=1)
        return distances.T.reshape(rows.shape[:-1])


@dataclass(frozen=True, eq=False)
class _Sums:
    """Sums of the rows at each position about their own mean, which can be merged (Chan, Golub & LeVeque 1983)."""

    count: int
    means: Float64[Tensor, "p c"]
    scatter: Float64[Tensor, "p c c"]

    @classmethod
    def of(cls, rows: Float64[Tensor, "n p c"]) -> "_Sums":
        means = rows.mean(dim=0)
        centred = (rows - means).movedim(0, 1)
        return cls(len(rows), means, centred.mT @ centred)

    def merge(self, other: "_Sums") -> "_Sums":
        count, delta = self.count + other.count, other.means - self.means
        between = delta[:, :, None] * delta[:, None] * (self.count * other.count / count)
        return _Sums(count, self.means + delta * (other.count / count), self.scatter + other.scatter + between)

    def scale(self) -> Float64[Tensor, " c"]:
        """Deviation of each channel about the means of the positions, over all of them."""
        squares = self.scatter.diagonal(dim1=1, dim2=2).mean(dim=0)
        return deviations(squares, self.count, self.means.square().mean(dim=0).sqrt(), "padim: the feature maps")


def _drawn(scatter: Float64[Tensor, "p c c"], count: int, ridge: float) -> Float64[Tensor, "p c c"]:
    """Covariances drawn towards ``trace/c`` times the identity by the weight of Chen et al. 2010, eq. 23, plus the ridge."""
    width, free = scatter.shape[-1], count - 1
    covariance = scatter / free
    trace, square = covariance.diagonal(dim1=1, dim2=2).sum(dim=1), covariance.square().sum(dim=(1, 2))
    below = (free + 1 - 2 / width) * (square - trace.square() / width)
    weight = (((1 - 2 / width) * square + trace.square()) / below.clamp_min(1e-300)).clamp(0, 1)[:, None, None]
    identity = torch.eye(width, dtype=scatter.dtype, device=scatter.device)
    return (1 - weight) * covariance + (weight * (trace / width)[:, None, None] + ridge) * identity
