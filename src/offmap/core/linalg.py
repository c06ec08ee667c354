"""Linear algebra that stays right when there are fewer images than dimensions: shrinkage, whitening, principal directions.

All in float64; never an explicit inverse, never a pseudo-inverse as regularisation.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from offmap.core.errors import SignalError

Shrinkage = Literal["ledoit_wolf", "oas"]
"""How a covariance is drawn towards a multiple of the identity."""


def unit_norm(rows: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    """Rows of length one; a zero row stays zero."""
    length: Tensor = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return rows / length.clamp_min(1e-12)


def ledoit_wolf(covariance: Float64[Tensor, "d d"], quartic: Float64[Tensor, ""], *, count: int) -> float:
    """Weight of the identity in [0, 1], Ledoit & Wolf 2004 (J. Multivariate Anal. 88, Lemma 3.2-3.4), as in scikit-learn.

    Args:
        covariance: scatter divided by ``count``.
        quartic: ``sum |x|^4`` of the centred rows.
        count: number of rows.
    """
    size, square, trace = len(covariance), float(covariance.square().sum()), float(covariance.trace())
    distance = square - trace**2 / size
    noise = min((float(quartic) / count - square) / count, distance)
    return noise / distance if noise > 0 else 0.0


def oas(covariance: Float64[Tensor, "d d"], *, count: int) -> float:
    """Weight of the identity in [0, 1], Chen et al. 2010 (IEEE Trans. Signal Process. 58, eq. 23).

    This is the paper's form ``[(1-2/D) tr(S^2) + tr(S)^2] / [(n+1-2/D)(tr(S^2) - tr(S)^2/D)]``; scikit-learn leaves out
    the two terms ``2/D``, so its numbers differ in the third digit.
    """
    size, square, trace = len(covariance), float(covariance.square().sum()), float(covariance.trace())
    above = (1 - 2 / size) * square + trace**2
    below = (count + 1 - 2 / size) * (square - trace**2 / size)
    return min(1.0, max(0.0, above / below)) if below > 0 else float(size > 1)


def shrunk(
    scatter: Float64[Tensor, "d d"],
    quartic: Float64[Tensor, ""],
    *,
    count: int,
    centres: int = 1,
    level: float = 0.0,
    kind: Shrinkage = "ledoit_wolf",
) -> Float64[Tensor, "d d"]:
    """Covariance from a scatter, drawn towards ``trace/D`` times the identity.

    Args:
        scatter: sum of outer products of centred rows.
        quartic: ``sum |x|^4`` of the same rows (read by Ledoit-Wolf only).
        count: number of rows.
        centres: number of means that were taken off (classes); OAS divides by ``count - centres``, Ledoit-Wolf by ``count``.
        level: squared length of the mean; variation below 1e-24 of it is rounding, and counts as none.

    Raises:
        SignalError: the rows do not vary.
    """
    free = count if kind == "ledoit_wolf" else count - centres
    mean = float(scatter.trace()) / len(scatter)
    if free < 1 or not mean * len(scatter) / count > 1e-24 * level:
        raise SignalError(f"the {count} rows do not vary about their {centres} mean(s): at least two different images are needed")
    covariance = scatter / free
    weight = ledoit_wolf(covariance, quartic, count=count) if kind == "ledoit_wolf" else oas(covariance, count=free)
    identity = torch.eye(len(scatter), dtype=scatter.dtype, device=scatter.device)
    return (1 - weight) * covariance + weight * (mean / free) * identity


def cholesky(covariance: Float64[Tensor, "d d"]) -> Float64[Tensor, "d d"]:
    """Lower factor; where the matrix is singular, the least ridge (1e-12 ... 1 times its mean variance) that makes it regular.

    Raises:
        SignalError: not even the largest ridge does (a matrix of zeros, or not finite).
    """
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(covariance)
    scale = float(covariance.diagonal().mean())
    smallest = float(factor.diagonal().min())
    if not bool(failed) and smallest**2 > 1e-15 * scale:
        return factor
    for power in range(-12, 1):
        ridge = torch.full_like(covariance.diagonal(), scale * math.pow(10, power))
        factor, failed = torch.linalg.cholesky_ex(covariance + torch.diag(ridge))
        if not bool(failed):
            return factor
    raise SignalError("the covariance has no Cholesky factor: are there at least two different images?")


@dataclass(frozen=True, eq=False)
class Whitener:
    """Takes the mean off and divides by the Cholesky factor, so that Mahalanobis distance becomes Euclidean.

    Args:
        mean: what is taken off.
        factor: lower factor of the covariance.
    """

    mean: Float64[Tensor, " d"]
    factor: Float64[Tensor, "d d"]

    @classmethod
    def of(cls, mean: Float64[Tensor, " d"], covariance: Float64[Tensor, "d d"]) -> "Whitener":
        """From a covariance; a ridge is added only where it is singular."""
        return cls(mean, cholesky(covariance))

    def whiten(self, rows: Float[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
        """``L^-1 (x - mean)`` by a triangular solve."""
        centred = rows.to(self.mean) - self.mean
        whitened: Tensor = torch.linalg.solve_triangular(self.factor, centred.T, upper=False)
        return whitened.T

    def squared(self, rows: Float[Tensor, "n d"]) -> Float64[Tensor, " n"]:
        """Squared Mahalanobis distance to the mean, >= 0."""
        return self.whiten(rows).square().sum(dim=1)


def nearest_centre(rows: Float64[Tensor, "n d"], centres: Float64[Tensor, "k d"]) -> tuple[Float64[Tensor, " n"], Int64[Tensor, " n"]]:
    """Squared Euclidean distance to the nearest centre, >= 0, and which it is.

    The centre is found by the expanded product, the distance itself by differences, so nothing cancels.
    """
    offset = centres.mean(dim=0)
    centred = centres - offset
    which = (centred.square().sum(dim=1) - 2 * (rows - offset) @ centred.T).argmin(dim=1)
    return (rows - centres[which]).square().sum(dim=1), which


def principal(scatter: Float64[Tensor, "d d"]) -> tuple[Float64[Tensor, " d"], Float64[Tensor, "d d"]]:
    """Eigenvalues >= 0 in descending order and their eigenvectors as columns.

    Eigenvectors are defined up to sign, and up to rotation among equal eigenvalues.
    """
    values, vectors = torch.linalg.eigh(scatter)
    return values.flip(0).clamp_min(0), vectors.flip(1)
