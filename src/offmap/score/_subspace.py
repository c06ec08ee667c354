"""What residual and ViM share: the part of a feature outside the in-distribution principal subspace."""

from collections.abc import Iterable
from functools import reduce

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.linalg import principal
from offmap.core.moments import Moments
from offmap.core.types import Signals
from offmap.score._gaussian import Vectors
from offmap.score._layer import CACHED


def head_origin(weight: Tensor, bias: Tensor) -> Float64[Tensor, " d"]:
    """``-W^+ b``, the shortest feature at which all logits vanish (or are least, where no feature makes them vanish).

    Singular values below the rounding of float32 count as zero: training leaves classes whose weights add up to zero, and
    what is left of that sum would send the origin to infinity.
    """
    smallest = max(weight.shape) * torch.finfo(torch.float32).eps
    solution: Tensor = torch.linalg.lstsq(weight.double().cpu(), bias.double().cpu()[:, None], rcond=smallest, driver="gelsd").solution
    return -solution[:, 0].to(weight.device)


def total_moments(batches: Iterable[Signals], vectors: Vectors) -> Moments:
    """Sums of all rows, whatever their class."""
    return reduce(Moments.merge, (Moments.of(vectors(batch)) for batch in batches))


def principal_about(moments: Moments, origin: Float64[Tensor, " d"]) -> tuple[Float64[Tensor, " d"], Float64[Tensor, "d d"]]:
    """Eigenvalues (descending) and eigenvectors of ``E[(h - u)(h - u)^T]``."""
    offset = moments.mean - origin
    return principal(moments.scatter / moments.count + torch.outer(offset, offset))


def outside(rows: Float[Tensor, "n d"], origin: Float64[Tensor, " d"], basis: Float64[Tensor, "d p"]) -> Float64[Tensor, " n"]:
    """Length of ``h - u`` outside the subspace of the orthonormal basis, >= 0.

    By Pythagoras in float64: right to 1e-8 of ``|h - u|``, which is less than float32 features hold.
    """
    squares = []
    for part in rows.split(CACHED):
        centred = part.to(origin) - origin
        squares.append(torch.linalg.vector_norm(centred, dim=1).square() - torch.linalg.vector_norm(centred @ basis, dim=1).square())
    return torch.cat(squares).clamp_min(0).sqrt()


def principal_axes(
    rows: Float64[Tensor, "n d"], components: int
) -> tuple[Float64[Tensor, " d"], Float64[Tensor, " p"], Float64[Tensor, "d p"]]:
    """Mean, variances (descending) and directions of the first principal components, never more than min(N - 1, D), at least one."""
    moments = Moments.of(rows)
    values, vectors = principal(moments.scatter / max(1, moments.count - 1))
    kept = max(1, min(components, moments.count - 1, rows.shape[1]))
    return moments.mean, values[:kept], vectors[:, :kept]


def holding(values: Float64[Tensor, " d"], share: float) -> int:
    """How many of the leading eigenvalues hold a share of their sum."""
    part: Tensor = values.cumsum(dim=0) / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return min(len(values), int((part < share).sum()) + 1)
